//! Where outputs land here: safe names, nothing half-written, nothing overwritten.
//!
//! Names come from the box and are not trusted. A file is written under a temporary name in its folder and takes its
//! own name in one step that fails where the name is taken; then the next free `-2`, `-3`… is used, unless the taken
//! name already has the same content.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use thiserror::Error;

use crate::workflow::{RemoteFile, WorkflowId};

/// The longest name that file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Folders deeper than this are refused.
const MAX_DEPTH: usize = 16;

const PART_SUFFIX: &str = ".part";

/// How many files of one name may lie beside each other.
const MAX_TWINS: u32 = 10_000;

/// Why a file can't be stored.
#[derive(Debug, Error)]
pub(super) enum StoreFileError {
    /// The box's name for it is not one that is safe here.
    #[error("the box named an output file {name:?}, which is not a safe name here")]
    Name { name: String },
    /// The local disk or folder does not take it.
    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl StoreFileError {
    /// Whether the disk is full.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// A file on its way into the output folder. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Incoming {
    part: NamedTempFile,
    folder: PathBuf,
    name: String,
}

impl Incoming {
    /// Opens a temporary file for what the box calls `file`, below `output_dir`. Blocks.
    pub(super) fn open(output_dir: &Path, file: &RemoteFile, owner: &WorkflowId) -> Result<Self, StoreFileError> {
        let folder = output_dir.join(safe_subfolder(&file.subfolder)?);
        let name = safe_name(&file.filename)?.to_owned();
        fs::create_dir_all(&folder).map_err(StoreFileError::io("create", &folder))?;
        let part = tempfile::Builder::new()
            .prefix(&part_prefix(owner))
            .suffix(PART_SUFFIX)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&folder)
            .map_err(StoreFileError::io("create a file in", &folder))?;
        Ok(Self { part, folder, name })
    }

    /// A handle to write the content to.
    pub(super) fn writer(&self) -> Result<tokio::fs::File, StoreFileError> {
        let file = self.part.reopen().map_err(StoreFileError::io("open", self.part.path()))?;
        Ok(tokio::fs::File::from_std(file))
    }

    /// Gives the file its name and returns where it is. Blocks.
    pub(super) fn keep(mut self) -> Result<PathBuf, StoreFileError> {
        self.part.as_file().sync_all().map_err(StoreFileError::io("write", self.part.path()))?;
        for twin in 1..=MAX_TWINS {
            let path = self.folder.join(twin_name(&self.name, twin));
            match self.part.persist_noclobber(&path) {
                Ok(_) => return Ok(path),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                    self.part = error.file;
                    if same_content(self.part.path(), &path) {
                        return Ok(path);
                    }
                }
                Err(error) => return Err(StoreFileError::io("write", &path)(error.error)),
            }
        }
        let exhausted = io::Error::new(io::ErrorKind::AlreadyExists, "too many files of this name");
        Err(StoreFileError::io("write", &self.folder.join(&self.name))(exhausted))
    }
}

/// Removes the temporary files that a killed service left of a workflow, beside where `file` is to lie. Blocks.
pub(super) fn remove_parts(output_dir: &Path, file: &RemoteFile, owner: &WorkflowId) {
    let Ok(subfolder) = safe_subfolder(&file.subfolder) else { return };
    for entry in fs::read_dir(output_dir.join(subfolder)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&part_prefix(owner)) && name.ends_with(PART_SUFFIX) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn part_prefix(owner: &WorkflowId) -> String {
    format!(".{owner}-")
}

fn safe_subfolder(subfolder: &str) -> Result<PathBuf, StoreFileError> {
    let parts: Vec<&str> = subfolder.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if subfolder.starts_with('/') || parts.len() > MAX_DEPTH {
        return Err(StoreFileError::Name { name: brief(subfolder) });
    }
    parts.into_iter().map(safe_name).collect()
}

fn safe_name(name: &str) -> Result<&str, StoreFileError> {
    let harmless = !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME_BYTES
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
    if harmless { Ok(name) } else { Err(StoreFileError::Name { name: brief(name) }) }
}

fn brief(name: &str) -> String {
    name.chars().take(100).collect()
}

/// `a.png`, `a-2.png`, `a-3.png`… The stem gives way where the name would become too long.
fn twin_name(name: &str, twin: u32) -> String {
    if twin == 1 {
        return name.to_owned();
    }
    let (stem, ending) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!("-{twin}.{extension}")),
        _ => (name, format!("-{twin}")),
    };
    let room = MAX_NAME_BYTES.saturating_sub(ending.len()).min(stem.len());
    let room = (0..=room).rev().find(|at| stem.is_char_boundary(*at)).unwrap_or_default();
    format!("{}{ending}", &stem[..room])
}

