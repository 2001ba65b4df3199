//! One HTTP answer, read whole within a cap, and the question who gave it: ComfyUI or something in front of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{Response, StatusCode, header};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    client::{LARGE, within},
    error::ComfyError,
    room::{Claim, Taken},
};
use crate::{json::parse_lenient, text::clip};

/// How much of a body is looked at for an excerpt.
const EXCERPT_BYTES: usize = 1600;

/// A body up to this size is nothing to be careful about.
pub(super) const SMALL_BYTES: u64 = 1 << 20;

/// A proxy of rented boxes sets this on the page it shows while ComfyUI starts, also with status 200.
const PLACEHOLDER_HEADER: &str = "x-portal-placeholder";

/// Who holds room for a large body is not hurried before this.
const HURRY_AFTER: Duration = Duration::from_secs(5);

/// The least that must come per second of a body whose length was not announced.
const LEAST_PER_SECOND: u64 = 256 << 10;

/// How fast a body must come that holds room others may wait for: so that it is whole within the deadline of its call,
/// counted from the moment at which it got its room.
#[derive(Debug)]
struct Pace {
    since: Instant,
    before: usize,
    per_second: u64,
}

impl Pace {
    fn begin(before: usize, announced: Option<u64>) -> Self {
        let per_second = announced.map_or(LEAST_PER_SECOND, |length| length / LARGE.as_secs());
        Self { since: Instant::now(), before, per_second }
    }

    /// When so much that has come will be too little; never sooner than [`HURRY_AFTER`].
    fn patience(&self, received: usize) -> Instant {
        let came = received.saturating_sub(self.before) as u64;
        let seconds = came.checked_div(self.per_second).unwrap_or(u64::MAX);
        self.since + Duration::from_secs(seconds).clamp(HURRY_AFTER, LARGE)
    }
}

/// The next piece of a body of which so much has come, if that keeps the pace.
async fn keeping<T>(
    pace: Option<&Pace>,
    what: &'static str,
    received: usize,
    next: impl Future<Output = Result<T, ComfyError>>,
) -> Result<T, ComfyError> {
    let Some(pace) = pace else { return next.await };
    let too_slow = |_| ComfyError::TooSlow { what, received, after: pace.since.elapsed() };
    timeout_at(pace.patience(received), next).await.map_err(too_slow)?
}

/// An answer with its body in memory. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) what: &'static str,
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    content_type: String,
    location: String,
    is_placeholder: bool,
    /// The room that a large body has.
    room: Option<Arc<Taken>>,
}

impl Answer {
    /// Reads the body, up to `limit` bytes, as long as it goes on within `idle`. With a claim, [`ComfyError::Crowded`] when
    /// it is large and does not come to its room; of an error only so much is read that it needs none.
    pub(super) async fn read(
        what: &'static str,
        mut response: Response,
        limit: u64,
        idle: Duration,
        claim: Option<Claim<'_>>,
    ) -> Result<Self, ComfyError> {
        let mut answer = Self::head(what, &response);
        let is_error = !answer.status.is_success();
        let limit = if is_error && claim.is_some() { limit.min(SMALL_BYTES) } else { limit };
        let announced = response.content_length();
        if !is_error && announced.is_some_and(|length| length > limit) {
            return Err(ComfyError::TooBig { what, limit });
        }
        let mut body = Vec::new();
        let mut pace = None;
        loop {
            let next = async { response.chunk().await.map_err(|error| ComfyError::from_reqwest(what, error)) };
            let next = within(what, idle, keeping(pace.as_ref(), what, body.len(), next));
            let Some(chunk) = next.await? else { break };
            let left = limit.saturating_sub(body.len() as u64);
            if chunk.len() as u64 > left {
                if is_error {
                    body.extend(chunk.iter().take(usize::try_from(left).unwrap_or(usize::MAX)));
                    break;
                }
                return Err(ComfyError::TooBig { what, limit });
            }
            if let Some(claim) = claim.filter(|_| answer.room.is_none())
                && (body.len() + chunk.len()) as u64 > SMALL_BYTES
            {
                let bytes = announced.unwrap_or(limit);
                let taken = claim.take(bytes).ok_or(ComfyError::Crowded { what, bytes })?;
                answer.room = Some(taken.into());
                pace = Some(Pace::begin(body.len(), announced));
            }
            body.extend_from_slice(&chunk);
        }
        answer.body = body.into();
        Ok(answer)
    }

    /// Status and headers only.
    pub(super) fn head(what: &'static str, response: &Response) -> Self {
        let text = |name| {
            let value = response.headers().get(name).map(header::HeaderValue::as_bytes).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned()
        };
        Self {
            what,
            status: response.status(),
            body: Bytes::new(),
            content_type: text(header::CONTENT_TYPE).to_ascii_lowercase(),
            location: text(header::LOCATION),
            is_placeholder: response.headers().contains_key(PLACEHOLDER_HEADER),
            room: None,
        }
    }

