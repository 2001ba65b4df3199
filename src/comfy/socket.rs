//! The websocket of one client id, over any stream.
//!
//! ComfyUI never pings, so silence says nothing: this side does, and a connection that stays silent then is given
//! up. Nothing is decoded here beyond the greeting.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use super::{client::percent_encode, queue::id_of};
use crate::{json::parse_lenient, workflow::ClientId};

/// Deadline of the upgrade.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Deadline of ComfyUI's first message, and of ours.
const GREETING: Duration = Duration::from_secs(5);

/// Deadline of a proper goodbye.
const CLOSE: Duration = Duration::from_secs(1);

/// How long a connection may be silent before it is asked, and how long it has for the answer.
const PATIENCE: Patience = Patience { ping_every: Duration::from_secs(20), pong_within: Duration::from_secs(10) };

/// Longest message. Nodes report whole pictures in base64; beyond this, polling has to do.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// The library's own size would be most of what an idle socket costs.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// Most messages, and most bytes of them, that may come before the greeting.
const MAX_EARLY: usize = 256;
const MAX_EARLY_BYTES: usize = 4 << 20;

/// A frame with content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketMessage {
    /// JSON, as a rule.
    Text(Utf8Bytes),
    /// A preview or the like.
    Binary(Bytes),
}

impl SocketMessage {
    /// Bytes of its content.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it has no content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a websocket is of no use, or no longer.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The upgrade was answered with something else.
    #[error("what answers on /ws is not ComfyUI: {found}")]
    Refused {
        /// What was found, such as `HTTP 401`.
        found: String,
    },
    /// The upgrade or the greeting did not come in time.
    #[error("the websocket was not ready within {} s", .0.as_secs())]
    NotReady(Duration),
    /// The other side closed it.
    #[error("ComfyUI closed the websocket{}", code.map(|code| format!(" (code {code})")).unwrap_or_default())]
    Closed {
        /// The code of the close frame. 1008: our client id is protected and the key was missing.
        code: Option<u16>,
    },
    /// It went silent and did not answer a ping.
    #[error("the websocket does not answer any more")]
    Dead,
    /// A message is longer than 32 MiB.
    #[error("a message on the websocket is too long")]
    TooBig,
    /// The connection broke, or what came is no websocket.
    #[error("the websocket broke: {0}")]
    Broken(#[source] tungstenite::Error),
}

/// A connected websocket that was greeted.
#[derive(Debug)]
pub struct Socket {
    ws: WebSocketStream<Counted>,
    early: VecDeque<SocketMessage>,
    credential_key: Option<String>,
    heartbeat: Heartbeat,
}

#[derive(Debug, Clone, Copy)]
struct Patience {
    ping_every: Duration,
    pong_within: Duration,
}

#[derive(Debug)]
struct Heartbeat {
    patience: Patience,
    timer: Pin<Box<Sleep>>,
    /// A ping is out; how much had come by then.
    asked_at: Option<u64>,
    flushing: bool,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Counts what comes: a long message is a sign of life before it is complete.
struct Counted {
    stream: Box<dyn Stream>,
    received: u64,
}

impl Socket {
    /// Upgrades a fresh connection and waits for ComfyUI's greeting. The first message that the caller gets is the
    /// first that came.
    ///
    /// # Errors
    /// After 10 s without an upgrade or 5 s without a greeting, or when something else than ComfyUI answers.
    pub async fn connect<S>(stream: S, client: &ClientId) -> Result<Self, SocketError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::connect_again(stream, client, None).await
    }

    /// As [`connect`](Self::connect), for a client id that had a socket with this
    /// [`credential_key`](Self::credential_key).
    ///
    /// # Errors
    /// As for [`connect`](Self::connect); [`SocketError::Closed`] with code 1008 when the key is not taken.
    pub async fn connect_again<S>(
        stream: S,
        client: &ClientId,
        credential_key: Option<&str>,
    ) -> Result<Self, SocketError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let url = format!("ws://127.0.0.1/ws?clientId={}", percent_encode(client.as_str()));
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(1 << 20)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let upgrade = client_async_with_config(url, Counted { stream: Box::new(stream), received: 0 }, Some(config));
        let (ws, _) =
            tokio::time::timeout(HANDSHAKE, upgrade).await.map_err(|_| SocketError::NotReady(HANDSHAKE))??;
        let heartbeat = Heartbeat::new(PATIENCE);
        let mut socket = Self { ws, early: VecDeque::new(), credential_key: None, heartbeat };
        socket.greet(credential_key).await?;
        Ok(socket)
    }

    /// The next frame with content. Cancel-safe: a call that is dropped loses nothing.
    ///
    /// It must be called again and again, also to keep the connection alive: ComfyUI sends to one socket after the
    /// other and waits for each.
    ///
    /// # Errors
    /// Whatever ends the socket. After an error it is of no use.
    pub async fn next(&mut self) -> Result<SocketMessage, SocketError> {
        match self.early.pop_front() {
            Some(message) => Ok(message),
            None => std::future::poll_fn(|cx| self.poll_next(cx)).await,
        }
    }

    /// The key that a later socket of this client id must show, on servers that give one.
    pub fn credential_key(&self) -> Option<&str> {
        self.credential_key.as_deref()
    }

