//! A small file system of a test's own, to fill it up or to make it read-only. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A mounted tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// One with room for so many megabytes; `None`, said aloud, where nothing can be mounted.
    pub(crate) fn mount(megabytes: u32) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("tmpfs-").tempdir().expect("a temporary folder");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|mount| mount.status.success()) {
            return Some(Self { folder });
        }
        super::skip("mount", "mounting a tmpfs needs root");
        None
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Changes it, in the words of mount's option `-o`: `size=100m`, `ro`, `rw`.
    ///
    /// # Panics
    /// If mount can't.
    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(self.path()).output().expect("run mount");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Takes up all that is left, in a file that is returned.
    ///
    /// # Panics
    /// If there is no file to be made.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        fs::write(&path, "").expect("make a file");
        let file = fs::OpenOptions::new().append(true).open(&path).expect("open the file");
        let chunk = vec![0; 4096];
        while std::io::Write::write_all(&mut &file, &chunk).is_ok() {}
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the service may still have files open in it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
