//! Files that are named from outside: key files and records of host keys.

use std::{fs::File, path::PathBuf};

use super::Options;
use crate::files::{Folder, PathError, Roots, open_regular};

/// A path, and where it may lead. What this machine's own configuration names may lie anywhere; what a connection string
/// names is confined.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NamedFile {
    pub(super) path: PathBuf,
    /// For reading.
    pub(super) read_roots: Roots,
    /// For writing, where it is written to.
    pub(super) write_roots: Option<Roots>,
}

impl NamedFile {
    /// Named by a connection string, to be read.
    pub(super) fn confined(path: PathBuf, options: &Options) -> Self {
        Self { path, read_roots: options.read_roots.clone(), write_roots: None }
    }

    /// Named by a connection string, to be read and written to.
    pub(super) fn confined_both_ways(path: PathBuf, options: &Options) -> Self {
        Self { write_roots: Some(options.write_roots.clone()), ..Self::confined(path, options) }
    }

    /// Opens it for reading. Blocks for the file system only.
    pub(super) fn open(&self) -> Result<File, PathError> {
        open_regular(&self.path, &self.read_roots)
    }

    /// Whether it lies outside of the folders that it is confined to. Blocks for the file system only.
    pub(super) fn is_outside(&self) -> bool {
        let read = || matches!(self.open(), Err(PathError::Outside));
        let written = |roots: &Roots| {
            let folder = self.path.parent().map(|folder| Folder::open(folder, roots));
            matches!(folder, Some(Err(PathError::Outside)))
        };
        read() || self.write_roots.as_ref().is_some_and(written)
    }
}

/// Named by this machine's own configuration.
impl From<PathBuf> for NamedFile {
    fn from(path: PathBuf) -> Self {
        Self { path, read_roots: Roots::anywhere(), write_roots: None }
    }
}
