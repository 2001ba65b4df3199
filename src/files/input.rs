//! Files that are read.

use std::{fs::File, path::Path};

use rustix::fs::OFlags;

use super::{PathError, Roots, walk::Walk};

/// Opens the regular file at `path` for reading.
///
/// # Errors
/// [`PathError::Outside`] whether or not there is anything outside of the roots; else what is wrong with it.
pub(crate) fn open_regular(path: &Path, roots: &Roots) -> Result<File, PathError> {
    // Should it turn into a pipe or a terminal in between, it neither holds us up nor becomes ours.
    Walk::to_file(path, roots, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}
