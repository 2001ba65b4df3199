//! The private folder in which a tunnel's socket lies, and what a killed process leaves of such folders.

use std::{
    env, fs, io,
    os::unix::{fs::MetadataExt, fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// Unix socket paths are limited to 108 bytes on Linux and 104 elsewhere, with the final zero.
const LONGEST_PATH: usize = 100;

const PREFIX: &str = "comfy-remote-ssh-";

/// The socket's name in its folder.
const SOCKET: &str = "s";

/// A fresh folder that only this user can enter; it goes when it is dropped.
pub(super) fn create() -> io::Result<TempDir> {
    let mut failure = io::Error::other("the path of the temporary folder is too long for a socket");
    for base in [env::temp_dir(), PathBuf::from("/tmp")] {
        if base.as_os_str().len() + 1 + PREFIX.len() + "XXXXXX/".len() + SOCKET.len() > LONGEST_PATH {
            continue;
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(0o700));
        match builder.tempdir_in(base) {
            Ok(folder) => return Ok(folder),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Where the socket of a folder is.
pub(super) fn socket_in(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// Removes the folders of processes that were killed: ours, with a socket in it that nobody listens on. Blocks.
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
    // A folder without a socket is one that another process is just setting up.
    is_ours
        && UnixStream::connect(socket_in(folder)).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_folders_whose_socket_is_dead_are_removed() {
        let (dead, alive, empty) = (create().unwrap().keep(), create().unwrap(), create().unwrap());
        drop(UnixListener::bind(socket_in(&dead)).unwrap());
        let listener = UnixListener::bind(socket_in(alive.path())).unwrap();
        remove_stale();
        assert!(!dead.exists());
        assert!(alive.path().exists() && empty.path().exists());
        drop(listener);
    }
}
