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
}
