//! What an SSH connection runs on: a TCP stream or a channel of another SSH connection, either with a switch that cuts it.
//!
//! The switch is needed because russh's task, once started, ends only with its stream: a peer that stalls in the handshake
//! would otherwise hold a task and a socket for as long as it likes.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{SshError, Unreachable, channel::ChannelIo, quickack::QuickAck, route::Endpoint};

/// A byte stream that ends with an error as soon as its switch is thrown.
pub(super) struct Wire {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

enum Stream {
    Tcp(QuickAck),
    Channel(ChannelIo),
}

impl Wire {
    pub(super) fn through(channel: ChannelIo, cut: &CancellationToken) -> Self {
        Self { stream: Stream::Channel(channel), cut: Box::pin(cut.clone().cancelled_owned()) }
    }

    /// Connects by TCP, trying all addresses of the host in turn, each with a fair share of what is left of the time.
    pub(super) async fn dial(
        endpoint: &Endpoint,
        deadline: Instant,
        cut: &CancellationToken,
    ) -> Result<Self, SshError> {
        let stream = connect(endpoint, deadline).await?;
        configure(&stream, endpoint);
        Ok(Self { stream: Stream::Tcp(QuickAck(stream)), cut: Box::pin(cut.clone().cancelled_owned()) })
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

async fn connect(endpoint: &Endpoint, deadline: Instant) -> Result<TcpStream, SshError> {
    let address = endpoint.address();
    let fail = |cause, source: Option<io::Error>| SshError::Unreachable {
        address: address.clone(),
        cause,
        source: source.map(Arc::new),
    };
    let timed_out = || fail(Unreachable::TimedOut { after: endpoint.connect_timeout }, None);
    let found = timeout_at(deadline, lookup_host((endpoint.host.as_str(), endpoint.port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(fail(Unreachable::UnknownHost, Some(error))),
        Err(_) => return Err(timed_out()),
    };
    let mut failure = None;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => failure = Some(timed_out()),
            Ok(Err(error)) => failure = Some(fail(cause(&error), Some(error))),
            Err(_) => failure = Some(timed_out()),
        }
    }
    Err(failure.unwrap_or_else(|| fail(Unreachable::UnknownHost, None)))
}

fn cause(error: &io::Error) -> Unreachable {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Unreachable::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Unreachable::NoRoute,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Unreachable::Dropped,
        _ => Unreachable::Other,
    }
}

/// Settings that make the connection quicker, or its death visible. It works without them too.
fn configure(stream: &TcpStream, endpoint: &Endpoint) {
    let _ = stream.set_nodelay(true);
    // While a write hangs, russh's keepalives cannot run; then the kernel has to find out that nobody is there.
    #[cfg(target_os = "linux")]
    {
        let patience = endpoint.keepalive * endpoint.keepalive_max.saturating_add(1).min(1000);
        let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(patience));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = endpoint;
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Channel(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Channel(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Channel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A cut wire is not waited for.
        if self.poll_cut(cx).is_err() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Channel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
