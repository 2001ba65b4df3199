//! Files to and from the box over SFTP.
//!
//! A [`Transfer`] is one SFTP channel; several run side by side. Uploads never overwrite, renames never replace, and both
//! directions can go on where an earlier try was cut. There is no limit on how long a file takes, only on how long nothing moves. What went wrong is told apart as far as SFTP allows:
//! OpenSSH reports everything but missing files and missing permissions as plain "Failure" (sftp-server.c,
//! `errno_to_portable`), so an existing file or a full disk is looked for afterwards.

use std::{
    fmt,
    io::SeekFrom,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use russh_sftp::{
    client::{error::Error as SftpError, fs::File},
    protocol::{OpenFlags, StatusCode},
};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File as LocalFile,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
    sync::OwnedSemaphorePermit,
    time::timeout,
};

use super::{
    Session, SshError, TransferError, checksum,
    connection::Connection,
    sftp::SftpChannel,
    step::{Failure, bounded},
};
use crate::text::clip;

/// When nothing has moved for so long, a transfer has failed.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// How long finding out why a write failed may take.
const INQUIRY: Duration = Duration::from_secs(10);
/// What OpenSSH reads and writes at once (255 KiB).
const CHUNK: usize = 261_120;
/// A write that fails with less space than this left has failed for lack of space.
const FULL: u64 = 1 << 20;

/// A way to move files. Its methods can be called side by side; dropping one of their futures stops that operation.
pub struct Transfer {
    /// `None` only while being dropped.
    channel: Option<SftpChannel>,
    /// Whether the channel has failed and must not be used again.
    broken: AtomicBool,
    connection: Arc<Connection>,
    _permit: OwnedSemaphorePermit,
    _session: Session,
}

/// What is known about a file on the box. Links are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// In bytes.
    pub size: u64,
    /// A folder.
    pub is_dir: bool,
    /// A regular file.
    pub is_file: bool,
    /// When its content was last changed, by the box's clock, to the second.
    pub modified: Option<SystemTime>,
}

impl Transfer {
    pub(super) async fn open(session: Session, connection: Arc<Connection>) -> Result<Self, SshError> {
        let (channel, permit) = connection.sftp.take(&connection).await?;
        Ok(Self {
            channel: Some(channel),
            broken: AtomicBool::new(false),
            connection,
            _permit: permit,
            _session: session,
        })
    }

