//! What can go wrong with the state on disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

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
    #[error("{} is not {expected}; move it away or set [state] file to another place", path.display())]
    Foreign {
        /// Which path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A newer version wrote the state file.
    #[error(
        "{} was written by a newer version of comfy-remote, in format {format}; run that version, or set [state] file to \
         another place (the workflows in it are not taken up then)",
        path.display()
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// Somebody else removed or changed a file of ours while the service ran.
    #[error("{} {what} by somebody else", path.display())]
    Tampered {
        /// Which file.
        path: PathBuf,
        /// What happened to it.
        what: &'static str,
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
    /// Whether the same may work later, when the disk is as it should be again.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::Foreign { .. }
            | Self::NoFolder { .. }
            | Self::Tampered { .. }
            | Self::InUse { .. }
            | Self::Unwritten(_) => true,
            Self::Graph { may_pass, .. } => *may_pass,
            Self::Newer { .. } | Self::Taken | Self::Serialise(_) | Self::Closed => false,
        }
    }

    /// The trouble with a part of the state ("the state file") in words without paths, ids or hosts.
    pub(super) fn phrase(&self, part: &str) -> String {
        match self {
            Self::Unwritten(cause) => cause.phrase(part),
            Self::InUse { .. } => "another service uses the same state file; this one writes nothing to it".to_owned(),
            Self::Tampered { what, .. } => format!("{part} {what} by somebody else"),
            Self::Io { source, .. } => format!("{part} cannot be written: {}", words(source.kind())),
            Self::Foreign { .. } => format!("{part} cannot be written: something else is in the way"),
            Self::NoFolder { .. } => format!("{part} cannot be written: the folder is gone"),
            _ => format!("{part} cannot be written; the log has more"),
        }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A temporary file could not be made in a folder. What tempfile says of it names the file, which nobody ever sees.
    pub(super) fn no_file(folder: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::io("create a file in", folder)(error.kind().into())
    }

    /// A blocking task that panicked or was dropped at the stop.
    pub(super) fn task(_: tokio::task::JoinError) -> Self {
        Self::Closed
    }
}

/// The error itself may name a path.
fn words(kind: io::ErrorKind) -> String {
    match kind {
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        io::ErrorKind::NotFound => "the folder is gone".to_owned(),
        io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::DirectoryNotEmpty => "something else is in the way".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_that_cannot_be_made_is_not_named() {
        let folder = Path::new("/nowhere/at/all");
        let error = tempfile::Builder::new().prefix(".tmp").tempfile_in(folder).map_err(StoreError::no_file(folder));
        let said = error.err().map(|error| error.to_string());
        assert_eq!(said.as_deref(), Some("could not create a file in /nowhere/at/all: entity not found"));
    }
}
