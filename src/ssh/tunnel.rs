//! A port on the box's loopback, reachable from here and by nobody else.
//!
//! HTTP clients connect to a unix socket in a private folder, because a forward that listens on a loopback TCP port would
//! be open to every user and program of this machine. Each connection becomes a channel of the shared SSH connection, and
//! is closed if there is nobody at the other end. Websockets use [`Tunnel::open`], which gives the channel itself.
//! The tunnel ends with its last clone, and with it everything that runs through it but the streams of `open`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_buf, split},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Session, SshError,
    channel::ChannelIo,
    connection::OpenError,
    socket_folder::{self, SocketFolder},
};

/// Names of the loopback on the box, in the order they are tried: some programs listen on `::1` only.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "localhost"];
/// More connections than any HTTP client of ours opens; the others wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;
/// How long the box may take to finish after our side has closed its connection.
const LINGER: Duration = Duration::from_secs(10);

/// A forwarded port. Clones are the same tunnel; the last one to go closes it.
#[derive(Clone)]
pub struct Tunnel {
    inner: Arc<Inner>,
}

struct Inner {
    gate: Arc<Gate>,
    socket: PathBuf,
    /// Removed, with the socket in it, when the tunnel ends.
    _folder: SocketFolder,
    _stop: DropGuard,
}

/// The way to the port.
struct Gate {
    session: Session,
    port: u16,
    /// Which of the loopback's names worked last.
    name: AtomicUsize,
}

impl Tunnel {
    /// Opens a tunnel after one probe of what the box allows.
    pub(super) async fn open_to(session: Session, port: u16) -> Result<Self, SshError> {
        let gate = Arc::new(Gate { session, port, name: AtomicUsize::new(0) });
        match gate.open().await {
            Ok(_) | Err(SshError::PortClosed { .. }) => {}
            Err(error) => return Err(error),
        }
        let local = |source| SshError::Local {
            what: "could not make a private socket for the tunnel".to_owned(),
            source: Arc::new(source),
        };
        let folder = socket_folder::create().map_err(local)?;
        let socket = folder.socket();
        let listener = UnixListener::bind(&socket).map_err(local)?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(listener, Arc::clone(&gate), stop.clone())));
        Ok(Self { inner: Arc::new(Inner { gate, socket, _folder: folder, _stop: stop.drop_guard() }) })
    }

    /// The unix socket that leads to the port. It exists as long as the tunnel; only this user can reach it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.inner.socket
    }

    /// The port on the box.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.gate.port
    }

    /// One connection to the port. Cancel-safe.
    ///
    /// # Errors
    /// [`SshError::PortClosed`] if nothing listens there now, [`SshError::ConnectionLost`] or [`SshError::TimedOut`] if the
    /// box does not answer.
    pub async fn open(&self) -> Result<TunnelStream, SshError> {
        let stream = self.inner.gate.open().await?;
        Ok(TunnelStream { stream, _session: self.inner.gate.session.clone() })
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("port", &self.port()).field("socket", &self.socket()).finish()
    }
}

impl Gate {
    async fn open(&self) -> Result<ChannelIo, SshError> {
        let connection = self.session.control();
        let first = self.name.load(Ordering::Relaxed);
        for name in [first, 1 - first] {
            match connection.direct_tcpip(LOOPBACK[name], self.port).await {
                Ok(channel) => {
                    self.name.store(name, Ordering::Relaxed);
                    return Ok(channel);
                }
                Err(OpenError::NobodyThere | OpenError::Denied) => {}
                Err(OpenError::Prohibited) => {
                    return Err(SshError::ForwardingRefused { address: connection.address.clone() });
                }
                Err(OpenError::Failed(error)) => return Err(error),
            }
        }
        Err(SshError::PortClosed { address: connection.address.clone(), port: self.port })
    }
}

async fn serve(listener: UnixListener, gate: Arc<Gate>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((local, _)) => {
                let gate = Arc::clone(&gate);
                tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                    bridge(local, &gate).await;
                    drop(permit);
                }));
            }
            Err(error) => {
                // Too many open files, most likely: others will be closed.
                tracing::warn!("a connection to the tunnel could not be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Joins one local connection with a channel, until one of them ends.
async fn bridge(local: UnixStream, gate: &Gate) {
    let remote = match gate.open().await {
        Ok(remote) => remote,
        Err(error) => {
            tracing::debug!("closing a connection to the tunnel: {error}");
            return;
        }
    };
    let (mut local_read, mut local_write) = local.into_split();
    let (mut remote_read, mut remote_write) = split(remote);
    let up = async {
        let _ = relay(&mut local_read, &mut remote_write).await;
        let _ = remote_write.shutdown().await;
    };
    let down = async {
        let _ = relay(&mut remote_read, &mut local_write).await;
        let _ = local_write.shutdown().await;
    };
    tokio::pin!(down);
    // HTTP clients close a connection only when they are through with it, so what still comes then has little time.
    tokio::select! {
        () = &mut down => {}
        () = up => {
            let _ = timeout(LINGER, down).await;
        }
    }
}

async fn relay(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<u64> {
    copy_buf(&mut tokio::io::BufReader::with_capacity(64 * 1024, from), &mut to).await
}

/// One connection to the port of a tunnel. Keeps the SSH connection open, also without the tunnel.
pub struct TunnelStream {
    stream: ChannelIo,
    _session: Session,
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").finish_non_exhaustive()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
