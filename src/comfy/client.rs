//! The HTTP client of one ComfyUI. Redirects are never followed, proxies of the environment never used, and no
//! `Origin` is sent (ComfyUI answers a foreign one with 403; server.py, origin_only_middleware, v0.3.64).
//!
//! A read is repeated when the connection fails; what changes something is sent once. The calls themselves are in
//! the files named after them.

use std::{
    fmt::Write as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, RequestBuilder, Response, redirect};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    answer::Answer,
    error::ComfyError,
    history::{self, HistoryEntry},
    queue::Queue,
    room::{Claim, Room},
};
use crate::workflow::{PromptId, WorkflowId};

/// How long ComfyUI may take to begin its answer to a small call, and to go on with it.
pub(super) const SMALL: Duration = Duration::from_secs(10);

/// The same of a call for which it looks through folders; and the deadline of every call, retries included. Whole answers
/// may take that long on a slow line: queue and history carry graphs.
pub(super) const LARGE: Duration = Duration::from_secs(60);

/// How long a call may wait, all in all, until there is room for its large answer.
const ROOM: Duration = Duration::from_secs(120);

/// Longest JSON body that is taken into memory.
pub(super) const MAX_JSON_BYTES: u64 = 64 << 20;

/// Pauses before a read is repeated; their number is the number of repetitions.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// An idle connection is not used again after this: a tunnel may have lost it silently.
const IDLE: Duration = Duration::from_secs(20);

/// How many finished runs are searched for one that goes by another id.
const RECENT: usize = 20;

/// Such a search reads megabytes on a busy server, so it is made at most this often.
const SEARCH_EVERY: Duration = Duration::from_secs(2);

/// Talks to one ComfyUI. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
    ids: Arc<Ids>,
    room: Room,
}

/// What is known about the server's treatment of the ids we choose.
#[derive(Debug, Default)]
struct Ids {
    /// It has kept one: runs go by our ids, and none needs to be searched for.
    kept: AtomicBool,
    searched: Mutex<Option<Instant>>,
}

impl Client {
    /// A client that speaks over the unix socket at `path`, which leads to the box of this name. Nothing is said yet.
    pub fn over_socket(path: &Path, name: &str) -> Self {
        Self::build(reqwest::Client::builder().unix_socket(path), "http://127.0.0.1", name)
    }

    /// A client for an address such as `http://127.0.0.1:8188`.
    pub fn at(base: &str) -> Self {
        Self::build(reqwest::Client::builder(), base, base)
    }

    /// What runs and what waits.
    ///
    /// # Errors
    /// As for every read: no answer, no ComfyUI, an error status, a body beyond 64 MiB.
    pub async fn queue(&self) -> Result<Queue, ComfyError> {
        let answer = self.get("GET /queue", "/queue", SMALL).await?;
        answer.read_as(Queue::parse).await
    }

    /// The history entry of a prompt; `None` while there is none: not over yet, never accepted, or forgotten.
    ///
    /// # Errors
    /// As for every read.
    pub async fn history(&self, prompt: &PromptId) -> Result<Option<HistoryEntry>, ComfyError> {
        let path = format!("/history/{}", percent_encode(prompt.as_str()));
        let answer = self.get("GET /history", &path, LARGE).await?;
        let entries = answer.read_as(history::parse).await?;
        Ok(entries.into_iter().find(|entry| entry.prompt_id == *prompt))
    }

    /// The newest `count` history entries, oldest first. Each travels with its graph: this can be tens of megabytes.
    ///
    /// # Errors
    /// As for every read.
    pub async fn recent_history(&self, count: usize) -> Result<Vec<HistoryEntry>, ComfyError> {
        let answer = self.get("GET /history", &format!("/history?max_items={count}"), LARGE).await?;
        answer.read_as(history::parse).await
    }

