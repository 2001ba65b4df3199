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
const SMALL_BYTES: u64 = 1 << 20;

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
    /// Reads the body, up to `limit` bytes, as long as it goes on within `idle`. [`ComfyError::Crowded`] when it is large
    /// and does not come to its room.
    pub(super) async fn read(
        what: &'static str,
        mut response: Response,
        limit: u64,
        idle: Duration,
        claim: Claim<'_>,
    ) -> Result<Self, ComfyError> {
        let mut answer = Self::head(what, &response);
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(ComfyError::TooBig { what, limit });
        }
        let mut body = Vec::new();
        let mut pace = None;
        loop {
            let next = async { response.chunk().await.map_err(|error| ComfyError::from_reqwest(what, error)) };
            let next = within(what, idle, keeping(pace.as_ref(), what, body.len(), next));
            let Some(chunk) = next.await? else { break };
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(ComfyError::TooBig { what, limit });
            }
            if answer.room.is_none() && (body.len() + chunk.len()) as u64 > SMALL_BYTES {
                let bytes = announced.unwrap_or(limit);
                let taken = claim.take(bytes).await.ok_or(ComfyError::Crowded { what, bytes })?;
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
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;
    use crate::comfy::room::Room;

    fn answer(status: u16, content_type: &str, location: &str, body: &str) -> Answer {
        Answer {
            what: "GET /x",
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            content_type: content_type.into(),
            location: location.into(),
            is_placeholder: false,
            room: None,
        }
    }

    #[test]
    fn what_is_found_is_described() {
        for (status, content_type, location, body, expected) in [
            (200, "text/html", "", "<html><TITLE> Log\n in </title>", "an HTML page titled \"Log in\" (HTTP 200)"),
            (200, "text/plain", "", "\n<!DOCTYPE html><p>", "an HTML page (HTTP 200)"),
            (401, "text/html", "", "<html>", "HTTP 401 asking for a login"),
            (302, "", "/login?token=s3cret", "", "a redirect to /login"),
            (304, "", "", "", "HTTP 304"),
            (502, "text/html", "", "<html></html>", "HTTP 502 with an HTML page"),
            (403, "", "", "", "HTTP 403"),
            (403, "application/json", "", r#"{"error": "bad credential"}"#, "HTTP 403: bad credential"),
            (200, "application/json", "", "[]", "JSON that ComfyUI would not send (HTTP 200)"),
            (200, "text/plain", "", "hello", "something that is not JSON (HTTP 200): hello"),
            (200, "", "", "  ", "an empty answer (HTTP 200)"),
        ] {
            assert_eq!(answer(status, content_type, location, body).describe(), expected);
        }
    }

    #[test]
    fn a_proxy_page_may_pass_and_a_login_does_not() {
        let may_pass = |answer: Answer| match answer.success() {
            Err(error @ ComfyError::Foreign { .. }) => error.is_transient(),
            other => panic!("{other:?}"),
        };
        assert!(may_pass(answer(503, "text/html", "", "<html>")));
        assert!(may_pass(answer(524, "", "", "")));
        assert!(may_pass(Answer { is_placeholder: true, ..answer(200, "text/html", "", "<html>") }));
        assert!(!may_pass(answer(200, "text/html", "", "<html>")));
        assert!(!may_pass(answer(401, "", "", "")));
    }

    #[test]
    fn excerpts_are_one_short_line() {
        assert_eq!(answer(500, "", "", "500 Internal\n\n  Server\tError").excerpt(), "500 Internal Server Error");
        assert_eq!(answer(400, "", "", r#"{"error": {"message": "no prompt"}}"#).excerpt(), "no prompt");
        let long = answer(500, "", "", &"ü".repeat(5000)).excerpt();
        assert_eq!(long.chars().count(), 200);
        assert!(long.ends_with('…'));
    }

    #[tokio::test]
    async fn a_large_body_is_parsed_where_it_holds_up_nobody() {
        let document = format!("{{\"a\": \"{}\"}}", "a".repeat(SMALL_BYTES as usize));
        let (large, small) = (answer(200, "", "", &document), answer(200, "", "", r#"{"a": 1}"#));
        assert!(small.json().now_or_never().unwrap().is_ok());
        let mut parsing = Box::pin(large.json());
        assert!((&mut parsing).now_or_never().is_none());
        assert!(parsing.await.unwrap()["a"].is_string());
    }

    /// Reads a body of which a piece comes after each of these pauses, in seconds.
    async fn read_in_pieces(pauses: &'static [u64]) -> Result<usize, ComfyError> {
        let pieces = stream::iter(pauses).then(|pause| async {
            tokio::time::sleep(Duration::from_secs(*pause)).await;
            Ok::<_, std::io::Error>("[]")
        });
        let response = axum::http::Response::new(reqwest::Body::wrap_stream(pieces));
        let claim = Claim::AtOnce(&Room::of("pieces"), None);
        let read = Answer::read("GET /x", response.into(), 100, Duration::from_secs(10), claim).await;
        read.map(|answer| answer.body.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_its_time_as_long_as_it_goes_on() {
        assert_eq!(read_in_pieces(&[9, 9, 9, 9]).await.unwrap(), 8);
        let stalled = read_in_pieces(&[1, 11]).await;
        assert!(matches!(stalled, Err(ComfyError::Timeout { after, .. }) if after.as_secs() == 10), "{stalled:?}");
    }

    /// Gets `piece` bytes, of which `before` had come when there was room, every second until it is cut off.
    async fn cut_off_after(announced: Option<u64>, before: usize, piece: usize) -> (Duration, usize) {
        let (begun, mut received) = (Instant::now(), before);
        let pace = Pace::begin(before, announced);
        loop {
            let next = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(piece)
            };
            match keeping(Some(&pace), "GET /x", received, next).await {
                Ok(piece) => received += piece,
                Err(ComfyError::TooSlow { .. }) => return (begun.elapsed(), received),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_that_trickles_is_cut_off_soon_and_one_that_comes_is_not() {
        let seconds = |(after, _): (Duration, usize)| after.as_secs();
        assert_eq!(seconds(cut_off_after(Some(60_000_000), 4 << 20, 1).await), 5, "a drop a second");
        assert_eq!(seconds(cut_off_after(None, 1 << 20, 100).await), 5);
        // Half of what it takes: when that shows, and not at its deadline.
        assert!(seconds(cut_off_after(Some(60_000_000), 0, 500_000).await) < 10);
        let (after, received) = cut_off_after(Some(60_000_000), 0, 1_200_000).await;
        assert!(after == LARGE && received >= 59_000_000, "{after:?}: {received}");
    }
}
