//! What can go wrong with a file on its way to or from a box.
//!
//! Told apart is what callers act on: what the user can mend (a missing folder, a full disk), what another try may mend
//! (a lost connection), and the rest in the box's own words.

use std::io;

use thiserror::Error;

use super::{SshError, transfer::STALL};

/// Why a file could not be moved.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The file, or the folder it should go into, is not there.
    #[error("{path} does not exist on the box")]
    NotFound {
        /// On the box.
        path: String,
    },
    /// The user on the box may not do that.
    #[error("the box denies access to {path}")]
    PermissionDenied {
        /// On the box.
        path: String,
    },
    /// The name is taken.
    #[error("{path} already exists on the box")]
    AlreadyExists {
        /// On the box.
        path: String,
    },
    /// The disk of the box is full.
    #[error("the disk of the box is full, {path} does not fit")]
    NoSpace {
        /// On the box.
        path: String,
    },
    /// The file has more bytes than asked for.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// On the box.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// The file has fewer bytes than asked for.
    #[error("{path} ended before {size} bytes had come")]
    TooShort {
        /// On the box.
        path: String,
        /// The size that was asked for.
        size: u64,
    },
    /// The connection broke; the file may be there in part.
    #[error("{path} was not transferred completely: {source}")]
    ConnectionLost {
        /// On the box.
        path: String,
        /// What happened to the connection.
        #[source]
        source: SshError,
    },
    /// The connection stands, but nothing moves.
    #[error("{path} was not transferred completely: nothing moved for {} s", STALL.as_secs())]
    Stalled {
        /// On the box.
        path: String,
    },
    /// A file or stream on this machine failed.
    #[error("{what}: {source}")]
    Local {
        /// What we tried to do.
        what: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Anything else the box reports.
    #[error("the box reports about {path}: {reason}")]
    Other {
        /// On the box.
        path: String,
        /// In the box's words.
        reason: String,
    },
}

impl TransferError {
    /// Whether the same may succeed over a new connection.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::ConnectionLost { .. } | Self::Stalled { .. } => true,
            Self::NotFound { .. }
            | Self::PermissionDenied { .. }
            | Self::AlreadyExists { .. }
            | Self::NoSpace { .. }
            | Self::TooLarge { .. }
            | Self::TooShort { .. }
            | Self::Local { .. }
            | Self::Other { .. } => false,
        }
    }
}
