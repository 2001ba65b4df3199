//! Why a workflow failed, in words for people and in a code for programs.

use serde::{Deserialize, Serialize};

use super::{finding::Finding, id::NodeId};
use crate::text;

/// The closed set of machine-readable reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The box refused every key.
    SshAuth,
    /// The box shows another host key than before, or an unknown one where only known ones are allowed.
    SshHostKeyChanged,
    /// The box could not be reached.
    SshUnreachable,
    /// The box's sshd forbids port forwarding.
    SshForwardingRefused,
    /// Nothing that speaks ComfyUI's protocol answers on the port.
    ComfyuiUnreachable,
    /// ComfyUI refused the graph.
    InvalidWorkflow,
    /// A node raised an exception.
    NodeError,
    /// A node ran out of memory.
    OutOfMemory,
    /// Somebody else stopped the run on the box.
    Interrupted,
    /// The box no longer knows the prompt.
    JobLost,
    /// ComfyUI makes no progress any more.
    Wedged,
    /// An input could not be brought to the box.
    UploadFailed,
    /// An output could not be brought here.
    DownloadFailed,
    /// A disk is full, here or on the box.
    DiskFull,
    /// The box named a file that must not be written here, or a path leads out of the configured folders.
    PathRefused,
    /// A configured limit was reached.
    LimitExceeded,
    /// A fault of this service.
    Internal,
}

impl ErrorCode {
    /// Whether it was seen how the run ended on the box, with all that it left.
    pub fn is_seen_on_the_box(self) -> bool {
        matches!(
            self,
            Self::InvalidWorkflow
                | Self::NodeError
                | Self::OutOfMemory
                | Self::Interrupted
                | Self::DownloadFailed
                | Self::DiskFull
                | Self::PathRefused
                | Self::LimitExceeded
        )
    }

    /// Whether the outputs of a run may still come here after it failed for this reason.
    pub fn is_about_downloads(self) -> bool {
        matches!(self, Self::DownloadFailed | Self::DiskFull)
    }
}

/// More about a failure, where there is more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The node at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The Python exception's qualified name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exception_type: Option<String>,
    /// What the exception said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exception_message: Option<String>,
    /// The end of the Python traceback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traceback: Vec<String>,
    /// What was found in the workflow before it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A failure that ends a workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The reason, for programs.
    pub code: ErrorCode,
    /// The reason, for people: what failed, on which thing, what to try. Without control characters but line breaks.
    pub message: String,
    /// Class type of the node at fault, as ComfyUI names it.
    pub node_type: Option<String>,
    /// More about it.
    pub detail: Option<Box<ErrorDetail>>,
}

impl Failure {
    /// A failure with a code and a message only.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: text::message(&message.into()), node_type: None, detail: None }
    }
    /// Without what a node, a refusal or another answer of ComfyUI says in its own words, where `reason` forbids to tell
    /// that.
    #[must_use]
    pub fn withholding_quotes(self, reason: &str) -> Self {
        if self.detail.is_none() && self.code != ErrorCode::ComfyuiUnreachable {
            return self;
        }
        let withheld = format!("what ComfyUI said is withheld, since {reason}; its log on the box has it");
        let begin = match self.code {
            ErrorCode::NodeError | ErrorCode::OutOfMemory => "Node execution failed",
            ErrorCode::InvalidWorkflow => "The workflow can't be run",
            _ => "ComfyUI answered with an error",
        };
        let detail = self.detail.map(|detail| ErrorDetail {
            exception_message: detail.exception_message.is_some().then(|| withheld.clone()),
            traceback: Vec::new(),
            findings: Vec::new(),
            ..*detail
        });
        Self { message: format!("{begin}: {withheld}"), detail: detail.map(Box::new), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_said_is_withheld() {
        let ours = Failure::new(ErrorCode::JobLost, "the box has forgotten it");
        assert_eq!(ours.clone().withholding_quotes("x"), ours);
        let detail = ErrorDetail {
            node_id: Some("1".into()),
            exception_type: Some("ValueError".into()),
            exception_message: Some("secret".into()),
            traceback: vec!["secret".into()],
            findings: Vec::new(),
        };
        let node = Failure { detail: Some(detail.into()), ..Failure::new(ErrorCode::NodeError, "secret") };
        let withheld = node.withholding_quotes("x");
        assert_eq!(
            withheld.message,
            "Node execution failed: what ComfyUI said is withheld, since x; its log on the box has it"
        );
        let detail = withheld.detail.unwrap_or_default();
        assert_eq!((detail.node_id, detail.exception_type), (Some("1".into()), Some("ValueError".into())));
        assert!(detail.exception_message.is_some_and(|said| said.starts_with("what ComfyUI said")));
        assert!(detail.traceback.is_empty());
        let answer = Failure::new(ErrorCode::ComfyuiUnreachable, "GET /queue was answered with HTTP 500: secret");
        assert!(!answer.withholding_quotes("x").message.contains("secret"));
    }
}
