//! Files that are named from outside: key files and records of host keys.

use std::{
    fs::File,
    hash::{Hash, Hasher},
    path::PathBuf,
};

use super::Options;
use crate::files::{Folder, PathError, Roots, open_regular};

/// A path, and where it may lead. What this machine's own configuration names may lie anywhere; what a connection string
/// names is confined.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NamedFile {
    pub(super) path: PathBuf,
    /// As the connection string has it, which says nothing about `~/.ssh/config`; the path has its values for `%` tokens.
    given: Spelling,
    /// For reading.
    pub(super) read_roots: Roots,
    /// For writing, where it is written to.
    pub(super) write_roots: Option<Roots>,
}

/// How a file was named. All spellings are equal: they lead to the same file, and so share a connection.
#[derive(Debug, Clone)]
struct Spelling(Option<String>);

impl PartialEq for Spelling {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spelling {}

impl Hash for Spelling {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl NamedFile {
    /// Named by a connection string as `given`, to be read.
    pub(super) fn confined(given: &str, path: PathBuf, options: &Options) -> Self {
        Self {
            path,
            given: Spelling(Some(given.to_owned())),
            read_roots: options.read_roots.clone(),
            write_roots: None,
        }
    }

    /// The same, to be read and written to.
    pub(super) fn confined_both_ways(given: &str, path: PathBuf, options: &Options) -> Self {
        Self { write_roots: Some(options.write_roots.clone()), ..Self::confined(given, path, options) }
    }

    /// What to call it towards who has named it.
    pub(super) fn name(&self) -> PathBuf {
        self.given.0.as_ref().map_or_else(|| self.path.clone(), PathBuf::from)
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
        Self { path, given: Spelling(None), read_roots: Roots::anywhere(), write_roots: None }
    }
}
