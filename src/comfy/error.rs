//! What can go wrong in a call to ComfyUI.

use std::{io, time::Duration};

use thiserror::Error;

/// Why a call to ComfyUI has no usable answer.
///
/// `what` names the call (`GET /queue`), never its query: file names and tokens stay out of logs.
#[derive(Debug, Error)]
pub enum ComfyError {
    /// Nothing listens, or the connection broke before the answer was complete.
    #[error("no answer to {what}: {cause}; is ComfyUI running?")]
    Unreachable {
        /// The call.
        what: &'static str,
        /// The innermost reason, such as `connection refused`.
        cause: String,
        /// Whether the request may have reached ComfyUI.
        sent: bool,
        /// The whole story, without the address.
        #[source]
        source: reqwest::Error,
    },
    /// Something answers that is not ComfyUI: a proxy, a login page, another program.
    #[error("what answers is not ComfyUI: {found}")]
    Foreign {
        /// What was found, such as `an HTML page titled "Login" (HTTP 200)`.
        found: String,
        /// Whether it looks like what a proxy shows while ComfyUI starts.
        may_pass: bool,
    },
    /// The answer did not come, or did not go on, in time.
    #[error("{what} took longer than {} s", .after.as_secs())]
    Timeout {
        /// The call.
        what: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// A large answer came so slowly that it would not have been whole in time, while others wait for its room.
    #[error("{what} is answered too slowly: {received} bytes in {} s", .after.as_secs())]
    TooSlow {
        /// The call.
        what: &'static str,
        /// What has come.
        received: usize,
        /// In how long.
        after: Duration,
    },
    /// An answer is large, and other large ones have taken all the memory for such answers.
    #[error("there was no room in memory for {bytes} bytes in answer to {what}: other large answers are being read")]
    Crowded {
        /// The call.
        what: &'static str,
        /// The length of the answer, or the most that it may have.
        bytes: u64,
    },
    /// ComfyUI answered with an error.
    #[error("{what} was answered with HTTP {status}{}", if .excerpt.is_empty() { String::new() } else { format!(": {}", .excerpt) })]
    Status {
        /// The call.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body, at most 200 characters on one line.
        excerpt: String,
    },
    /// There is no such file on the box.
    #[error("the box has no file {name}")]
    NotFound {
        /// The file's name.
        name: String,
    },
    /// A body is longer than the cap.
    #[error("the body of {what} is longer than {limit} bytes")]
    TooBig {
        /// The call.
        what: &'static str,
        /// The cap in bytes.
        limit: u64,
    },
    /// The answer is JSON of another shape than expected, or no JSON at all.
    #[error("{what} was answered with something that can't be understood: {problem}")]
    Malformed {
        /// The call.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A local file could not be read or written.
    #[error("the local file of {what} failed: {source}")]
    Local {
        /// The call.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ComfyError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::TooSlow { .. } | Self::Crowded { .. } => true,
            Self::Foreign { may_pass, .. } => *may_pass,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::NotFound { .. } | Self::TooBig { .. } | Self::Malformed { .. } | Self::Local { .. } => false,
        }
    }

    /// What reqwest could not do. `what` names the call.
    pub(super) fn from_reqwest(what: &'static str, error: reqwest::Error) -> Self {
        let source = error.without_url();
        Self::Unreachable {
            what,
            cause: root_cause(&source),
            sent: !source.is_connect() && !source.is_builder(),
            source,
        }
    }
}

/// The innermost reason of an error, without the system's error number.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_transient() {
        let status = |status| ComfyError::Status { what: "GET /queue", status, excerpt: String::new() };
        let foreign = |may_pass| ComfyError::Foreign { found: "x".into(), may_pass };
        assert!(status(500).is_transient() && status(429).is_transient() && foreign(true).is_transient());
        assert!(!status(404).is_transient() && !foreign(false).is_transient());
        assert!(!ComfyError::TooBig { what: "GET /queue", limit: 1 }.is_transient());
    }

    #[test]
    fn messages_say_what_failed() {
        let error = ComfyError::Status { what: "GET /queue", status: 500, excerpt: "trouble".into() };
        assert_eq!(error.to_string(), "GET /queue was answered with HTTP 500: trouble");
        let error = ComfyError::Timeout { what: "GET /queue", after: Duration::from_secs(10) };
        assert_eq!(error.to_string(), "GET /queue took longer than 10 s");
    }
}
