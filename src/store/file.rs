//! The state file: its format, reading it, replacing it in one step.
//!
//! ```json
//! { "format": 1, "workflows": { "comfyui_workflow_…": { … } } }
//! ```
//!
//! A crash at any byte of a write leaves the old file or the new one: the new content goes to a temporary file in the
//! same folder, is flushed to the disk, and takes the place by a rename. A symbolic link at that place is replaced,
//! never followed.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::StoreError;
use crate::workflow::WorkflowState;

/// Counts incompatible changes of the format.
const FORMAT: u64 = 1;

const TEMPORARY_SUFFIX: &str = ".tmp";

/// What a state file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) workflows: Vec<WorkflowState>,
    pub(super) warnings: Vec<String>,
}

/// A missing folder is not made: its name may be a slip.
pub(super) fn check_folder(path: &Path) -> Result<(), StoreError> {
    let folder = folder_of(path);
    if folder.is_dir() { Ok(()) } else { Err(StoreError::NoFolder { folder: folder.to_owned() }) }
}

/// Reads the file; a missing one is an empty one. What can't be understood is moved aside, or, if only some
/// workflows in it can't, copied aside.
pub(super) fn load(path: &Path) -> Result<Loaded, StoreError> {
    remove_temporary(path);
    let Some(content) = read(path)? else {
        return Ok(Loaded::default());
    };
    match parse(&content) {
        Ok((workflows, broken)) if broken.is_empty() => Ok(Loaded { workflows, warnings: vec![] }),
        Ok((workflows, broken)) => {
            let aside = free_name(path);
            write_new(&aside, &content)?;
            let warning = format!(
                "{} workflow(s) in {} could not be read and are left out ({}); the file was copied to {}",
                broken.len(),
                path.display(),
                broken.join("; "),
                aside.display(),
            );
            Ok(Loaded { workflows, warnings: vec![warning] })
        }
        Err(cause) => {
            let aside = free_name(path);
            fs::rename(path, &aside).map_err(StoreError::io("move aside", path))?;
            let warning = format!(
                "the state file {} could not be read ({cause}); it was moved to {}",
                path.display(),
                aside.display(),
            );
            Ok(Loaded { workflows: vec![], warnings: vec![warning] })
        }
    }
}

/// Puts `content` in the file's place.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(&temporary_prefix(path))
        .suffix(TEMPORARY_SUFFIX)
        .tempfile_in(folder)
        .map_err(StoreError::io("create a temporary file in", folder))?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(StoreError::io("write", path))?;
    file.persist(path).map_err(|error| StoreError::io("replace", path)(error.error))?;
    sync_folder(folder).map_err(StoreError::io("write", folder))
}

/// Removes the temporary files that a killed service left.
fn remove_temporary(path: &Path) {
    for entry in fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&temporary_prefix(path)) && name.ends_with(TEMPORARY_SUFFIX) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Makes a rename or a new file in a folder survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The frame around the workflows, each already in words.
pub(super) fn render<'a>(workflows: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut out = format!("{{\"format\":{FORMAT},\"workflows\":{{").into_bytes();
    for (at, (id, state)) in workflows.enumerate() {
        out.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        out.extend_from_slice(Value::from(id).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(state);
    }
    out.extend_from_slice(b"\n}}\n");
    out
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let foreign = || StoreError::Foreign { path: path.to_owned(), expected: "regular file" };
    let open = OpenOptions::new().read(true).custom_flags(flags_without_following()).open(path);
    let mut file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) => {
            tracing::debug!(%error, "the state file's place is taken");
            return Err(foreign());
        }
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let meta = file.metadata().map_err(StoreError::io("read", path))?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign());
    }
    if meta.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(StoreError::io("protect", path))?;
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(StoreError::io("read", path))?;
    Ok(Some(content))
}

/// `O_NONBLOCK` so that a pipe put at our place can't hold up the start.
pub(super) fn flags_without_following() -> i32 {
    (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32
}

/// The readable workflows, and for each other one why it is not. `Err` when the whole is not ours.
fn parse(content: &[u8]) -> Result<(Vec<WorkflowState>, Vec<String>), String> {
    let document: Value = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    match document.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(other) => return Err(format!("it has format {other}, and this version reads format {FORMAT}")),
        None => return Err("it names no format".into()),
    }
    let Some(workflows) = document.get("workflows").and_then(Value::as_object) else {
        return Err("it has no workflows".into());
    };
    let (mut readable, mut broken) = (Vec::new(), Vec::new());
    for (id, state) in workflows {
        match serde_json::from_value::<WorkflowState>(state.clone()) {
            Ok(state) if state.id.as_str() == id => readable.push(state),
            Ok(state) => broken.push(format!("{id} holds {}", state.id)),
            Err(error) => broken.push(format!("{id}: {error}")),
        }
    }
    Ok((readable, broken))
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

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
