//! Where outputs land here: safe names, nothing half-written, nothing overwritten.
//!
//! Names come from the box and are not trusted. A file is written under a temporary name in its folder (`part`) and
//! takes its own name in one step that fails where the name is taken; then the next free `-2`, `-3`… is used, unless the
//! taken name already has the same content.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;
use thiserror::Error;

use super::part::is_part;
use crate::{
    files::{Folder, PathError, Roots},
    workflow::RemoteFile,
};

/// The longest name that file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Folders deeper than this are refused.
const MAX_DEPTH: usize = 16;

/// How many files of one name may lie beside each other.
const MAX_TWINS: u32 = 10_000;

/// Why a file can't be stored.
#[derive(Debug, Error)]
pub(super) enum StoreFileError {
    /// The box's name for it is not one that is safe here.
    #[error("the box named an output file {name:?}, which is not a safe name here")]
    Name { name: String },
    /// The folder is not one that may be written to.
    #[error("{} is not used: {cause}", path.display())]
    Refused { path: PathBuf, cause: PathError },
    /// More has come than may.
    #[error("the outputs are larger than {limit}")]
    TooMuch { limit: HumanBytes },
    /// It is larger than what is free.
    #[error("it needs {needed} more, and {} has {free} free", folder.display())]
    NoRoom { folder: PathBuf, needed: HumanBytes, free: HumanBytes },
    /// The local disk or folder does not take it.
    #[error("could not {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl StoreFileError {
    /// Whether the disk is full.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Name { .. } | Self::Refused { .. } | Self::TooMuch { .. } => false,
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Where a file is to lie.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    name: String,
}

impl Place {
    /// The place below `output_dir` of what the box calls `file`.
    pub(super) fn of(output_dir: &Path, file: &RemoteFile) -> Result<Self, StoreFileError> {
        let folder = output_dir.join(safe_subfolder(&file.subfolder)?);
        Ok(Self { folder, name: safe_name(&file.filename)?.to_owned() })
    }

    /// The folder in which it is to lie.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the folder, and makes it if it is missing. Links that users have put there are followed, but not out of
    /// the roots. Blocks.
    pub(super) fn make_folder(&self, roots: &Roots) -> Result<Folder, StoreFileError> {
        Folder::make(&self.folder, roots).map_err(|error| match error {
            PathError::Io(error) => StoreFileError::io("create", &self.folder)(error),
            PathError::NotAFolder { .. } => {
                StoreFileError::io("create", &self.folder)(io::ErrorKind::NotADirectory.into())
            }
            cause => StoreFileError::Refused { path: self.folder.clone(), cause },
        })
    }

    /// Gives a whole file of its folder its name and returns under which one it lies now, safe from a power cut.
    /// When it fails, the file stays where it was. Blocks.
    pub(super) fn take(&self, folder: &Folder, file: &OsStr) -> Result<PathBuf, StoreFileError> {
        for twin in 1..=MAX_TWINS {
            let name = twin_name(&self.name, twin);
            let path = self.folder.join(&name);
            match folder.rename(file, OsStr::new(&name)) {
                Ok(()) => {
                    folder.sync().map_err(StoreFileError::io("write", &path))?;
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if same_content(folder, file, OsStr::new(&name)) {
                        folder.remove(file).map_err(StoreFileError::io("remove", &self.folder.join(file)))?;
                        return Ok(path);
                    }
                }
                Err(error) => return Err(StoreFileError::io("write", &path)(error)),
            }
        }
        let exhausted = io::Error::new(io::ErrorKind::AlreadyExists, "too many files of this name");
        Err(StoreFileError::io("write", &self.folder.join(&self.name))(exhausted))
    }
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
        && !is_part(name)
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
fn same_content(folder: &Folder, one: &OsStr, other: &OsStr) -> bool {
    let compare = || -> io::Result<bool> {
        let (mut one, mut other): (File, File) = (folder.read(one)?, folder.read(other)?);
        if one.metadata()?.len() != other.metadata()?.len() {
            return Ok(false);
        }
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
    use std::fs;

    use super::*;
    use crate::workflow;

    fn named(subfolder: &str, filename: &str) -> RemoteFile {
        RemoteFile {
            filename: filename.into(),
            subfolder: subfolder.into(),
            folder: workflow::Folder::Output,
            listed_as: "images".into(),
        }
    }

    fn store(folder: &Path, file: &RemoteFile, content: &str) -> Result<PathBuf, StoreFileError> {
        let place = Place::of(folder, file)?;
        let opened = place.make_folder(&Roots::anywhere())?;
        fs::write(place.folder().join(".part"), content).unwrap();
        place.take(&opened, OsStr::new(".part"))
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
            ("", ".comfyui_workflow_1_00000000-0-0.part"),
            (".comfyui_workflow_1_00000000-0-0.part", "a"),
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