    /// What is at `path`; `None` if nothing is.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn stat(&self, path: &str) -> Result<Option<Stat>, TransferError> {
        let found = self.guard(path, async { Ok(self.channel(path)?.client.metadata(path).await?) }).await;
        match found {
            Ok(found) => {
                let kind = found.file_type();
                Ok(Some(Stat {
                    size: found.size.unwrap_or(0),
                    is_dir: kind.is_dir(),
                    is_file: kind.is_file(),
                    modified: found.mtime.map(|seconds| UNIX_EPOCH + Duration::from_secs(u64::from(seconds))),
                }))
            }
            Err(TransferError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies a local file, from its beginning, to a file on the box and returns the size that it has then. The box confirms every byte.
    ///
    /// With 0 for `from` the file is new; otherwise the first `from` bytes are there already, and the rest is written
    /// behind them. Whatever was written when it fails, or when the future is dropped, stays.
    ///
    /// # Errors
    /// [`TransferError::AlreadyExists`] if there is such a file and it should be new; see there for the others.
    pub async fn upload(&self, mut source: LocalFile, remote: &str, from: u64) -> Result<u64, TransferError> {
        let reading = |source| TransferError::Local { what: format!("could not read what goes to {remote}"), source };
        source.set_max_buf_size(CHUNK);
        source.seek(SeekFrom::Start(from)).await.map_err(reading)?;
        let mut target = self.open_for_writing(remote, from).await?;
        let copied = async {
            let (mut chunk, mut size) = (vec![0; CHUNK], from);
            loop {
                let length = source.read(&mut chunk).await.map_err(reading)?;
                if length == 0 {
                    self.guard(remote, async { Ok(target.shutdown().await?) }).await?;
                    return Ok(size);
                }
                self.guard(remote, async { Ok(target.write_all(&chunk[..length]).await?) }).await?;
                size += length as u64;
            }
        };
        match copied.await {
            Ok(size) => Ok(size),
            Err(error) => Err(self.perhaps_full(remote, error).await),
        }
    }

    /// Copies a file of `size` bytes into `into`, but for its first `from` bytes, and returns how many were copied.
    ///
    /// # Errors
    /// [`TransferError::TooLarge`] as soon as the file has more than `size` bytes, with none beyond that written, and
    /// [`TransferError::TooShort`] if it has fewer; [`TransferError::Local`] if `into` fails; see there for the others. Whatever was written by then stays written.
    pub async fn download<W: AsyncWrite + Unpin>(
        &self,
        remote: &str,
        from: u64,
        into: &mut W,
        size: u64,
    ) -> Result<u64, TransferError> {
        let writing =
            |source| TransferError::Local { what: format!("could not write what came from {remote}"), source };
        let mut source = self.open_for_reading(remote).await?;
        self.guard(remote, async { Ok(source.seek(SeekFrom::Start(from)).await?) }).await?;
        let mut chunk = vec![0; CHUNK];
        let mut copied = 0;
        loop {
            let length = self.guard(remote, async { Ok(source.read(&mut chunk).await?) }).await?;
            if length == 0 {
                break;
            }
            copied += length as u64;
            if from + copied > size {
                return Err(TransferError::TooLarge { path: remote.to_owned(), limit: size });
            }
            into.write_all(&chunk[..length]).await.map_err(writing)?;
        }
        into.flush().await.map_err(writing)?;
        self.guard(remote, async { Ok(source.close().await?) }).await?;
        if from + copied < size {
            return Err(TransferError::TooShort { path: remote.to_owned(), size });
        }
        Ok(copied)
    }

    /// The SHA-256 of a regular file, as the box itself computes it; `None` if it can't or may not. It is `size` bytes
    /// large, as far as is known: that decides how long it may take.
    ///
    /// # Errors
    /// [`TransferError::ConnectionLost`] only.
    pub async fn sha256_by_box(&self, remote: &str, size: u64) -> Result<Option<[u8; 32]>, TransferError> {
        match checksum::by_box(&self.connection, remote, size).await {
            None if self.connection.is_closed() => {
                let (path, source) = (remote.to_owned(), self.connection.lost());
                Err(TransferError::ConnectionLost { path, source })
            }
            hash => Ok(hash),
        }
    }

    /// The SHA-256 of a regular file on the box, which is read for this.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn sha256(&self, remote: &str) -> Result<[u8; 32], TransferError> {
        let mut source = self.open_for_reading(remote).await?;
        let attributes = self.guard(remote, async { Ok(source.metadata().await?) }).await?;
        if !attributes.file_type().is_file() {
            return Err(other(remote, "not a regular file"));
        }
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = self.guard(remote, async { Ok(source.read(&mut chunk).await?) }).await?;
            if length == 0 {
                break;
            }
            hash.update(&chunk[..length]);
        }
        self.guard(remote, async { Ok(source.close().await?) }).await?;
        Ok(hash.finalize().into())
    }

