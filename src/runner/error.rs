//! What can go wrong with a run: what ends it, and what only interrupts it.

use thiserror::Error;

use super::line::Full;
use crate::{
    comfy::ComfyError,
    ssh::{SshError, SshErrorKind, TransferError},
    store::StoreError,
    workflow::{ErrorCode, Failure, WorkflowId},
};

/// Why a workflow was not accepted.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// A check failed; the text says which and on what.
    #[error("{0}")]
    Rejected(String),
    /// What was asked for can't be run or converted; nothing is on record.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The box could not be asked.
    #[error("{}", .0.message)]
    Unreachable(Failure),
    /// Too many workflows are being looked at, on this box or on all.
    #[error("Too many workflows are being looked at; try again later")]
    Busy,
    /// Too many workflows wait already, or are the caller's.
    #[error("{0}")]
    LineFull(Full),
    /// It could not be put on record.
    #[error("The workflow could not be put on record, so it was not started: {}{}", .0, when_again(.0))]
    NotRecorded(#[source] StoreError),
    /// What it would be started again with is gone or broken.
    #[error("The workflow cannot be started again: {cause}; {}", again(cause, file))]
    NotKept {
        /// Why it can't be had.
        #[source]
        cause: StoreError,
        /// The file that it came from.
        file: String,
    },
    /// There is no such workflow.
    #[error("Workflow not found: {0}")]
    Unknown(WorkflowId),
    /// Only a finished workflow can be tried again.
    #[error("Workflow is still active: {0}")]
    StillActive(WorkflowId),
    /// The caller's name for the request belongs to another one.
    #[error("This Idempotency-Key was used for another request")]
    KeyReused,
    /// The service is about to end.
    #[error("The service is stopping")]
    Stopping,
    /// A fault of this service.
    #[error("Internal error; the log has more")]
    Internal,
}

fn when_again(cause: &StoreError) -> &'static str {
    if cause.may_pass() { "; try again once that is mended" } else { "" }
}

fn again(cause: &StoreError, file: &str) -> String {
    if cause.may_pass() { "try again later".to_owned() } else { format!("execute its file instead: {file}") }
}

impl From<tokio::task::JoinError> for ExecuteError {
    fn from(error: tokio::task::JoinError) -> Self {
        if error.is_panic() {
            tracing::error!(%error, "accepting a workflow panicked");
            Self::Internal
        } else {
            Self::Stopping
        }
    }
}

/// Why a step of a run did not finish. Each says what the workflow fails with if that is the last word.
#[derive(Debug)]
pub(super) enum StepError {
    /// The way to the box is gone; on a new link the step can be taken again.
    LinkLost(Failure),
    /// The box answers, but not as it should; after a pause the step can be taken again.
    Trouble(Failure),
    /// The workflow can't be finished.
    Fatal(Failure),
}

impl StepError {
    pub(super) fn fatal(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Fatal(Failure::new(code, message))
    }

    /// Work on a thread of its own panicked, or the service stops.
    pub(super) fn ended_early(error: &tokio::task::JoinError, work: &str) -> Self {
        tracing::error!(%error, work, "ended early");
        Self::fatal(ErrorCode::Internal, format!("internal error while {work}; the log has more"))
    }

    /// The SSH connection ended while it was in use.
    pub(super) fn connection_lost() -> Self {
        Self::LinkLost(Failure::new(ErrorCode::SshUnreachable, "the SSH connection was lost"))
    }

    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::LinkLost(failure) | Self::Trouble(failure) | Self::Fatal(failure) => failure,
        }
    }
}

impl From<SshError> for StepError {
    fn from(error: SshError) -> Self {
        let failure = ssh_failure(&error, error.to_string());
        if error.is_transient() { Self::LinkLost(failure) } else { Self::Fatal(failure) }
    }
}

impl From<ComfyError> for StepError {
    fn from(error: ComfyError) -> Self {
        let failure = Failure::new(ErrorCode::ComfyuiUnreachable, error.to_string());
        match error {
            ComfyError::Unreachable { .. }
            | ComfyError::Timeout { .. }
            | ComfyError::TooSlow { .. }
            | ComfyError::Foreign { .. } => Self::LinkLost(failure),
            ComfyError::Crowded { .. }
            | ComfyError::Status { .. }
            | ComfyError::NotFound { .. }
            | ComfyError::TooBig { .. }
            | ComfyError::Malformed { .. }
            | ComfyError::Local { .. } => Self::Trouble(failure),
        }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        let failure = Failure::new(ErrorCode::Internal, error.to_string());
        if error.may_pass() { Self::Trouble(failure) } else { Self::Fatal(failure) }
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
        SshErrorKind::Unreachable | SshErrorKind::HostRefused => ErrorCode::SshUnreachable,
        SshErrorKind::FileRefused => ErrorCode::PathRefused,
        SshErrorKind::PortClosed => ErrorCode::ComfyuiUnreachable,
        SshErrorKind::SftpMissing => ErrorCode::UploadFailed,
        SshErrorKind::Config | SshErrorKind::Local => ErrorCode::Internal,
    };
    Failure::new(code, message)
}

/// A transfer that ended with the connection, not because of the file.
pub(super) fn transfer_lost(error: &TransferError) -> Option<StepError> {
    let failure = || Failure::new(ErrorCode::SshUnreachable, error.to_string());
    error.is_transient().then(|| StepError::LinkLost(failure()))
}
