//! A TCP stream that acknowledges small packets at once.
//!
//! sshd leaves Nagle's algorithm on for connections without a terminal, so it holds a small packet back until we have
//! acknowledged the one before; with our kernel's delayed acknowledgement, every second websocket message came a message
//! period (or 40 ms) late. Linux forgets the setting by itself, so it is renewed after each small read. On other systems
//! this is a plain stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Larger reads belong to bulk data, where delayed acknowledgement is right.
#[cfg(target_os = "linux")]
const SMALL: usize = 4096;

#[derive(Debug)]
pub(super) struct QuickAck(pub(super) TcpStream);

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        #[cfg(target_os = "linux")]
        let before = buf.filled().len();
        let result = Pin::new(&mut self.0).poll_read(cx, buf);
        #[cfg(target_os = "linux")]
        if result.is_ready() && (1..=SMALL).contains(&(buf.filled().len() - before)) {
            // Only a matter of speed, so a failure does not matter.
            let _ = socket2::SockRef::from(&self.0).set_tcp_quickack(true);
        }
        result
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