/// Whether both are regular files of the same bytes; what can't be read is not the same.
fn same_content(one: &Path, other: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let meta = fs::symlink_metadata(other)?;
        if !meta.is_file() || meta.len() != fs::metadata(one)?.len() {
            return Ok(false);
        }
        let (mut one, mut other) = (File::open(one)?, File::open(other)?);
        let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            let read = one.read(&mut a)?;
            if read == 0 {
                return Ok(true);
            }
            other.read_exact(&mut b[..read])?;
            if a[..read] != b[..read] {
                return Ok(false);
            }
        }
    };
    compare().unwrap_or(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::workflow::Folder;

    fn named(subfolder: &str, filename: &str) -> RemoteFile {
        RemoteFile {
            filename: filename.into(),
            subfolder: subfolder.into(),
            folder: Folder::Output,
            listed_as: "images".into(),
        }
    }

    fn store(folder: &Path, file: &RemoteFile, content: &str) -> Result<PathBuf, StoreFileError> {
        let mut incoming = Incoming::open(folder, file, &"owner".into())?;
        incoming.part.write_all(content.as_bytes()).unwrap();
        incoming.keep()
    }

    #[test]
    fn nothing_that_exists_is_overwritten_and_the_same_content_is_not_stored_twice() {
        let folder = tempfile::tempdir().unwrap();
        let file = named("sub/ünï cödé", "ComfyUI_00001_.png");
        let place = |name: &str| folder.path().join("sub/ünï cödé").join(name);
        for (content, name) in [
            ("one", "ComfyUI_00001_.png"),
            ("two", "ComfyUI_00001_-2.png"),
            ("three", "ComfyUI_00001_-3.png"),
            ("two", "ComfyUI_00001_-2.png"),
            ("one", "ComfyUI_00001_.png"),
        ] {
            assert_eq!(store(folder.path(), &file, content).unwrap(), place(name));
            assert_eq!(fs::read_to_string(place(name)).unwrap(), content);
        }
        assert_eq!(fs::read_dir(place("")).unwrap().count(), 3, "temporary files are gone");
    }

    #[test]
    fn parts_of_one_workflow_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = named("", "a.png");
        let (mine, other): (WorkflowId, WorkflowId) = ("mine".into(), "other".into());
        let keep = |owner| Incoming::open(folder.path(), &file, owner).unwrap().part.keep().unwrap().1;
        let (left, foreign) = (keep(&mine), keep(&other));
        remove_parts(folder.path(), &file, &mine);
        assert!(!left.exists() && foreign.exists());
    }

    #[test]
    fn names_as_long_as_file_systems_take_them_have_twins_too() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("{}.png", "画".repeat(83));
        let file = named("", &name);
        assert_eq!(store(folder.path(), &file, "one").unwrap(), folder.path().join(&name));
        let twin = store(folder.path(), &file, "two").unwrap();
        assert!(twin.to_str().unwrap().ends_with("画-2.png"), "{}", twin.display());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "same").unwrap();
        std::os::unix::fs::symlink(folder.path().join("precious"), folder.path().join("a.png")).unwrap();
        let stored = store(folder.path(), &named("", "a.png"), "same").unwrap();
        assert_eq!(stored, folder.path().join("a-2.png"));
    }

    #[test]
    fn hostile_names_are_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let long = "x".repeat(5000);
        for (subfolder, filename) in [
            ("", ".."),
            ("", ""),
            ("", "../a"),
            ("", "/etc/passwd"),
            ("", "a\\b"),
            ("", "a\0b"),
            ("", "a\nb"),
            ("..", "a"),
            ("a/../../b", "a"),
            ("/etc", "a"),
            ("", &long),
            (&long, "a"),
        ] {
            assert!(
                matches!(store(&inside, &named(subfolder, filename), "x"), Err(StoreFileError::Name { .. })),
                "{subfolder:?} {filename:?}"
            );
        }
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