    /// Renames a file, unless there is one of the new name.
    ///
    /// # Errors
    /// [`TransferError::AlreadyExists`] if there is; see there for the others.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), TransferError> {
        // OpenSSH itself refuses to replace a file (sftp-server.c, `process_rename`, checked with 9.2). The look before
        // is for other servers, which may not.
        if self.stat(to).await?.is_some() {
            return Err(TransferError::AlreadyExists { path: to.to_owned() });
        }
        match self.guard(from, async { Ok(self.channel(from)?.client.rename(from, to).await?) }).await {
            Err(TransferError::Other { .. }) if self.stat(to).await?.is_some() => {
                Err(TransferError::AlreadyExists { path: to.to_owned() })
            }
            result => result,
        }
    }

    /// Removes a file.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn remove(&self, path: &str) -> Result<(), TransferError> {
        self.guard(path, async { Ok(self.channel(path)?.client.remove_file(path).await?) }).await
    }

    /// The bytes that the user on the box may still write where `path` is; `None` if the box does not tell.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn free_bytes(&self, path: &str) -> Result<Option<u64>, TransferError> {
        let disk = self.guard(path, async { Ok(self.channel(path)?.client.fs_info(path).await?) }).await?;
        Ok(disk.map(|disk| disk.blocks_avail.saturating_mul(disk.fragment_size.max(1))))
    }

    async fn open_for_writing(&self, remote: &str, from: u64) -> Result<File, TransferError> {
        let new = if from == 0 { OpenFlags::CREATE | OpenFlags::EXCLUDE } else { OpenFlags::empty() };
        let flags = OpenFlags::WRITE | new;
        match self.guard(remote, async { Ok(self.channel(remote)?.client.open_with_flags(remote, flags).await?) }).await
        {
            Err(TransferError::Other { .. }) if from == 0 && self.stat(remote).await?.is_some() => {
                Err(TransferError::AlreadyExists { path: remote.to_owned() })
            }
            Err(error) => Err(self.perhaps_full(remote, error).await),
            Ok(mut file) => {
                self.guard(remote, async { Ok(file.seek(SeekFrom::Start(from)).await?) }).await?;
                Ok(file)
            }
        }
    }

    async fn open_for_reading(&self, remote: &str) -> Result<File, TransferError> {
        self.guard(remote, async { Ok(self.channel(remote)?.client.open(remote).await?) }).await
    }

    /// A failed write is for lack of space if there is none left.
    async fn perhaps_full(&self, remote: &str, error: TransferError) -> TransferError {
        if !matches!(error, TransferError::Other { .. }) {
            return error;
        }
        let folder = match remote.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((folder, _)) => folder,
            None => ".",
        };
        match timeout(INQUIRY, self.free_bytes(folder)).await {
            Ok(Ok(Some(free))) if free < FULL => TransferError::NoSpace { path: remote.to_owned() },
            _ => error,
        }
    }

    fn channel(&self, path: &str) -> Result<&SftpChannel, Failure> {
        self.channel.as_ref().ok_or_else(|| Failure::Status(format!("{path}: the channel is closed")))
    }

    /// Runs one step, unless the connection breaks, nothing moves any more, or it takes far too long.
    async fn guard<T>(&self, path: &str, step: impl Future<Output = Result<T, Failure>>) -> Result<T, TransferError> {
        let stalled = async {
            match &self.channel {
                Some(channel) => channel.traffic.stalled(STALL).await,
                None => std::future::pending().await,
            }
        };
        let failure = match bounded(step, self.connection.gone.cancelled(), stalled).await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        Err(self.explain(path, failure))
    }

    fn explain(&self, path: &str, failure: Failure) -> TransferError {
        let path = path.to_owned();
        let error = match failure {
            Failure::Status(reason) => return other(&path, &reason),
            Failure::Sftp(error) => error,
        };
        match error {
            SftpError::Status(status) => match status.status_code {
                StatusCode::NoSuchFile => TransferError::NotFound { path },
                StatusCode::PermissionDenied => TransferError::PermissionDenied { path },
                _ => other(&path, &status.error_message),
            },
            SftpError::Timeout => {
                self.broken.store(true, Ordering::Relaxed);
                TransferError::Stalled { path }
            }
            error @ (SftpError::IO(_) | SftpError::UnexpectedBehavior(_)) => {
                self.broken.store(true, Ordering::Relaxed);
                let source = if self.connection.is_closed() {
                    self.connection.lost()
                } else {
                    let reason = match error {
                        SftpError::IO(reason) => format!("SFTP fails there: {reason}"),
                        // Of the library's own channels, in words that help nobody.
                        _ => "its SFTP server ended, or sent something that is not SFTP".to_owned(),
                    };
                    SshError::ConnectionLost { address: self.connection.address.clone(), reason }
                };
                TransferError::ConnectionLost { path, source }
            }
            error @ (SftpError::Limited(_) | SftpError::UnexpectedPacket) => {
                self.broken.store(true, Ordering::Relaxed);
                other(&path, &error.to_string())
            }
        }
    }
}

fn other(path: &str, reason: &str) -> TransferError {
    TransferError::Other { path: path.to_owned(), reason: clip(reason) }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take()
            && !self.broken.load(Ordering::Relaxed)
            && !self.connection.is_closed()
        {
            self.connection.sftp.give_back(channel);
        }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("address", &self.connection.address).finish_non_exhaustive()
    }
}
