//! The state file's place on disk: reading it, replacing it in one step, and noticing when somebody else did.
//!
//! A crash at any byte of a write leaves the old file or the new one: the new content goes to a temporary file in the
//! same folder, is flushed to the disk, and takes the place by a rename. A symbolic link at that place is replaced,
//! never followed.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD},
    io::Errno,
};

use super::StoreError;

const TEMPORARY_SUFFIX: &str = ".tmp";

/// What is put behind the name of a file that somebody else had put in the state file's place.
const REPLACED: &str = ".replaced";

/// What a file of ours must be, for [`StoreError::Foreign`].
pub(super) const OWN_FILE: &str = "a regular file of this user";
pub(super) const ONE_NAME: &str = "a file with this name alone (it is hard-linked to another name)";

/// The state file, and what it looked like when it was read or written here last.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    ours: Option<Identity>,
}

/// What tells a file from another one, and from itself after a change, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    mode: u32,
}

impl Identity {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            mode: meta.mode(),
        }
    }
}

/// A missing folder is not made at the start: its name may be a slip.
pub(super) fn check_folder(path: &Path) -> Result<(), StoreError> {
    let folder = folder_of(path);
    if folder.is_dir() { Ok(()) } else { Err(StoreError::NoFolder { folder: folder.to_owned() }) }
}

/// Whether files can be made in a folder, as far as that is known without making one.
pub(super) fn check_writable(folder: &Path) -> Result<(), StoreError> {
    match rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        // Then it is made.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(StoreError::io("write to", folder)(error.into())),
    }
}

impl StateFile {
    /// Reads the file; `None` when there is none. Removes the temporary files that a killed service left.
    ///
    /// # Errors
    /// When it is not a regular file of our own user.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), StoreError> {
        remove_temporary(path);
        let read = read(path)?;
        let ours = read.as_ref().map(|(identity, _)| *identity);
        Ok((Self { path: path.to_owned(), ours }, read.map(|(_, content)| content)))
    }

    /// Gives the file another name; then there is none at its place.
    pub(super) fn move_to(&mut self, other: &Path) -> Result<(), StoreError> {
        self.ours = None;
        fs::rename(&self.path, other).map_err(StoreError::io("move aside", &self.path))
    }

    /// # Errors
    /// [`StoreError::Tampered`] when the file is not there any more, or not as it was read or written last; else why it
    /// could not be written now.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        check_writable(folder_of(&self.path))?;
        let Some(ours) = self.ours else { return Ok(()) };
        let tampered = |what| Err(StoreError::Tampered { path: self.path.clone(), what });
        match fs::symlink_metadata(&self.path) {
            Ok(meta) if Identity::of(&meta) == ours => Ok(()),
            Ok(_) => tampered("was replaced or changed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => tampered("was removed"),
            Err(error) => Err(StoreError::io("look at", &self.path)(error)),
        }
    }

    /// Puts `content` in the file's place. A folder that was removed meanwhile is made again; what somebody else has put
    /// in the file's place is kept beside it.
    pub(super) fn replace(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let folder = folder_of(&self.path);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(StoreError::io("create", folder))?;
        let mut file = tempfile::Builder::new()
            .prefix(&temporary_prefix(&self.path))
            .suffix(TEMPORARY_SUFFIX)
            .tempfile_in(folder)
            .map_err(StoreError::no_file(folder))?;
        file.write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::io("write", &self.path))?;
        let written = file.as_file().metadata().map_err(StoreError::io("write", &self.path))?;
        self.keep_foreign();
        file.persist(&self.path).map_err(|error| StoreError::io("replace", &self.path)(error.error))?;
        self.ours = Some(Identity::of(&written));
        sync_folder(folder).map_err(StoreError::io("write", folder))
    }

    /// By a second name, so that at no moment there is no file at all. Only the last such file stays.
    fn keep_foreign(&self) {
        let foreign = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| meta.is_file() && meta.size() > 0 && Some(Identity::of(&meta)) != self.ours);
        if !foreign {
            return;
        }
        let kept = beside(&self.path, REPLACED);
        fs::remove_file(&kept).ok();
        match fs::hard_link(&self.path, &kept) {
            Ok(()) => {
                tracing::warn!(kept = %kept.display(), "kept what somebody else had put in the state file's place")
            }
            Err(error) => tracing::warn!(%error, "could not keep what somebody else had put in the state file's place"),
        }
    }
}

fn read(path: &Path) -> Result<Option<(Identity, Vec<u8>)>, StoreError> {
    let foreign = || StoreError::Foreign { path: path.to_owned(), expected: OWN_FILE };
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
    // Else a file of ours that somebody has linked to this place would be taken for the state.
    if has_other_names(&meta, path) {
        return Err(StoreError::Foreign { path: path.to_owned(), expected: ONE_NAME });
    }
    if meta.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(StoreError::io("protect", path))?;
    }
    let meta = file.metadata().map_err(StoreError::io("read", path))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(StoreError::io("read", path))?;
    Ok(Some((Identity::of(&meta), content)))
}

/// A crash in the middle of a write leaves a second name of our own making.
fn has_other_names(meta: &Metadata, path: &Path) -> bool {
    let is_kept = || fs::symlink_metadata(beside(path, REPLACED)).is_ok_and(|kept| kept.ino() == meta.ino());
    meta.nlink() > 1 && !(meta.nlink() == 2 && is_kept())
}

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

/// `O_NONBLOCK` so that a pipe put at our place can't hold up the start.
pub(super) fn flags_without_following() -> i32 {
    (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The path with `suffix` behind its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
