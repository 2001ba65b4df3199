//! Folders that are written to.

use std::{
    ffi::OsStr,
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    sync::OnceLock,
};

use rustix::{
    fs::{self, AtFlags, Dir, Mode, OFlags},
    io::Errno,
};

use super::{
    PathError, Roots,
    walk::{Manner, Walk},
};

/// An open folder. What is done with its names is done there, wherever the path that led to it leads by now. Links in
/// it are not followed.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// The folder at `path`, made if it is missing.
    ///
    /// # Errors
    /// See [`PathError`].
    pub(crate) fn make(path: &Path, roots: &Roots) -> Result<Self, PathError> {
        Walk::to_folder(path, roots, Manner::Make).map(Self)
    }

    /// The folder at `path`.
    ///
    /// # Errors
    /// See [`PathError`].
    pub(crate) fn open(path: &Path, roots: &Roots) -> Result<Self, PathError> {
        Walk::to_folder(path, roots, Manner::Distrust).map(Self)
    }

    /// Opens a regular file for reading and writing. With [`OFlags::CREATE`] among the flags a missing one is made, for
    /// this user alone.
    pub(crate) fn file(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR | flags)
    }

    /// Opens a regular file for reading.
    pub(crate) fn read(&self, name: &OsStr) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    fn open_file(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        // What is written to it would be written to a file elsewhere.
        if flags.contains(OFlags::RDWR) && meta.nlink() > 1 {
            return Err(io::Error::other("it has a second name (a hard link)"));
        }
        Ok(file)
    }

    /// Gives a file another name, unless that is taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if it is.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        match fs::renameat_with(&self.0, from, &self.0, to, fs::RenameFlags::NOREPLACE) {
            // Not every file system can.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            done => return Ok(done?),
        }
        fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())?;
        Ok(fs::unlinkat(&self.0, from, AtFlags::empty())?)
    }

    /// Removes a file; one that is not there is removed.
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of everything in it that can be told in UTF-8.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let entries = Dir::read_from(&self.0)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned)).collect())
    }

    /// Finds out by doing whether files can be made in it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        let name = format!(".{}.probe", uuid::Uuid::new_v4());
        self.file(OsStr::new(&name), OFlags::CREATE | OFlags::EXCL)?;
        self.remove(OsStr::new(&name))
    }

    /// What may still be written; `None` when that is not known.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let disk = fs::fstatvfs(&self.0).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Makes new names safe from a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(self.0.as_fd())?)
    }
}

/// Gives a private file the permissions that the user's new files have.
pub(crate) fn publish(file: &File) -> io::Result<()> {
    static UMASK: OnceLock<u32> = OnceLock::new();
    let umask = UMASK.get_or_init(|| umask().unwrap_or(0o077));
    file.set_permissions(Permissions::from_mode(0o666 & !umask))
}

/// Asking the system would change it for a moment.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let digits = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(digits.trim(), 8).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::make(&place.path().join("a/b"), &Roots::anywhere()).unwrap();
        (place, folder)
    }

    #[test]
    fn links_and_second_names_are_not_written_through() {
        let (place, folder) = folder();
        let precious = place.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        symlink(&precious, place.path().join("a/b/link")).unwrap();
        std::fs::hard_link(&precious, place.path().join("a/b/hard")).unwrap();
        for name in ["link", "hard"] {
            folder.file(OsStr::new(name), OFlags::CREATE).unwrap_err();
        }
        folder.read(OsStr::new("link")).unwrap_err();
    }

    #[test]
    fn an_open_folder_stays_the_same_when_its_path_leads_elsewhere() {
        let (place, folder) = folder();
        let moved = place.path().join("moved");
        std::fs::rename(place.path().join("a"), &moved).unwrap();
        symlink("/nowhere", place.path().join("a")).unwrap();
        folder.file(OsStr::new("one"), OFlags::CREATE).unwrap();
        folder.check_writable().unwrap();
        folder.rename(OsStr::new("one"), OsStr::new("two")).unwrap();
        folder.file(OsStr::new("one"), OFlags::CREATE).unwrap();
        let taken = folder.rename(OsStr::new("one"), OsStr::new("two")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert!(moved.join("b/two").is_file());
    }
}
