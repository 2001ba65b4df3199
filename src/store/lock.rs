//! One service per state file.
//!
//! The lock is a file of its own, since the state file is replaced by a rename and a lock on a replaced file protects
//! nothing. The folder of the graphs is locked too, so that a second service is refused also after somebody has
//! removed the lock file; the holder puts the file back as soon as it notices. The system lets go of both when the
//! process ends, however it ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    file::{ONE_NAME, OWN_FILE, beside, flags_without_following},
};

/// Held as long as it is not dropped.
#[derive(Debug)]
pub(super) struct Lock {
    state_file: PathBuf,
    folder_path: PathBuf,
    file: File,
    /// `None` on file systems whose folders can't be locked.
    folder: Option<File>,
}

impl Lock {
    /// Takes `<state file>.lock` and the folder of the graphs. Blocks for the file system only.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that has it.
    pub(super) fn take(state_file: &Path, folder: &Path) -> Result<Self, StoreError> {
        let file = take_file(state_file)?;
        let locked = take_folder(state_file, folder)?;
        name_holder(&file);
        Ok(Self { state_file: state_file.to_owned(), folder_path: folder.to_owned(), file, folder: locked })
    }

    /// Sees to it that the lock is still in place, and takes it again where somebody has removed or replaced it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another service came first: then it has the state file now.
    pub(super) fn keep(&mut self) -> Result<(), StoreError> {
        let path = lock_path(&self.state_file);
        if !is_at(&self.file, &path) {
            let file = take_file(&self.state_file)?;
            name_holder(&file);
            tracing::warn!(lock = %path.display(), "put back the lock file, which somebody had removed or replaced");
            self.file = file;
        }
        let folder_in_place = self.folder.as_ref().is_some_and(|folder| is_at(folder, &self.folder_path));
        if !folder_in_place && self.folder_path.is_dir() {
            self.folder = take_folder(&self.state_file, &self.folder_path)?;
        }
        Ok(())
    }
}

fn lock_path(state_file: &Path) -> PathBuf {
    beside(state_file, ".lock")
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let held = file.metadata().map(identity);
    held.is_ok_and(|held| fs::symlink_metadata(path).map(identity).is_ok_and(|found| found == held))
}

fn take_file(state_file: &Path) -> Result<File, StoreError> {
    let path = lock_path(state_file);
    let file = open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(state_file, file)),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", path)(error)),
    }
}

fn take_folder(state_file: &Path, folder: &Path) -> Result<Option<File>, StoreError> {
    let opened = File::open(folder).map_err(StoreError::io("open", folder))?;
    match opened.try_lock() {
        Ok(()) => Ok(Some(opened)),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::InUse { path: state_file.to_owned(), holder: "another process".to_owned() })
        }
        Err(TryLockError::Error(error)) => {
            tracing::debug!(%error, "folders can't be locked here");
            Ok(None)
        }
    }
}

fn in_use(state_file: &Path, lock: File) -> StoreError {
    let mut holder = String::new();
    lock.take(100).read_to_string(&mut holder).ok();
    let holder = match holder.trim() {
        "" => "another process".to_owned(),
        id => format!("process {id}"),
    };
    StoreError::InUse { path: state_file.to_owned(), holder }
}

/// Only for the words of a refusal: a full disk must not keep the service from starting.
fn name_holder(mut lock: &File) {
    let id = format!("{}\n", std::process::id());
    if let Err(error) = lock.set_len(0).and_then(|()| lock.write_all(id.as_bytes())) {
        tracing::debug!(%error, "could not write who holds the lock");
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let foreign = |expected| StoreError::Foreign { path: path.to_owned(), expected };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags_without_following())
        .open(path)
        .map_err(|error| match fs::symlink_metadata(path) {
            Ok(meta) if !meta.is_file() => foreign(OWN_FILE),
            _ => StoreError::io("open", path)(error),
        })?;
    let meta = file.metadata().map_err(StoreError::io("read", path))?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign(OWN_FILE));
    }
    // It is written to.
    if meta.nlink() > 1 { Err(foreign(ONE_NAME)) } else { Ok(file) }
}
