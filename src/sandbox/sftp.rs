//! SFTP version 3 on the box's file system, as OpenSSH's `sftp-server` answers it.
//!
//! Used by [`ssh`](super::ssh), one value per channel. Remote paths are real absolute paths; relative ones start at the
//! root. Nothing outside the root can be seen or touched: symbolic links are resolved before the check, and the folders
//! above the root can only be recognised as folders. `SYMLINK` and hard links are not offered.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use russh_sftp::extensions::LimitsExtension;
use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode,
    Version,
};
use russh_sftp::ser;
use russh_sftp::server::Handler;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::counted::Counted;
use super::fault::Faults;
use attributes::{apply, attributes, list, set_mode, space};
use paths::{Place, Root};

mod attributes;
mod paths;

const MAX_HANDLES: usize = 1024;
/// OpenSSH's limits for 256 KiB packets.
const MAX_PACKET: u64 = 262_144;
const MAX_DATA: u32 = 261_120;
const NAMES_PER_REPLY: usize = 100;

type Reply<T> = Result<T, StatusCode>;

/// One SFTP session.
pub(super) struct Sftp {
    root: Root,
    faults: Faults,
    handles: HashMap<String, Open>,
    next_handle: u64,
    /// `russh_sftp` spawns the session on its own; this makes the sandbox wait for it, and count it.
    _alive: (TaskTrackerToken, Counted),
}

enum Open {
    File { file: Arc<File>, append: bool },
    Folder { entries: std::vec::IntoIter<Entry> },
}

impl Sftp {
    pub(super) fn new(root: PathBuf, faults: Faults, alive: (TaskTrackerToken, Counted)) -> Self {
        Self { root: Root::new(root), faults, handles: HashMap::new(), next_handle: 0, _alive: alive }
    }

    fn keep(&mut self, id: u32, open: Open) -> Reply<Handle> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(StatusCode::Failure);
        }
        let handle = self.next_handle.to_string();
        self.next_handle += 1;
        self.handles.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Reply<(Arc<File>, bool)> {
        match self.handles.get(handle) {
            Some(Open::File { file, append }) => Ok((Arc::clone(file), *append)),
            _ => Err(StatusCode::Failure),
        }
    }

    /// A path that may be changed: inside the root, with writing allowed.
    fn writable(&self, path: &str) -> Reply<PathBuf> {
        if self.faults.denies_writing() {
            return Err(StatusCode::PermissionDenied);
        }
        match self.root.place(path) {
            Place::Inside(path) => Ok(path),
            Place::Above(_) => Err(StatusCode::Failure),
            Place::Outside => Err(StatusCode::PermissionDenied),
        }
    }

    /// A path that may be looked at.
    fn readable(&self, path: &str) -> Reply<PathBuf> {
        match self.root.place(path) {
            Place::Inside(path) | Place::Above(path) => Ok(path),
            Place::Outside => Err(StatusCode::NoSuchFile),
        }
    }
}

impl Handler for Sftp {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn init(&mut self, _version: u32, _extensions: HashMap<String, String>) -> Reply<Version> {
        let mut version = Version::new();
        version.extensions = [
            ("posix-rename@openssh.com", "1"),
            ("statvfs@openssh.com", "2"),
            ("fsync@openssh.com", "1"),
            ("limits@openssh.com", "1"),
        ]
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .into();
        Ok(version)
    }

