//! File attributes between the local file system and SFTP.
//!
//! Used by [`Sftp`](super::Sftp).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use russh_sftp::extensions::Statvfs;
use russh_sftp::protocol::{File as Entry, FileAttributes};

pub(super) fn attributes(metadata: &Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(u32::try_from(time).unwrap_or(0));
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::empty()
    }
}

pub(super) fn set_mode(path: &Path, attrs: &FileAttributes) -> io::Result<()> {
    let mode = attrs.permissions.unwrap_or(0o644) & 0o777;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

pub(super) fn apply(file: &File, attrs: &FileAttributes) -> io::Result<()> {
    if let Some(size) = attrs.size {
        file.set_len(size)?;
    }
    if let Some(mtime) = attrs.mtime {
        let time = |seconds: u32| UNIX_EPOCH + Duration::from_secs(u64::from(seconds));
        let accessed = time(attrs.atime.unwrap_or(mtime));
        file.set_times(std::fs::FileTimes::new().set_accessed(accessed).set_modified(time(mtime)))?;
    }
    Ok(())
}

pub(super) fn list(path: &Path) -> io::Result<Vec<Entry>> {
    let own = attributes(&std::fs::metadata(path)?);
    let mut entries = vec![Entry::new(".", own.clone()), Entry::new("..", own)];
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // A file may vanish between listing and looking.
        if let Ok(metadata) = entry.metadata() {
            entries.push(Entry::new(entry.file_name().to_string_lossy(), attributes(&metadata)));
        }
    }
    Ok(entries)
}

pub(super) fn space(stat: &rustix::fs::StatVfs) -> Statvfs {
    Statvfs {
        block_size: stat.f_bsize,
        fragment_size: stat.f_frsize,
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_avail: stat.f_bavail,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        inodes_avail: stat.f_favail,
        fs_id: stat.f_fsid,
        flags: 0,
        name_max: stat.f_namemax,
    }
}
