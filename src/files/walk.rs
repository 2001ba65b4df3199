//! From the root folder to where a path leads, one name at a time.
//!
//! Each folder on the way is opened without following links, and links are resolved here, as text. So the place that is
//! reached has a known path, `/proc`'s links to open files lead nowhere special, and a folder that is exchanged for a
//! link while we walk is noticed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{PathError, Roots, absolute};

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Opens a folder only to go through it, which needs no permission to list it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const THROUGH: OFlags = OFlags::PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const THROUGH: OFlags = OFlags::RDONLY;

/// What to do about what is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Only look.
    Look,
    /// As what will be written there matters: what other users have put into folders that everybody may write to is not
    /// taken.
    Distrust,
    /// The same, and missing folders are made.
    Make,
}

/// Folders from the root to where we are.
pub(super) struct Walk<'r> {
    roots: &'r Roots,
    manner: Manner,
    folders: Vec<OwnedFd>,
    /// Where we are, without links and `..`.
    at: PathBuf,
    /// What is still to come, last part first.
    rest: Vec<OsString>,
    links: u32,
}

impl<'r> Walk<'r> {
    /// To the folder at `path`.
    pub(super) fn to_folder(path: &Path, roots: &'r Roots, manner: Manner) -> Result<OwnedFd, PathError> {
        let mut walk = Self::begin(path, roots, manner)?;
        while let Some(part) = walk.rest.pop() {
            walk.go(&part)?;
        }
        walk.check(&walk.at)?;
        let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(fs::openat(walk.here(), ".", folder, Mode::empty())?)
    }

    /// To the regular file at `path`, opened with `flags`.
    pub(super) fn to_file(path: &Path, roots: &'r Roots, flags: OFlags) -> Result<File, PathError> {
        let mut walk = Self::begin(path, roots, Manner::Look)?;
        while let Some(part) = walk.rest.pop() {
            if !walk.rest.is_empty() || matches!(part.to_str(), Some("/" | "..")) {
                walk.go(&part)?;
                continue;
            }
            let stat = fs::statat(walk.here(), &part, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| walk.failed(error))?;
            if kind(&stat) == FileType::Symlink {
                walk.follow(&part)?;
                continue;
            }
            walk.check(&walk.at.join(&part))?;
            match kind(&stat) {
                FileType::RegularFile => {}
                FileType::Directory => return Err(PathError::IsFolder),
                _ => return Err(PathError::NotRegular),
            }
            // Opening some files of the kernel's own does something already.
            refuse_made_up(walk.here())?;
            let file = fs::openat(walk.here(), &part, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            if kind(&fs::fstat(&file)?) != FileType::RegularFile {
                return Err(PathError::NotRegular);
            }
            refuse_made_up(file.as_fd())?;
            return Ok(File::from(file));
        }
        walk.check(&walk.at)?;
        Err(PathError::IsFolder)
    }

    fn begin(path: &Path, roots: &'r Roots, manner: Manner) -> Result<Self, PathError> {
        let mut walk =
            Self { roots, manner, folders: Vec::new(), at: PathBuf::new(), rest: Vec::new(), links: MAX_LINKS };
        walk.prepend(&absolute(path)?);
        Ok(walk)
    }

    fn prepend(&mut self, path: &Path) {
        let part = |component: Component<'_>| match component {
            Component::CurDir | Component::Prefix(_) => None,
            part => Some(part.as_os_str().to_owned()),
        };
        self.rest.extend(path.components().rev().filter_map(part));
    }

    fn go(&mut self, part: &OsStr) -> Result<(), PathError> {
        match part.to_str() {
            Some("/") => {
                self.folders = vec![fs::open("/", THROUGH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?];
                self.at = PathBuf::from("/");
                Ok(())
            }
            Some("..") => {
                // Else a path that comes back tells which folders there are outside.
                self.check(&self.at)?;
                if self.folders.len() > 1 {
                    self.folders.pop();
                    self.at.pop();
                }
                Ok(())
            }
            _ => self.enter(part),
        }
    }

    fn enter(&mut self, name: &OsStr) -> Result<(), PathError> {
        let flags = THROUGH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |here: BorrowedFd<'_>| fs::openat(here, name, flags, Mode::empty());
        let opened = match open(self.here()) {
            Err(Errno::NOENT) if self.manner == Manner::Make => {
                self.check(&self.at)?;
                match fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => open(self.here()),
                    Err(error) => Err(error),
                }
            }
            opened => opened,
        };
        let folder = match opened {
            Ok(folder) => folder,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = fs::statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(|error| self.failed(error))?;
                if kind(&stat) == FileType::Symlink {
                    self.trust(name, &stat)?;
                    return self.follow(name);
                }
                let path = self.at.join(name);
                self.check(&path)?;
                return Err(PathError::NotAFolder { path });
            }
            Err(error) => return Err(self.failed(error)),
        };
        self.trust(name, &fs::fstat(&folder)?)?;
        self.folders.push(folder);
        self.at.push(name);
        Ok(())
    }

    fn follow(&mut self, name: &OsStr) -> Result<(), PathError> {
        self.links = self.links.checked_sub(1).ok_or_else(|| self.failed(Errno::LOOP))?;
        let target = fs::readlinkat(self.here(), name, Vec::new()).map_err(|error| self.failed(error))?;
        self.prepend(Path::new(&OsString::from_vec(target.into_bytes())));
        Ok(())
    }

    /// Whether what lies here under `name` may lead us on.
    fn trust(&self, name: &OsStr, found: &Stat) -> Result<(), PathError> {
        if self.manner == Manner::Look || fs::fstat(self.here())?.st_mode & 0o002 == 0 {
            return Ok(());
        }
        let owner = found.st_uid;
        if owner == 0 || owner == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let path = self.at.join(name);
        self.check(&path)?;
        Err(PathError::Foreign { path })
    }

    fn check(&self, path: &Path) -> Result<(), PathError> {
        if self.roots.cover(path) { Ok(()) } else { Err(PathError::Outside) }
    }

    /// What is wrong outside of the roots is not told.
    fn failed(&self, error: Errno) -> PathError {
        if self.roots.cover(&self.at) { error.into() } else { PathError::Outside }
    }

    fn here(&self) -> BorrowedFd<'_> {
        // A path begins with the root folder, and that one is never left.
        self.folders.last().map_or(fs::CWD, AsFd::as_fd)
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// File systems whose files the kernel makes up as they are read: settings, secrets of processes, endless streams.
#[cfg(target_os = "linux")]
fn refuse_made_up(file: BorrowedFd<'_>) -> Result<(), PathError> {
    /// From linux/magic.h: proc, sysfs, debugfs, tracefs, securityfs, selinuxfs, smackfs, cgroup, cgroup2, bpf, pstore,
    /// efivarfs, configfs, binfmt_misc, fusectl, devpts, nsfs, resctrl.
    const MADE_UP: &[u64] = &[
        0x9fa0,
        0x6265_6572,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xf97c_ff8c,
        0x4341_5d53,
        0x0027_e0eb,
        0x6367_7270,
        0xcafe_4a11,
        0x6165_676c,
        0xde5e_81e4,
        0x6265_6570,
        0x4249_4e4d,
        0x6573_5543,
        0x1cd1,
        0x6e73_6673,
        0x0765_5821,
    ];
    let of = fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    if MADE_UP.contains(&of) { Err(PathError::NotRegular) } else { Ok(()) }
}

#[cfg(not(target_os = "linux"))]
fn refuse_made_up(_: BorrowedFd<'_>) -> Result<(), PathError> {
    Ok(())
}
