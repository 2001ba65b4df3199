//! The private folder in which a tunnel's socket lies, and what a killed process leaves of such folders.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

/// Unix socket paths are limited to 108 bytes on Linux and 104 elsewhere, with the final zero.
const LONGEST_PATH: usize = 100;

const PREFIX: &str = "comfy-remote-ssh-";

/// Longest time between the making of a folder and of its lock.
const SET_UP: Duration = Duration::from_secs(60);

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

/// Removes the folders of processes that were killed: ours, with nobody's lock on it, and not one that another process is
/// just setting up. Blocks for the file system only.
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
    let Ok(meta) = fs::symlink_metadata(folder) else { return false };
    let is_ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
    // While a folder is set up, its lock is there before its socket. One that stays without a socket is of a process that
    // was killed in between, or while it tidied up.
    let is_old = || meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SET_UP));
    let is_set_up = folder.join(SOCKET).exists() || is_old();
    is_ours && is_set_up && File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::SystemTime;

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

    #[test]
    fn a_folder_that_stays_without_a_socket_is_removed_once_it_is_old() {
        let (dead, alive) = (create().unwrap(), create().unwrap());
        for folder in [dead.folder.path(), alive.folder.path()] {
            File::open(folder).unwrap().set_modified(SystemTime::now() - SET_UP * 2).unwrap();
        }
        let SocketFolder { folder, _lock: lock } = dead;
        let dead = folder.keep();
        drop(lock);
        remove_stale();
        assert!(!dead.exists());
        assert!(alive.folder.path().exists());
    }
}
