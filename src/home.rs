//! The user's home folder in paths.

use std::path::{Path, PathBuf};

/// `~/…` with the home folder in its place; everything else as it is.
pub(crate) fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}
