//! How much may come here of one workflow: a box that fills a disk is stopped.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll},
};

use indicatif::HumanBytes;
use tokio::io::AsyncWrite;

use super::output_folder::StoreFileError;

/// Bytes of all files of a workflow that are here or on their way.
#[derive(Debug)]
pub(super) struct Allowance {
    /// 0: no limit.
    limit: u64,
    used: AtomicU64,
}

/// What one file takes of it. Given back when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Share<'a> {
    allowance: &'a Allowance,
    bytes: AtomicU64,
    is_exceeded: AtomicBool,
}

impl Allowance {
    /// With `used` bytes that are here already.
    pub(super) fn new(limit: u64, used: u64) -> Self {
        Self { limit, used: AtomicU64::new(used) }
    }

    /// A share for a file of which `bytes` are here, and `size` will be as far as is known.
    ///
    /// # Errors
    /// When that is more than is left.
    pub(super) fn share(&self, bytes: u64, size: Option<u64>) -> Result<Share<'_>, StoreFileError> {
        let share = Share { allowance: self, bytes: AtomicU64::new(0), is_exceeded: AtomicBool::new(false) };
        share.add(bytes)?;
        let left = self.limit.saturating_sub(self.used.load(Ordering::Relaxed));
        let to_come = size.unwrap_or_default().saturating_sub(bytes);
        if self.limit > 0 && to_come > left { Err(share.exceeded()) } else { Ok(share) }
    }
}

impl Share<'_> {
    /// A writer that fails at the first byte too much.
    pub(super) fn measure<W>(&self, writer: W) -> Measured<'_, W> {
        Measured { share: self, writer }
    }

    /// That more came than may, if so.
    pub(super) fn check(&self) -> Result<(), StoreFileError> {
        if self.is_exceeded.load(Ordering::Relaxed) { Err(self.exceeded()) } else { Ok(()) }
    }

    /// The file stays.
    pub(super) fn keep(self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) -> Result<(), StoreFileError> {
        let used = self.allowance.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.allowance.limit > 0 && used > self.allowance.limit {
            self.is_exceeded.store(true, Ordering::Relaxed);
            return Err(self.exceeded());
        }
        Ok(())
    }

    fn exceeded(&self) -> StoreFileError {
        StoreFileError::TooMuch { limit: HumanBytes(self.allowance.limit) }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.allowance.used.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// See [`Share::measure`].
#[derive(Debug)]
pub(super) struct Measured<'a, W> {
    share: &'a Share<'a>,
    writer: W,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Measured<'_, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.writer).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = &written
            && let Err(error) = self.share.add(*length as u64)
        {
            return Poll::Ready(Err(io::Error::other(error.to_string())));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn files_share_what_is_allowed_and_what_fails_gives_it_back() {
        let allowance = Allowance::new(10, 2);
        let kept = allowance.share(0, Some(3)).unwrap();
        kept.measure(tokio::io::sink()).write_all(b"123").await.unwrap();
        kept.keep();
        assert!(allowance.share(1, Some(6)).is_err(), "a file that is too large is not begun");
        let growing = allowance.share(0, None).unwrap();
        growing.measure(tokio::io::sink()).write_all(b"12345").await.unwrap();
        growing.check().unwrap();
        growing.measure(tokio::io::sink()).write_all(b"6").await.unwrap_err();
        growing.check().unwrap_err();
        drop(growing);
        allowance.share(0, Some(5)).unwrap();
        Allowance::new(0, u64::MAX / 2).share(1, Some(1 << 40)).unwrap();
    }
}
