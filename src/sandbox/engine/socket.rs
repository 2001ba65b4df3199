//! The websockets: who is connected, what is sent to whom, and the life of one socket.
//!
//! Used by the worker and the queue through [`Hub`], and by the routes through [`serve`]. As in ComfyUI's `server.py`
//! the table is keyed by client id: a newer socket replaces an older one, which stays open and deaf, and messages for
//! an id without a socket are dropped. All sends happen under one lock, so everybody sees the same order.
//! A socket whose reader falls too far behind is closed rather than buffered for ever.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use indexmap::IndexMap;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::json::dumps;
use super::{Shared, Version};
use crate::sandbox::fault::Faults;

const MAX_QUEUED: usize = 8192;
const MAX_SOCKETS: usize = 256;
/// How long a message waits for another one to overtake it.
const OVERTAKING: Duration = Duration::from_millis(100);

/// Event number of a preview without metadata.
const PREVIEW: u32 = 1;
/// Event number of a preview with metadata, for clients that asked.
const PREVIEW_WITH_METADATA: u32 = 4;

/// The table of sockets.
#[derive(Default)]
pub(super) struct Hub {
    table: Mutex<Table>,
    faults: Faults,
}

#[derive(Default)]
struct Table {
    sockets: IndexMap<String, Socket>,
    next_connection: u64,
    /// Whose prompt runs or ran last.
    client: Option<String>,
    /// The node announced last, while a prompt runs.
    last_node: Option<String>,
}

struct Socket {
    connection: u64,
    queue: mpsc::Sender<Message>,
    wants_metadata: bool,
}

/// A picture on its way to a preview frame.
pub(super) struct Preview {
    /// 1 for JPEG, 2 for PNG.
    pub(super) format: u32,
    pub(super) bytes: Vec<u8>,
}

impl Preview {
    fn mime(&self) -> &'static str {
        if self.format == 1 { "image/jpeg" } else { "image/png" }
    }
}

impl Hub {
    pub(super) fn new(faults: Faults) -> Self {
        Self { table: Mutex::default(), faults }
    }

    /// To every socket.
    pub(super) fn broadcast(&self, kind: &str, data: &Value) {
        self.send(kind, data, None);
    }

    /// To the socket of `client`, or to everybody if there is none.
    pub(super) fn send(&self, kind: &str, data: &Value, client: Option<&str>) {
        let text = Utf8Bytes::from(dumps(&json!({"type": kind, "data": data})));
        self.lock().deliver(&Message::Text(text), client, &self.faults);
    }

    /// Makes `client` the one whose prompt runs.
    pub(super) fn begin_prompt(&self, client: Option<String>) {
        let mut table = self.lock();
        table.client = client;
        table.last_node = None;
    }

    /// Remembers what a socket that connects now should be told.
    pub(super) fn set_last_node(&self, node: Option<&str>) {
        self.lock().last_node = node.map(str::to_owned);
    }

    /// Whether previews for `client` carry metadata.
    pub(super) fn wants_metadata(&self, client: Option<&str>) -> bool {
        let table = self.lock();
        client.and_then(|id| table.sockets.get(id)).is_some_and(|socket| socket.wants_metadata)
    }

    pub(super) fn send_preview(&self, preview: &Preview, client: Option<&str>) {
        let mut frame = BytesMut::with_capacity(preview.bytes.len() + 8);
        frame.put_u32(PREVIEW);
        frame.put_u32(preview.format);
        frame.put_slice(&preview.bytes);
        self.lock().deliver(&Message::Binary(frame.freeze()), client, &self.faults);
    }

    pub(super) fn send_preview_with_metadata(&self, preview: &Preview, mut metadata: Value, client: Option<&str>) {
        if let Some(map) = metadata.as_object_mut() {
            map.insert("image_type".into(), preview.mime().into());
        }
        let metadata = dumps(&metadata);
        let mut frame = BytesMut::with_capacity(preview.bytes.len() + metadata.len() + 8);
        frame.put_u32(PREVIEW_WITH_METADATA);
        frame.put_u32(u32::try_from(metadata.len()).unwrap_or(u32::MAX));
        frame.put_slice(metadata.as_bytes());
        frame.put_slice(&preview.bytes);
        self.lock().deliver(&Message::Binary(frame.freeze()), client, &self.faults);
    }

    /// How many ids have a socket that hears something.
    pub(super) fn len(&self) -> usize {
        self.lock().sockets.len()
    }

    /// What the end of the process does.
    pub(super) fn forget(&self) {
        *self.lock() = Table::default();
    }

    /// Enters a socket into the table and greets it, in one step, so that nothing comes before the greeting.
    pub(super) fn attach(&self, sid: &str, remaining: usize) -> Option<(u64, mpsc::Receiver<Message>)> {
        let (queue, inbox) = mpsc::channel(MAX_QUEUED);
        let mut table = self.lock();
        if table.sockets.len() >= MAX_SOCKETS {
            return None;
        }
        let connection = table.next_connection;
        table.next_connection += 1;
        table.sockets.shift_remove(sid);
        table.sockets.insert(sid.to_owned(), Socket { connection, queue, wants_metadata: false });
        let status = json!({"status": {"exec_info": {"queue_remaining": remaining}}, "sid": sid});
        table.tell(sid, "status", &status, &self.faults);
        if table.client.as_deref() == Some(sid)
            && let Some(node) = table.last_node.clone()
        {
            table.tell(sid, "executing", &json!({"node": node}), &self.faults);
        }
        Some((connection, inbox))
    }

