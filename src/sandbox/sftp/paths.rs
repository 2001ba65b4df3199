//! Where a remote path leads: inside the root, to a folder above it, or elsewhere.
//!
//! Used by [`Sftp`](super::Sftp). Guarantees that a path reported as inside stays inside once symbolic links are
//! followed. It does not defend against links that change between the check and the use: the sandbox has one user.

use std::path::{Component, Path, PathBuf};

/// A remote path, sorted by where it leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The root or something below it.
    Inside(PathBuf),
    /// A folder on the way to the root.
    Above(PathBuf),
    /// Anything else.
    Outside,
}

/// The folder that remote paths are confined to; canonical.
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path.canonicalize().unwrap_or(path))
    }

    /// Follows every link, also in the last part. The last part need not exist.
    pub(super) fn place(&self, path: &str) -> Place {
        let Some(path) = self.absolute(path) else { return Place::Outside };
        if let Ok(real) = path.canonicalize() {
            return self.sort(real);
        }
        // A dangling link would let a write create its target somewhere else.
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
            return Place::Outside;
        }
        self.in_real_parent(&path)
    }

    /// Follows links in the parents only, for calls about a link itself.
    pub(super) fn place_unresolved(&self, path: &str) -> Place {
        match self.absolute(path) {
            Some(path) if path == self.0 || self.0.starts_with(&path) => self.sort(path),
            Some(path) => self.in_real_parent(&path),
            None => Place::Outside,
        }
    }

    fn in_real_parent(&self, path: &Path) -> Place {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Place::Outside };
        match parent.canonicalize() {
            Ok(parent) => self.sort(parent.join(name)),
            // The parent is missing: the call will fail, and this says with which error.
            Err(_) if path.starts_with(&self.0) => Place::Inside(path.to_owned()),
            Err(_) => Place::Outside,
        }
    }

    fn sort(&self, path: PathBuf) -> Place {
        if path.starts_with(&self.0) {
            Place::Inside(path)
        } else if self.0.starts_with(&path) {
            Place::Above(path)
        } else {
            Place::Outside
        }
    }

    /// Absolute, without `.` and `..`; relative paths start at the root.
    fn absolute(&self, path: &str) -> Option<PathBuf> {
        if path.contains('\0') {
            return None;
        }
        let mut clean = PathBuf::new();
        for part in self.0.join(path).components() {
            match part {
                Component::ParentDir => {
                    clean.pop();
                }
                Component::CurDir => {}
                other => clean.push(other),
            }
        }
        Some(clean)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_confined_to_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let root_path = outer.path().canonicalize().unwrap().join("root");
        std::fs::create_dir_all(root_path.join("in")).unwrap();
        std::fs::write(outer.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root_path.join("leak")).unwrap();
        std::os::unix::fs::symlink("../absent", root_path.join("dangling")).unwrap();
        std::os::unix::fs::symlink("in", root_path.join("fine")).unwrap();
        let root = Root::new(root_path.clone());

        let inside = |path: &str, tail: &str| assert_eq!(root.place(path), Place::Inside(root_path.join(tail)));
        inside("in/new.png", "in/new.png");
        inside("fine/new.png", "in/new.png");
        inside("in/../in/./a", "in/a");
        inside("missing/deeper/a", "missing/deeper/a");
        inside(root_path.join("in").to_str().unwrap(), "in");
        assert_eq!(root.place("."), Place::Inside(root_path.clone()));
        assert_eq!(root.place("/"), Place::Above("/".into()));
        for path in ["leak", "dangling", "../secret", "/etc/passwd", "in/../../secret", "a\0b"] {
            assert_eq!(root.place(path), Place::Outside, "{path:?}");
        }
        assert_eq!(root.place_unresolved("leak"), Place::Inside(root_path.join("leak")));
        assert_eq!(root.place_unresolved("leak/deeper"), Place::Outside);
    }
}