    /// The history entry of a prompt and the id by which the server knows it, also on servers that give their own
    /// ids (before v0.3.45): there it is recognised by the mark that [`submit`](Self::submit) left.
    ///
    /// The search by mark covers the newest entries only, and is left out when one was made within two seconds: to be
    /// sure of an absence, ask again later.
    ///
    /// # Errors
    /// As for every read.
    pub async fn find_in_history(
        &self,
        prompt: &PromptId,
        workflow: &WorkflowId,
    ) -> Result<Option<(PromptId, HistoryEntry)>, ComfyError> {
        if let Some(entry) = self.history(prompt).await? {
            return Ok(Some((entry.prompt_id.clone(), entry)));
        }
        if !self.ids.may_search() {
            return Ok(None);
        }
        match self.recent_history(RECENT).await {
            Ok(entries) => {
                let found = entries.into_iter().find(|entry| entry.belongs_to(prompt, workflow));
                Ok(found.map(|entry| (entry.prompt_id.clone(), entry)))
            }
            Err(error @ ComfyError::TooBig { .. }) => {
                tracing::debug!(prompt.id = %prompt, %error, "history is too big to be searched");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Remembers whether the server kept an id that we chose.
    pub(super) fn note_id(&self, kept: bool) {
        self.ids.kept.store(kept, Ordering::Relaxed);
    }

    /// A read of a whole body. The path is ready to be sent. One whose large answer finds no room is made again when there
    /// is some.
    pub(super) async fn get(&self, what: &'static str, path: &str, idle: Duration) -> Result<Answer, ComfyError> {
        let until = Instant::now() + ROOM;
        let mut turn = None;
        loop {
            let claim = Claim { room: &self.room, turn: turn.as_ref() };
            let attempt = || self.exchange(what, self.request(Method::GET, path), MAX_JSON_BYTES, idle, Some(claim));
            let (bytes, crowded) = match within(what, LARGE, repeated(attempt)).await {
                Err(crowded @ ComfyError::Crowded { bytes, .. }) => (bytes, crowded),
                result => return result,
            };
            // Not while one's own is in the way.
            drop(turn);
            turn = Some(timeout_at(until, self.room.turn(bytes)).await.map_err(|_| crowded)?);
        }
    }

    /// A JSON document, sent once. Its answer needs no room up to its limit: one that had to wait for room would lie in the
    /// tunnel, and can't be asked for again.
    pub(super) async fn post(
        &self,
        what: &'static str,
        path: &str,
        body: &impl Serialize,
        limit: u64,
        idle: Duration,
    ) -> Result<Answer, ComfyError> {
        let request = self.request(Method::POST, path).json(body);
        within(what, LARGE, self.exchange(what, request, limit, idle, None)).await
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    async fn exchange(
        &self,
        what: &'static str,
        request: RequestBuilder,
        limit: u64,
        idle: Duration,
        claim: Option<Claim<'_>>,
    ) -> Result<Answer, ComfyError> {
        let sent = async { request.send().await.map_err(|error| ComfyError::from_reqwest(what, error)) };
        Answer::read(what, within(what, idle, sent).await?, limit, idle, claim).await
    }

    /// A small answer with its body, up to `limit` bytes.
    pub(super) async fn read_whole(
        &self,
        what: &'static str,
        response: Response,
        limit: u64,
    ) -> Result<Answer, ComfyError> {
        Answer::read(what, response, limit, LARGE, None).await
    }

    #[expect(clippy::expect_used, reason = "without TLS and without own resolver settings nothing in it can fail")]
    fn build(builder: reqwest::ClientBuilder, base: &str, name: &str) -> Self {
        let http = builder
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_idle_timeout(IDLE)
            .build()
            .expect("a plain HTTP client is always buildable");
        Self { http, base: base.trim_end_matches('/').into(), ids: Arc::default(), room: Room::of(name) }
    }
}

impl Ids {
    fn may_search(&self) -> bool {
        if self.kept.load(Ordering::Relaxed) {
            return false;
        }
        let mut searched = self.searched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = searched.is_none_or(|at| at.elapsed() >= SEARCH_EVERY);
        if is_due {
            *searched = Some(Instant::now());
        }
        is_due
    }
}

/// Takes an attempt again when the connection failed.
pub(super) async fn repeated<T, F>(attempt: impl Fn() -> F) -> Result<T, ComfyError>
where
    F: Future<Output = Result<T, ComfyError>>,
{
    let mut pauses = BACK_OFF.iter();
    loop {
        match (attempt().await, pauses.next()) {
            (Err(error @ ComfyError::Unreachable { .. }), Some(pause)) => {
                tracing::debug!(%error, "reading again");
                tokio::time::sleep(*pause).await;
            }
            (result, _) => return result,
        }
    }
}

/// The result of a call, or that it took too long.
pub(super) async fn within<T>(
    what: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<T, ComfyError>>,
) -> Result<T, ComfyError> {
    tokio::time::timeout(deadline, call).await.unwrap_or(Err(ComfyError::Timeout { what, after: deadline }))
}

/// A field of an object as text; a number counts as its digits.
pub(super) fn text_of(value: &Value, key: &str) -> Option<String> {
    match value.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Text as one path segment or query value: UTF-8, everything but unreserved characters escaped.
pub(super) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            // Writing to a string can't fail.
            byte => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_escaped_as_utf8() {
        assert_eq!(percent_encode("ünï/a b%c&d+.png"), "%C3%BCn%C3%AF%2Fa%20b%25c%26d%2B.png");
    }
}