    /// The JSON of a successful answer.
    pub(super) async fn json(&self) -> Result<Value, ComfyError> {
        self.read_as(|body| parse_lenient(body).map_err(|error| error.to_string())).await
    }

    /// What `read` makes of the body of a successful answer; if that is large, on a thread where it holds up nobody.
    pub(super) async fn read_as<T: Send + 'static>(
        &self,
        read: fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, ComfyError> {
        self.success()?;
        self.make_of_body(read).await.map_err(|problem| self.malformed(problem))
    }

    /// The same of any answer.
    pub(super) async fn make_of_body<T: Send + 'static>(
        &self,
        read: fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, String> {
        if !self.is_large() {
            return read(&self.body);
        }
        let answer = self.clone();
        let made = tokio::task::spawn_blocking(move || read(&answer.body)).await;
        made.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn is_large(&self) -> bool {
        self.body.len() as u64 > SMALL_BYTES
    }

    /// That the answer is a success and ComfyUI's.
    pub(super) fn success(&self) -> Result<(), ComfyError> {
        if self.is_foreign() {
            return Err(self.foreign());
        }
        if self.status.is_success() { Ok(()) } else { Err(self.failed()) }
    }

    /// Whether somebody else than ComfyUI gave it, as far as status and form tell. ComfyUI has no login, never
    /// redirects these calls and never answers them with a page.
    pub(super) fn is_foreign(&self) -> bool {
        self.status.is_redirection()
            || matches!(self.status.as_u16(), 401 | 403 | 407 | 502..=504 | 520..=530)
            || self.is_html()
    }

    /// The error of an answer that somebody else gave.
    pub(super) fn foreign(&self) -> ComfyError {
        let may_pass = self.is_placeholder || matches!(self.status.as_u16(), 502..=504 | 520..=530);
        ComfyError::Foreign { found: self.describe(), may_pass }
    }

    /// The error of an answer with an error status.
    pub(super) fn failed(&self) -> ComfyError {
        ComfyError::Status { what: self.what, status: self.status.as_u16(), excerpt: self.excerpt() }
    }

    /// The error of an answer of the wrong shape.
    pub(super) fn malformed(&self, problem: impl Into<String>) -> ComfyError {
        ComfyError::Malformed { what: self.what, problem: clip(&problem.into()) }
    }

    /// What this is, for people: `an HTML page titled "Login" (HTTP 200)`.
    pub(super) fn describe(&self) -> String {
        let status = self.status.as_u16();
        if self.status.is_redirection() {
            // The query is left out: it can carry a token.
            let target = self.location.split(['?', '#']).next().unwrap_or_default();
            return match target {
                "" => format!("HTTP {status}"),
                target => format!("a redirect to {}", clip(target)),
            };
        }
        if status == 401 || status == 407 {
            return format!("HTTP {status} asking for a login");
        }
        if self.is_html() {
            let title = self.title().map(|title| format!(" titled \"{title}\"")).unwrap_or_default();
            return match self.status.is_success() {
                true => format!("an HTML page{title} (HTTP {status})"),
                false => format!("HTTP {status} with an HTML page{title}"),
            };
        }
        if !self.status.is_success() {
            let excerpt = self.excerpt();
            return if excerpt.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {excerpt}") };
        }
        if self.body.trim_ascii().is_empty() {
            return format!("an empty answer (HTTP {status})");
        }
        if self.is_large() {
            return format!("{} MiB (HTTP {status}): {}", self.body.len() >> 20, self.excerpt());
        }
        match parse_lenient(&self.body) {
            Ok(_) => format!("JSON that ComfyUI would not send (HTTP {status})"),
            Err(_) => format!("something that is not JSON (HTTP {status}): {}", self.excerpt()),
        }
    }

    /// The beginning of the body on one line; of a JSON error only its message.
    pub(super) fn excerpt(&self) -> String {
        if self.is_html() {
            return self.title().unwrap_or_else(|| "an HTML page".into());
        }
        let json = if self.is_large() { None } else { parse_lenient(&self.body).ok() };
        let message = json.as_ref().and_then(|json| {
            let error = json.get("error")?;
            error.as_str().or_else(|| error.get("message")?.as_str())
        });
        match message {
            Some(message) => clip(message),
            None => clip(&String::from_utf8_lossy(&self.body[..self.body.len().min(EXCERPT_BYTES)])),
        }
    }

    fn is_html(&self) -> bool {
        let start = self.body.trim_ascii_start();
        let start = start[..start.len().min(16)].to_ascii_lowercase();
        self.content_type.starts_with("text/html")
            || start.starts_with(b"<!doctype html")
            || start.starts_with(b"<html")
    }

    /// The text between the first `<title>` and its end.
    fn title(&self) -> Option<String> {
        let head = &self.body[..self.body.len().min(16 * 1024)];
        let text = String::from_utf8_lossy(head);
        let lower = text.to_ascii_lowercase();
        let open = lower.find("<title")?;
        let start = open + lower[open..].find('>')? + 1;
        let end = start + lower[start..].find("</title")?;
        let title = clip(&text[start..end]);
        (!title.is_empty()).then_some(title)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
