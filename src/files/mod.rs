//! Local files by paths that others choose: a request names what is read, a box names what is written.
//!
//! A path is walked one name at a time over open folders (`walk`), and what is used in the end is what was checked:
//! neither a link nor a rename in between leads elsewhere. [`Roots`] say where paths may lead. Only regular files are
//! read, and nothing here waits for the other end of a pipe. Everything blocks for the file system.

mod folder;
mod input;
mod walk;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

pub(crate) use folder::{Folder, publish};
pub(crate) use input::open_regular;

/// The folders in which paths must end, links and `..` resolved. Clones are cheap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Roots(Option<Arc<[PathBuf]>>);

impl Roots {
    /// Paths may lead anywhere.
    #[must_use]
    pub fn anywhere() -> Self {
        Self(None)
    }

    /// Paths must end in one of these folders, or below. Where the folders are is settled now: one that becomes a link
    /// later allows nothing else.
    ///
    /// # Errors
    /// [`RootError`] names the first that is no folder.
    pub fn within(folders: &[PathBuf]) -> Result<Self, RootError> {
        let resolve = |folder: &PathBuf| {
            let failed = |source| RootError { folder: folder.clone(), source };
            let path = fs::canonicalize(folder).map_err(failed)?;
            if path.is_dir() { Ok(path) } else { Err(failed(io::ErrorKind::NotADirectory.into())) }
        };
        Ok(Self(Some(folders.iter().map(resolve).collect::<Result<_, _>>()?)))
    }

    /// Whether a path without links and `..` lies in them.
    fn cover(&self, path: &Path) -> bool {
        self.0.as_ref().is_none_or(|roots| roots.iter().any(|root| path.starts_with(root)))
    }
}

/// A root that can't be used.
#[derive(Debug, Error)]
#[error("{} is not a folder that can be used: {source}", folder.display())]
pub struct RootError {
    folder: PathBuf,
    source: io::Error,
}

/// Why a path can't be used. The text goes behind the path.
#[derive(Debug, Error)]
pub(crate) enum PathError {
    /// It leads out of the roots. Whether anything is there is not told.
    #[error("it lies outside of the allowed folders")]
    Outside,
    /// In a folder that everybody may write to, somebody else has put something in its way.
    #[error("{} belongs to another user, in a folder that everybody may write to", path.display())]
    Foreign { path: PathBuf },
    #[error("it is a directory")]
    IsFolder,
    #[error("{} is not a folder", path.display())]
    NotAFolder { path: PathBuf },
    /// A device, a pipe, a socket, or something that the kernel makes up.
    #[error("it is not a regular file")]
    NotRegular,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl PathError {
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::NotAFolder { .. } => true,
            Self::Io(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            _ => false,
        }
    }
}

impl From<rustix::io::Errno> for PathError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The path from the root folder on; relative ones begin in the working directory.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}
