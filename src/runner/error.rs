//! What can go wrong with a run: what ends it, and what only interrupts it.

use thiserror::Error;

use crate::{
    comfy::ComfyError,
    ssh::{SshError, SshErrorKind, TransferError},
    store::StoreError,
    workflow::{ErrorCode, Failure},
};

/// Why a workflow was not accepted.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// A check failed; the text says which and on what.
    #[error("{0}")]
    Rejected(String),
    /// It could not be put on record.
    #[error("The workflow could not be put on record: {0}")]
    NotRecorded(#[source] StoreError),
    /// The service is about to end.
    #[error("The service is stopping")]
    Stopping,
}

/// Why a step of a run did not finish.
#[derive(Debug)]
pub(super) enum StepError {
    /// The way to the box is gone, for this reason; on a new link the step can be taken again.
    LinkLost(String),
    /// The workflow can't be finished.
    Fatal(Failure),
}

impl StepError {
    pub(super) fn fatal(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Fatal(Failure::new(code, message))
    }
}

impl From<SshError> for StepError {
    fn from(error: SshError) -> Self {
        if error.is_transient() {
            Self::LinkLost(error.to_string())
        } else {
            Self::Fatal(ssh_failure(&error, error.to_string()))
        }
    }
}

impl From<ComfyError> for StepError {
    fn from(error: ComfyError) -> Self {
        if error.is_transient() {
            Self::LinkLost(error.to_string())
        } else {
            Self::fatal(ErrorCode::ComfyuiUnreachable, error.to_string())
        }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::fatal(ErrorCode::Internal, error.to_string())
    }
}

/// A failure to reach the box, in the words that the answer to execute uses too.
pub(super) fn tunnel_failure(error: &SshError) -> Failure {
    ssh_failure(error, format!("Failed to create SSH tunnel: {error}"))
}

fn ssh_failure(error: &SshError, message: String) -> Failure {
    let code = match error.kind() {
        SshErrorKind::Auth => ErrorCode::SshAuth,
        SshErrorKind::HostKey => ErrorCode::SshHostKeyChanged,
        SshErrorKind::ForwardingRefused => ErrorCode::SshForwardingRefused,
        SshErrorKind::Unreachable | SshErrorKind::PortClosed => ErrorCode::SshUnreachable,
        SshErrorKind::SftpMissing => ErrorCode::UploadFailed,
        SshErrorKind::Config | SshErrorKind::Local => ErrorCode::Internal,
    };
    Failure::new(code, message)
}

/// Whether a failed transfer says that the connection is gone rather than something about the file.
pub(super) fn is_lost(error: &TransferError) -> bool {
    error.is_transient()
}