    async fn open(&mut self, id: u32, path: String, flags: OpenFlags, attrs: FileAttributes) -> Reply<Handle> {
        let writes = flags.intersects(OpenFlags::WRITE | OpenFlags::APPEND);
        let path = if writes {
            self.writable(&path)?
        } else {
            match self.root.place(&path) {
                Place::Inside(path) => path,
                Place::Above(_) => return Err(StatusCode::PermissionDenied),
                Place::Outside => return Err(StatusCode::NoSuchFile),
            }
        };
        let append = flags.contains(OpenFlags::APPEND);
        let file = blocking(move || {
            OpenOptions::new()
                .read(flags.contains(OpenFlags::READ))
                .write(writes && !append)
                .append(append)
                .truncate(flags.contains(OpenFlags::TRUNCATE) && !append)
                .create(writes && flags.contains(OpenFlags::CREATE))
                .create_new(writes && flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUDE))
                .mode(attrs.permissions.unwrap_or(0o666) & 0o777)
                .open(path)
        })
        .await?;
        self.keep(id, Open::File { file: Arc::new(file), append })
    }

    async fn close(&mut self, id: u32, handle: String) -> Reply<Status> {
        self.handles.remove(&handle).map(|_| done(id)).ok_or(StatusCode::Failure)
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Reply<Data> {
        let (file, _) = self.file(&handle)?;
        let data = blocking(move || {
            let mut data = vec![0; len.min(MAX_DATA) as usize];
            let length = file.read_at(&mut data, offset)?;
            data.truncate(length);
            Ok(data)
        })
        .await?;
        if data.is_empty() && len > 0 { Err(StatusCode::Eof) } else { Ok(Data { id, data }) }
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Reply<Status> {
        let (file, append) = self.file(&handle)?;
        let room = usize::try_from(self.faults.room_for(data.len() as u64)).unwrap_or(usize::MAX);
        blocking(move || {
            let fits = data.get(..room).unwrap_or(&data);
            if append {
                io::Write::write_all(&mut &*file, fits)?;
            } else {
                file.write_all_at(fits, offset)?;
            }
            if fits.len() < data.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
        .await?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = match self.root.place_unresolved(&path) {
            Place::Inside(path) | Place::Above(path) => path,
            Place::Outside => return Err(StatusCode::NoSuchFile),
        };
        let metadata = blocking(move || std::fs::symlink_metadata(path)).await?;
        Ok(Attrs { id, attrs: attributes(&metadata) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = self.readable(&path)?;
        let metadata = blocking(move || std::fs::metadata(path)).await?;
        Ok(Attrs { id, attrs: attributes(&metadata) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Reply<Attrs> {
        let (file, _) = self.file(&handle)?;
        let metadata = blocking(move || file.metadata()).await?;
        Ok(Attrs { id, attrs: attributes(&metadata) })
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Reply<Status> {
        let path = self.writable(&path)?;
        blocking(move || {
            if attrs.permissions.is_some() {
                set_mode(&path, &attrs)?;
            }
            if attrs.size.is_some() || attrs.mtime.is_some() {
                apply(&OpenOptions::new().write(true).open(&path)?, &attrs)?;
            }
            Ok(())
        })
        .await?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Reply<Status> {
        let (file, _) = self.file(&handle)?;
        blocking(move || {
            if let Some(mode) = attrs.permissions {
                file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777))?;
            }
            apply(&file, &attrs)
        })
        .await?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<Handle> {
        let Place::Inside(path) = self.root.place(&path) else {
            return Err(StatusCode::NoSuchFile);
        };
        let entries = blocking(move || list(&path)).await?;
        self.keep(id, Open::Folder { entries: entries.into_iter() })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Reply<Name> {
        let Some(Open::Folder { entries }) = self.handles.get_mut(&handle) else {
            return Err(StatusCode::Failure);
        };
        let files: Vec<Entry> = entries.take(NAMES_PER_REPLY).collect();
        if files.is_empty() { Err(StatusCode::Eof) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Reply<Status> {
        let path = self.unresolved_writable(&path)?;
        blocking(move || std::fs::remove_file(path)).await?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, _attrs: FileAttributes) -> Reply<Status> {
        let path = self.writable(&path)?;
        blocking(move || std::fs::create_dir(path)).await?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Reply<Status> {
        let path = self.unresolved_writable(&path)?;
        blocking(move || std::fs::remove_dir(path)).await?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = match self.root.place(&path) {
            Place::Inside(path) | Place::Above(path) => path,
            Place::Outside => return Err(StatusCode::NoSuchFile),
        };
        Ok(Name { id, files: vec![Entry::dummy(path.to_string_lossy())] })
    }

    /// Version 3 does not replace an existing target; OpenSSH links and unlinks to make sure.
    async fn rename(&mut self, id: u32, old: String, new: String) -> Reply<Status> {
        let (old, new) = (self.unresolved_writable(&old)?, self.unresolved_writable(&new)?);
        blocking(move || {
            if std::fs::symlink_metadata(&old)?.is_file() {
                std::fs::hard_link(&old, &new)?;
                return std::fs::remove_file(&old);
            }
            match std::fs::symlink_metadata(&new) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(&old, &new),
                Err(error) => Err(error),
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            }
        })
        .await?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let Place::Inside(path) = self.root.place_unresolved(&path) else {
            return Err(StatusCode::NoSuchFile);
        };
        let target = blocking(move || std::fs::read_link(path)).await?;
        Ok(Name { id, files: vec![Entry::dummy(target.to_string_lossy())] })
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Reply<Packet> {
        let mut strings = Strings(&data);
        match request.as_str() {
            "posix-rename@openssh.com" => {
                let old = self.unresolved_writable(&strings.next()?)?;
                let new = self.unresolved_writable(&strings.next()?)?;
                blocking(move || std::fs::rename(old, new)).await?;
                Ok(done(id).into())
            }
            "fsync@openssh.com" => {
                let (file, _) = self.file(&strings.next()?)?;
                blocking(move || file.sync_all()).await?;
                Ok(done(id).into())
            }
            "statvfs@openssh.com" => {
                let path = self.readable(&strings.next()?)?;
                let answer = blocking(move || Ok(space(&rustix::fs::statvfs(&path)?))).await?;
                extended_reply(id, &answer)
            }
            "limits@openssh.com" => extended_reply(
                id,
                &LimitsExtension {
                    max_packet_len: MAX_PACKET,
                    max_read_len: u64::from(MAX_DATA),
                    max_write_len: u64::from(MAX_DATA),
                    max_open_handles: MAX_HANDLES as u64,
                },
            ),
            _ => Err(StatusCode::OpUnsupported),
        }
    }
}

impl Sftp {
    /// As [`writable`](Self::writable), for calls that act on a link itself.
    fn unresolved_writable(&self, path: &str) -> Reply<PathBuf> {
        if self.faults.denies_writing() {
            return Err(StatusCode::PermissionDenied);
        }
        match self.root.place_unresolved(path) {
            Place::Inside(path) => Ok(path),
            Place::Above(_) | Place::Outside => Err(StatusCode::PermissionDenied),
        }
    }
}

/// Reads the strings of an extended request.
struct Strings<'a>(&'a [u8]);

impl Strings<'_> {
    fn next(&mut self) -> Reply<String> {
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or(StatusCode::BadMessage)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (text, rest) = rest.split_at_checked(length).ok_or(StatusCode::BadMessage)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| StatusCode::BadMessage)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Reply<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| status_of(&error)),
        Err(_) => Err(StatusCode::Failure),
    }
}

/// The mapping of `errno_to_portable` in OpenSSH's `sftp-server.c`.
fn status_of(error: &io::Error) -> StatusCode {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound | Kind::NotADirectory => StatusCode::NoSuchFile,
        Kind::PermissionDenied => StatusCode::PermissionDenied,
        Kind::InvalidInput | Kind::InvalidFilename => StatusCode::BadMessage,
        Kind::Unsupported => StatusCode::OpUnsupported,
        _ => StatusCode::Failure,
    }
}

fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Success".into(), language_tag: String::new() }
}

fn extended_reply(id: u32, answer: &impl serde::Serialize) -> Reply<Packet> {
    let data = ser::to_bytes(answer).map_err(|_| StatusCode::Failure)?.to_vec();
    Ok(Packet::ExtendedReply(ExtendedReply { id, data }))
}
