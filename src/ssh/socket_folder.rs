//! The private folder in which a tunnel's socket lies, and what a killed process leaves of such folders.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// Unix socket paths are limited to 108 bytes on Linux and 104 elsewhere, with the final zero.
const LONGEST_PATH: usize = 100;

const PREFIX: &str = "comfy-remote-ssh-";

/// The socket's name in its folder.
const SOCKET: &str = "s";

/// A folder that only this user can enter; it goes when it is dropped.
#[derive(Debug)]
pub(super) struct SocketFolder {
    folder: TempDir,
    /// Tells other processes that it is in use. The system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl SocketFolder {
    /// Where the socket is.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }
}

/// A fresh one.
pub(super) fn create() -> io::Result<SocketFolder> {
    let mut failure = io::Error::other("the path of the temporary folder is too long for a socket");
    for base in [env::temp_dir(), PathBuf::from("/tmp")] {
        if base.as_os_str().len() + 1 + PREFIX.len() + "XXXXXX/".len() + SOCKET.len() > LONGEST_PATH {
            continue;
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(0o700));
        let locked = builder.tempdir_in(base).and_then(|folder| {
            let lock = File::open(folder.path())?;
            lock.lock()?;
            Ok(SocketFolder { folder, _lock: lock })
        });
        match locked {
            Ok(folder) => return Ok(folder),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Removes the folders of processes that were killed: ours, with a socket in it, and with nobody's lock on it. Blocks for
/// the file system only.
pub(super) fn remove_stale() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_stale(&entry.path()) {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::debug!(folder = %entry.path().display(), "removed a folder of a killed process"),
                Err(error) => tracing::debug!(%error, "could not remove a folder of a killed process"),
            }
        }
    }
}

fn is_stale(folder: &Path) -> bool {
    let is_ours = fs::symlink_metadata(folder)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw());
    // A folder without a socket is one that another process is just setting up: its lock is there before its socket.
    is_ours && folder.join(SOCKET).exists() && File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_nobody_holds_are_removed() {
        let (dead, alive, empty) = (create().unwrap(), create().unwrap(), create().unwrap());
        fs::write(dead.socket(), "").unwrap();
        fs::write(alive.socket(), "").unwrap();
        // As a killed process leaves it.
        let SocketFolder { folder, _lock: lock } = dead;
        let dead = folder.keep();
        drop(lock);
        remove_stale();
        assert!(!dead.exists());
        assert!(alive.folder.path().exists() && empty.folder.path().exists());
    }
}