    /// Takes a closed socket out. Before the fix of 2026 the entry goes by id, also if a newer socket owns it by now.
    fn detach(&self, sid: &str, connection: u64, version: Version) {
        let mut table = self.lock();
        let newer = table.sockets.get(sid).is_some_and(|socket| socket.connection != connection);
        if !(newer && version.keeps_newer_socket()) {
            table.sockets.shift_remove(sid);
        }
    }

    /// The first message of a client may be its feature flags; the answer goes to whoever owns the id.
    fn negotiate(&self, sid: &str, flags: &Value, answer: &Value) {
        let mut table = self.lock();
        if let Some(socket) = table.sockets.get_mut(sid) {
            let flag = flags.get("supports_preview_metadata");
            socket.wants_metadata = flag.and_then(Value::as_bool).unwrap_or(false);
        }
        table.tell(sid, "feature_flags", answer, &self.faults);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn tell(&mut self, sid: &str, kind: &str, data: &Value, faults: &Faults) {
        let text = dumps(&json!({"type": kind, "data": data}));
        self.deliver(&Message::Text(text.into()), Some(sid), faults);
    }

    fn deliver(&mut self, message: &Message, client: Option<&str>, faults: &Faults) {
        if faults.is_deaf() {
            return;
        }
        let noise = if faults.is_noisy() { noise() } else { vec![] };
        let copies = if faults.duplicates() { 2 } else { 1 };
        let addressed = |sid: &String| client.is_none_or(|client| client == sid);
        self.sockets.retain(|sid, socket| {
            !addressed(sid)
                || noise
                    .iter()
                    .chain(std::iter::repeat_n(message, copies))
                    .all(|message| socket.queue.try_send(message.clone()).is_ok())
        });
    }
}

/// What custom nodes of all kinds send in between.
fn noise() -> Vec<Message> {
    let text = |text: &'static str| Message::Text(Utf8Bytes::from_static(text));
    let binary = |bytes: &'static [u8]| Message::Binary(Bytes::from_static(bytes));
    vec![
        text(r#"{"type": "crystools.monitor", "data": {"cpu_utilization": NaN, "gpus": [{"vram_used": 1e400}]}}"#),
        text(r#"{"type": "logs", "data": {"entries": [], "size": null}}"#),
        text(r#"{"type": "executing", "data": null}"#),
        text(r#"["not", "an", "envelope"]"#),
        text("not even JSON"),
        binary(&[0, 0, 0, 99, 1, 2, 3]),
        binary(&[0, 0]),
        binary(&[0, 0, 0, 1]),
        binary(&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff, b'{']),
    ]
}

/// Serves one socket until either side ends it.
pub(super) async fn serve(shared: &Shared, mut socket: WebSocket, sid: String, life: CancellationToken) {
    let cut = shared.faults.sockets_cut();
    let attached = shared.queue.with_remaining(|remaining| shared.hub.attach(&sid, remaining));
    let Some((connection, inbox)) = attached else { return };
    tokio::select! {
        () = converse(shared, &mut socket, &sid, inbox) => {}
        // Without a close frame, as a killed process leaves its sockets.
        () = life.cancelled() => {}
        () = cut.cancelled() => {}
    }
    shared.hub.detach(&sid, connection, shared.version);
}

async fn converse(shared: &Shared, socket: &mut WebSocket, sid: &str, mut inbox: mpsc::Receiver<Message>) {
    let mut first = true;
    let mut replaced = false;
    let mut overtaken = None;
    loop {
        shared.faults.thawed().await;
        tokio::select! {
            // What was sent goes out before a ping that came later is answered.
            biased;
            message = next(&shared.faults, &mut inbox, &mut overtaken), if !replaced => match message {
                Some(message) => {
                    if let Some(delay) = shared.faults.message_delay() {
                        sleep(delay).await;
                    }
                    shared.faults.thawed().await;
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                // A newer socket took the id: stay open, say nothing more.
                None => replaced = true,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    hear(shared, sid, &text, first);
                    first = false;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                // Pings are answered by the library.
                Some(Ok(_)) => {}
            },
        }
    }
}

/// The next message to be sent. Where messages overtake each other, one waits in `overtaken`. Cancel-safe.
async fn next(
    faults: &Faults,
    inbox: &mut mpsc::Receiver<Message>,
    overtaken: &mut Option<Message>,
) -> Option<Message> {
    if let Some(message) = overtaken.take() {
        return Some(message);
    }
    let first = inbox.recv().await?;
    if !faults.reorders() {
        return Some(first);
    }
    *overtaken = Some(first);
    match timeout(OVERTAKING, inbox.recv()).await {
        Ok(Some(second)) => Some(second),
        _ => overtaken.take(),
    }
}

fn hear(shared: &Shared, sid: &str, text: &str, first: bool) {
    if !first || !shared.version.has_progress_state() {
        return;
    }
    let Ok(message) = serde_json::from_str::<Value>(text) else { return };
    if message.get("type").and_then(Value::as_str) == Some("feature_flags") {
        let flags = message.get("data").unwrap_or(&Value::Null);
        shared.hub.negotiate(sid, flags, &shared.features());
    }
}