    /// Says goodbye, so that ComfyUI forgets the socket before another one with the same client id comes; a late
    /// goodbye would make that one deaf (server.py, websocket_handler, v0.3.64). Takes at most a second.
    pub async fn close(mut self) {
        let goodbye = async {
            if self.ws.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.ws.next().await {}
            }
        };
        if tokio::time::timeout(CLOSE, goodbye).await.is_err() {
            tracing::debug!("the websocket was closed without a goodbye");
        }
    }

    /// Our first message must come before any other of ours: ComfyUI looks for feature flags in the first one only,
    /// except behind the key for a protected client id, without which it says nothing at all.
    async fn greet(&mut self, credential_key: Option<&str>) -> Result<(), SocketError> {
        let deadline = Instant::now() + GREETING;
        if let Some(key) = credential_key {
            self.send(json!({"type": "credential_auth", "data": {"credential_key": key}}), deadline).await?;
        }
        let mut bytes = 0;
        loop {
            let next = std::future::poll_fn(|cx| self.poll_next(cx));
            let message = match tokio::time::timeout_at(deadline, next).await {
                Ok(message) => message?,
                Err(_) if self.early.iter().any(is_json_object) => break,
                Err(_) => return Err(SocketError::NotReady(GREETING)),
            };
            let status = status_of(&message);
            bytes += message.len();
            self.early.push_back(message);
            if let Some(status) = status {
                self.credential_key = status.get("credential_key").and_then(id_of);
                break;
            }
            if self.early.len() >= MAX_EARLY || bytes >= MAX_EARLY_BYTES {
                break;
            }
        }
        let flags = json!({"type": "feature_flags", "data": {"supports_preview_metadata": false}});
        self.send(flags, deadline.max(Instant::now() + CLOSE)).await
    }

    async fn send(&mut self, message: Value, deadline: Instant) -> Result<(), SocketError> {
        let sending = self.ws.send(Message::text(message.to_string()));
        tokio::time::timeout_at(deadline, sending).await.map_err(|_| SocketError::NotReady(GREETING))??;
        Ok(())
    }

    /// All state lies in `self`, so that a dropped call loses nothing.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketMessage, SocketError>> {
        loop {
            if let Poll::Ready(message) = self.ws.poll_next_unpin(cx) {
                match message.unwrap_or(Err(tungstenite::Error::ConnectionClosed))? {
                    Message::Text(text) => return Poll::Ready(Ok(SocketMessage::Text(text))),
                    Message::Binary(bytes) => return Poll::Ready(Ok(SocketMessage::Binary(bytes))),
                    Message::Close(frame) => return Poll::Ready(Err(SocketError::closed(frame.as_ref()))),
                    Message::Pong(_) => self.heartbeat.answered(),
                    Message::Ping(_) | Message::Frame(_) => {}
                }
            } else {
                ready!(self.heartbeat.poll(cx, &mut self.ws))?;
            }
        }
    }
}

impl Heartbeat {
    fn new(patience: Patience) -> Self {
        Self { patience, timer: Box::pin(sleep(patience.ping_every)), asked_at: None, flushing: false }
    }

    fn answered(&mut self) {
        self.asked_at = None;
        self.timer.as_mut().reset(Instant::now() + self.patience.ping_every);
    }

    /// Ready when it did something, and then to be polled again.
    fn poll(&mut self, cx: &mut Context<'_>, ws: &mut WebSocketStream<Counted>) -> Poll<Result<(), SocketError>> {
        let mut sink = Pin::new(&mut *ws);
        if self.flushing && sink.as_mut().poll_flush(cx)?.is_ready() {
            self.flushing = false;
        }
        ready!(self.timer.poll_unpin(cx));
        let received = sink.get_ref().received;
        match self.asked_at {
            Some(before) if received == before => return Poll::Ready(Err(SocketError::Dead)),
            // Something came, though not yet the answer: it stands in line behind a long message.
            Some(_) => {}
            None => {
                if sink.as_mut().poll_ready(cx)?.is_ready() {
                    sink.as_mut().start_send(Message::Ping(Bytes::new()))?;
                    self.flushing = true;
                }
            }
        }
        self.asked_at = Some(received);
        self.timer.as_mut().reset(Instant::now() + self.patience.pong_within);
        Poll::Ready(Ok(()))
    }
}

impl SocketError {
    fn closed(frame: Option<&CloseFrame>) -> Self {
        Self::Closed { code: frame.map(|frame| frame.code.into()) }
    }
}

impl From<tungstenite::Error> for SocketError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::closed(None),
            tungstenite::Error::Capacity(_) => Self::TooBig,
            tungstenite::Error::Http(answer) => Self::Refused { found: format!("HTTP {}", answer.status().as_u16()) },
            error => Self::Broken(error),
        }
    }
}

/// The `data` of a `status` message.
fn status_of(message: &SocketMessage) -> Option<Value> {
    let SocketMessage::Text(text) = message else { return None };
    let mut value = parse_lenient(text.as_bytes()).ok()?;
    let is_status = value.get("type").is_some_and(|kind| kind == "status");
    is_status.then(|| value.get_mut("data").map(Value::take).unwrap_or_default())
}

fn is_json_object(message: &SocketMessage) -> bool {
    matches!(message, SocketMessage::Text(text) if parse_lenient(text.as_bytes()).is_ok_and(|value| value.is_object()))
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("received", &self.received).finish_non_exhaustive()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.received += (buf.filled().len() - before) as u64;
        result
    }
}

impl AsyncWrite for Counted {
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

#[cfg(test)]
pub(super) mod tests;
