//! Reading the state file at the start. What can't be understood is moved or copied aside, never destroyed.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    file::StateFile,
    format::{self, Unreadable},
};
use crate::workflow::WorkflowState;

/// What a state file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) workflows: Vec<WorkflowState>,
    pub(super) warnings: Vec<String>,
}

/// Reads the file; a missing one is an empty one. What can't be understood is moved aside, or, if only some
/// workflows in it can't, copied aside.
///
/// # Errors
/// A file of a newer version is left as it is: prompts of its workflows may be running, and to begin without them
/// would lose them.
pub(super) fn load(path: &Path) -> Result<(StateFile, Loaded), StoreError> {
    let (mut file, content) = StateFile::open(path)?;
    let Some(content) = content else { return Ok((file, Loaded::default())) };
    let (workflows, warning) = match format::parse(&content) {
        Ok(parsed) if parsed.broken.is_empty() => (parsed.workflows, None),
        Ok(parsed) => {
            let aside = free_name(path);
            write_new(&aside, &content)?;
            let warning = format!(
                "{} workflow(s) in {} could not be read and are left out ({}); the file was copied to {}",
                parsed.broken.len(),
                path.display(),
                parsed.broken.join("; "),
                aside.display(),
            );
            (parsed.workflows, Some(warning))
        }
        Err(Unreadable::Newer(format)) => return Err(StoreError::Newer { path: path.to_owned(), format }),
        Err(Unreadable::Broken(cause)) => {
            let aside = free_name(path);
            file.move_to(&aside)?;
            let warning = format!(
                "the state file {} could not be read ({cause}); it was moved to {}",
                path.display(),
                aside.display(),
            );
            (Vec::new(), Some(warning))
        }
    };
    Ok((file, Loaded { workflows, warnings: warning.into_iter().collect() }))
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("create", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(StoreError::io("write", path))
}

/// A name beside the file that nothing has yet.
fn free_name(path: &Path) -> PathBuf {
    let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
    let name = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 0 { format!(".unreadable-{now}") } else { format!(".unreadable-{now}-{n}") });
        PathBuf::from(name)
    };
    (0..).map(name).find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_else(|| name(0))
}
