//! One SSH channel as a byte stream that cannot hurt its neighbours.
//!
//! russh 0.65 hands all channels of a connection their data from one task and credits the window when data arrives, not
//! when it is read: a channel that nobody reads stops all the others. So every channel has a task of its own here that
//! takes its data off russh at once, keeps a bounded part of it, and gives the channel up when its reader stands still.
//! The stream also tells an orderly end from a lost connection, and never waits for a window that will not come.
//! Used by tunnels, by SFTP and as the wire of connections through jump hosts.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client::Msg};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Sleep, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Packets kept for the reader, besides russh's own 256.
const KEPT: usize = 64;
/// A reader that takes nothing for so long loses its channel.
const READER_STALL: Duration = Duration::from_secs(10);
/// A write that the box does not take for so long fails.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How long the box may take to close a channel after we are through with it, and how much it may still send.
const FAREWELL: Duration = Duration::from_secs(10);
const FAREWELL_BYTES: usize = 1 << 20;

/// A channel for reading and writing. Dropping it closes the channel in an orderly way, in the background.
pub(super) struct ChannelIo {
    /// The packets; an empty one is the box's end of file.
    incoming: mpsc::Receiver<Bytes>,
    /// What is left of the packet being read.
    rest: Bytes,
    ended: bool,
    outgoing: Pin<Box<dyn AsyncWrite + Send>>,
    stalled: Option<Pin<Box<Sleep>>>,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    state: Arc<State>,
    traffic: Traffic,
}

/// What a stream and its task tell each other.
#[derive(Debug, Default)]
struct State {
    /// We have said that we send no more.
    eof_sent: AtomicBool,
    /// The packets end because something is wrong, not because the box was through.
    broken: AtomicBool,
}

/// Counts the bytes of a channel in both directions, to tell slow from stuck.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic(Arc<AtomicU64>);

impl Traffic {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Resolves once nothing has moved for `limit`, up to twice that after the last byte.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let before = self.0.load(Ordering::Relaxed);
            sleep(limit).await;
            if self.0.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl ChannelIo {
    /// Takes over an open channel. `gone` is cancelled when its connection is.
    pub(super) fn new(channel: Channel<Msg>, gone: &CancellationToken) -> Self {
        let (read, write) = channel.split();
        let outgoing = Box::pin(write.make_writer());
        let (sender, incoming) = mpsc::channel(KEPT);
        let state = Arc::new(State::default());
        let traffic = Traffic::default();
        tokio::spawn(pump(read, write, sender, Arc::clone(&state), traffic.clone()));
        Self {
            incoming,
            rest: Bytes::new(),
            ended: false,
            outgoing,
            stalled: None,
            gone: Box::pin(gone.clone().cancelled_owned()),
            state,
            traffic,
        }
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Passes on what a write did, unless it hangs for too long or the connection is gone.
    fn guard<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if self.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(lost()));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the box takes no more data")))
    }
}

impl AsyncRead for ChannelIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() && !self.ended {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(packet) => {
                    self.ended = packet.is_empty();
                    self.rest = packet;
                }
                None if self.state.broken.load(Ordering::Acquire) => return Poll::Ready(Err(lost())),
                None => self.ended = true,
            }
        }
        let length = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ChannelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // russh takes an empty write for a mistake.
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = self.outgoing.as_mut().poll_write(cx, buf);
        if let Poll::Ready(Ok(length)) = written {
            self.traffic.add(length);
        }
        self.guard(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.eof_sent.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let done = self.outgoing.as_mut().poll_shutdown(cx);
        if done.is_ready() {
            self.state.eof_sent.store(true, Ordering::Release);
        }
        self.guard(cx, done)
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the SSH connection is gone")
}

/// Takes the packets of a channel off russh for as long as it lives, then sees to its end.
async fn pump(
    mut read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    reader: mpsc::Sender<Bytes>,
    state: Arc<State>,
    traffic: Traffic,
) {
    let mut ended = false;
    loop {
        let message = tokio::select! {
            message = read.wait() => message,
            () = reader.closed() => break,
        };
        let packet = match message {
            Some(ChannelMsg::Data { data }) if data.is_empty() => continue,
            Some(ChannelMsg::Data { data }) => data,
            Some(ChannelMsg::Eof) => Bytes::new(),
            Some(ChannelMsg::Close) => return,
            Some(_) => continue,
            None => {
                state.broken.store(!ended, Ordering::Release);
                return;
            }
        };
        ended = packet.is_empty();
        traffic.add(packet.len());
        match timeout(READER_STALL, reader.send(packet)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                tracing::warn!("closing an SSH channel whose data nobody took for {} s", READER_STALL.as_secs());
                state.broken.store(true, Ordering::Release);
                break;
            }
        }
    }
    drop(reader);
    close(read, write, &state).await;
}

/// Ends a channel that the box has not ended.
///
/// The box is asked to close it, because russh 0.65 keeps its half of a channel for ever when we close first
/// (client/encrypted.rs, CHANNEL_CLOSE). Only a box that does not do so soon is not waited for. All the while its packets
/// are taken or thrown away: russh takes no message of ours while it waits for somebody to take a packet.
async fn close(mut read: ChannelReadHalf, write: ChannelWriteHalf<Msg>, state: &State) {
    let politely = async {
        let answered = async {
            let mut left = FAREWELL_BYTES;
            loop {
                match read.wait().await? {
                    ChannelMsg::Close => return Some(()),
                    ChannelMsg::Data { data } => left = left.checked_sub(data.len())?,
                    _ => {}
                }
            }
        };
        tokio::pin!(answered);
        if !state.eof_sent.swap(true, Ordering::AcqRel) {
            tokio::select! {
                sent = write.eof() => sent.ok()?,
                closed = &mut answered => return closed,
            }
        }
        answered.await
    };
    if !matches!(timeout(FAREWELL, politely).await, Ok(Some(()))) {
        drop(read);
        let _ = timeout(FAREWELL, write.close()).await;
    }
}
