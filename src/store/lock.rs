//! One service per state file.
//!
//! The lock is a file of its own, since the state file is replaced by a rename and a lock on a replaced file protects
//! nothing. The system lets go of it when the process ends, however it ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{StoreError, file::flags_without_following};

/// Held as long as it is not dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes `<state file>.lock`. Blocks for the file system only.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that has it.
    pub(super) fn take(state_file: &Path) -> Result<Self, StoreError> {
        let mut path = state_file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let mut file = open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.take(100).read_to_string(&mut holder).ok();
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    id => format!("process {id}"),
                };
                return Err(StoreError::InUse { path: state_file.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
        }
        let id = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all(id.as_bytes())).map_err(StoreError::io("write", path))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let foreign = || StoreError::Foreign { path: path.to_owned(), expected: "regular file" };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags_without_following())
        .open(path)
        .map_err(|error| match fs::symlink_metadata(path) {
            Ok(meta) if !meta.is_file() => foreign(),
            _ => StoreError::io("open", path)(error),
        })?;
    let meta = file.metadata().map_err(StoreError::io("read", path))?;
    if meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw() { Ok(file) } else { Err(foreign()) }
}
