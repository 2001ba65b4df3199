//! What can go wrong with the state on disk.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use crate::workflow::WorkflowId;

/// A failure of the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or folder could not be used.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something at our place is not ours.
    #[error("{} is not a {expected} of this user; move it away or set [state] file to another place", path.display())]
    Foreign {
        /// Which path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The folder of the state file is missing.
    #[error("the folder for the state file does not exist: {}; create it or set [state] file", folder.display())]
    NoFolder {
        /// Which folder.
        folder: PathBuf,
    },
    /// Another service works with this file.
    #[error("{} is in use by {holder}; stop it, or set [state] file to another place", path.display())]
    InUse {
        /// The state file.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// The write that should have covered a change failed.
    #[error("the state could not be written: {0}")]
    Unwritten(Arc<StoreError>),
    /// The id is in use.
    #[error("this workflow id is already in use")]
    Taken,
    /// A workflow's graph is gone or broken.
    #[error("the graph that was kept for {id} can't be read: {cause}")]
    Graph {
        /// Whose graph.
        id: WorkflowId,
        /// Why not.
        cause: String,
        /// Whether that may pass, as a want of file descriptors does.
        may_pass: bool,
    },
    /// The state can't be put in words.
    #[error("the state could not be serialised: {0}")]
    Serialise(#[from] serde_json::Error),
    /// The writer has ended.
    #[error("the service is stopping")]
    Closed,
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A blocking task that panicked or was dropped at the stop.
    pub(super) fn task(_: tokio::task::JoinError) -> Self {
        Self::Closed
    }
}
