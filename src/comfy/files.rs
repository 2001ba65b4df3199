//! Files on the box as ComfyUI shows them: whether they are there, and their content.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use reqwest::{Method, Response, StatusCode, header};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{
    answer::Answer,
    client::{Client, SMALL, percent_encode, repeated, within},
    error::ComfyError,
};
use crate::workflow::RemoteFile;

const STAT: &str = "HEAD /view";
const VIEW: &str = "GET /view";

/// A body that stops for this long has ended. Also the deadline for its beginning.
const IDLE: Duration = Duration::from_secs(30);

/// Longest body that is read to say what went wrong.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// Times that ComfyUI and the box's file system give for one file may differ by this.
const CLOCK_GRAIN: Duration = Duration::from_secs(1);

/// What ComfyUI tells about a file without sending it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Viewed {
    /// Bytes.
    pub size: Option<u64>,
    /// When it was last changed, by the box's clock, to the second.
    pub last_modified: Option<SystemTime>,
    /// ComfyUI's tag of its content: size and time of the last change, to the nanosecond.
    pub etag: Option<String>,
}

/// A file, or the rest of one, that is about to be received.
#[derive(Debug)]
pub struct Download {
    response: Response,
    size: Option<u64>,
    from: u64,
}

impl Client {
    /// Asks whether ComfyUI sees a file; `None` when it does not.
    ///
    /// # Errors
    /// No answer, no ComfyUI, or an error status; HTTP 400 for every name with two dots in a row.
    pub async fn stat_view(&self, file: &RemoteFile) -> Result<Option<Viewed>, ComfyError> {
        let path = view_path(file);
        let attempt = || async {
            let sent = self.request(Method::HEAD, &path).send().await;
            sent.map_err(|error| ComfyError::from_reqwest(STAT, error))
        };
        let response = within(STAT, SMALL, repeated(attempt)).await?;
        match response.status().as_u16() {
            404 => return Ok(None),
            // Something in between that knows no HEAD: the file may well be there.
            405 | 501 => return Ok(Some(Viewed::default())),
            _ => {}
        }
        let head = Answer::head(STAT, &response);
        if let Some(error) = refused(&head, file) {
            return Err(error);
        }
        Ok(Some(Viewed { size: declared_size(&response), ..Viewed::of(&response) }))
    }

    /// Begins to receive a file. When its first `from` bytes are here already, it is asked for the rest, if it is still
    /// the file `of` then; [`Download::from`] says where the answer begins.
    ///
    /// # Errors
    /// [`ComfyError::NotFound`] when ComfyUI does not see it; else as for [`stat_view`](Self::stat_view).
    pub async fn view(&self, file: &RemoteFile, from: u64, of: &Viewed) -> Result<Download, ComfyError> {
        let path = view_path(file);
        let rest = of.last_modified.filter(|_| from > 0);
        let attempt = || async {
            let mut request = self.request(Method::GET, &path);
            if let Some(time) = rest {
                // aiohttp compares no tags here, only times (web_fileresponse.py, v3.11).
                request = request.header(header::RANGE, format!("bytes={from}-"));
                request = request.header(header::IF_RANGE, http_date(time));
            }
            request.send().await.map_err(|error| ComfyError::from_reqwest(VIEW, error))
        };
        let response = within(VIEW, IDLE, repeated(attempt)).await?;
        if response.status().as_u16() == 404 {
            return Err(ComfyError::NotFound { name: file.filename.clone() });
        }
        if refused(&Answer::head(VIEW, &response), file).is_none() {
            return Download::begin(response, from, of);
        }
        let answer = within(VIEW, SMALL, self.read_whole(VIEW, response, MAX_ERROR_BYTES)).await?;
        Err(refused(&answer, file).unwrap_or_else(|| answer.failed()))
    }
}

impl Viewed {
    /// All but the size, which is another one where only a part is sent.
    fn of(response: &Response) -> Self {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let date = text(header::LAST_MODIFIED).and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        let etag = text(header::ETAG).map(str::to_owned);
        Self { size: None, last_modified: date.map(SystemTime::from), etag }
    }

    /// Whether a file of this size and time is certainly the same one. What ComfyUI does not tell is not compared,
    /// but the size it must tell.
    pub fn is_same_file(&self, size: u64, modified: Option<SystemTime>) -> bool {
        let same_time = match (self.last_modified, modified) {
            (Some(seen), Some(modified)) => {
                let apart = seen.duration_since(modified).unwrap_or_else(|later| later.duration());
                apart <= CLOCK_GRAIN
            }
            _ => true,
        };
        self.size == Some(size) && same_time
    }
}

impl Download {
    /// The rest of a file must be the rest of the very one that was asked for.
    fn begin(response: Response, from: u64, of: &Viewed) -> Result<Self, ComfyError> {
        let size = declared_size(&response);
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(Self { response, size, from: 0 });
        }
        let expected = of.size.map(|size| format!("bytes {from}-{}/{size}", size.saturating_sub(1)));
        let told = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let same = Viewed { size: of.size, ..Viewed::of(&response) } == *of;
        if told.is_none() || told != expected.as_deref() || !same {
            let problem = format!("another part than asked for: {}", told.unwrap_or("it is not said which"));
            return Err(ComfyError::Malformed { what: VIEW, problem });
        }
        Ok(Self { response, size, from })
    }

    /// Bytes of what comes, as the server announced them.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The place in the file at which this begins; 0 if the whole file comes.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Writes the rest of the body, flushes the writer and returns how many bytes there were.
    ///
    /// # Errors
    /// [`ComfyError::TooBig`] beyond `limit` bytes, [`ComfyError::Timeout`] when nothing comes for 30 s,
    /// [`ComfyError::Unreachable`] when the connection breaks or the body is shorter than announced,
    /// [`ComfyError::Local`] when the writer fails. What was written by then stays written.
    pub async fn copy_to(&mut self, writer: &mut (impl AsyncWrite + Unpin), limit: u64) -> Result<u64, ComfyError> {
        let too_big = ComfyError::TooBig { what: VIEW, limit };
        if self.size.is_some_and(|size| size > limit) {
            return Err(too_big);
        }
        let local = |source| ComfyError::Local { what: VIEW, source };
        let mut written = 0;
        loop {
            let chunk = async { self.response.chunk().await.map_err(|error| ComfyError::from_reqwest(VIEW, error)) };
            let Some(chunk) = within(VIEW, IDLE, chunk).await? else { break };
            written += chunk.len() as u64;
            if written > limit {
                return Err(too_big);
            }
            writer.write_all(&chunk).await.map_err(local)?;
        }
        writer.flush().await.map_err(local)?;
        Ok(written)
    }
}

/// The error that an answer for a file means, if it means one. A page of HTML is somebody else's answer, unless a
/// page was asked for: ComfyUI sends those too.
fn refused(answer: &Answer, file: &RemoteFile) -> Option<ComfyError> {
    let name = file.filename.to_ascii_lowercase();
    let is_page = name.ends_with(".html") || name.ends_with(".htm");
    if answer.is_foreign() && !(is_page && answer.status.is_success()) {
        return Some(answer.foreign());
    }
    (!answer.status.is_success()).then(|| answer.failed())
}

/// Read from the header: a HEAD answer has no body that could tell.
fn declared_size(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// As HTTP writes times: `Tue, 24 Nov 2026 21:32:37 GMT`.
fn http_date(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn view_path(file: &RemoteFile) -> String {
    let (filename, subfolder) = (percent_encode(&file.filename), percent_encode(&file.subfolder));
    format!("/view?filename={filename}&subfolder={subfolder}&type={}", file.folder.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_are_read() {
        let text = "Tue, 24 Nov 2026 21:32:37 GMT";
        let time = DateTime::parse_from_rfc2822(text).map(SystemTime::from);
        assert_eq!(time.map(http_date).as_deref(), Ok(text));
    }

    #[test]
    fn a_file_is_the_same_by_size_and_time() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds);
        let viewed = Viewed { size: Some(7), last_modified: Some(at(10_000)), etag: None };
        assert!(viewed.is_same_file(7, Some(at(10_900))) && viewed.is_same_file(7, Some(at(9_100))));
        assert!(viewed.is_same_file(7, None));
        assert!(!viewed.is_same_file(8, Some(at(10_000))) && !viewed.is_same_file(7, Some(at(12_000))));
        assert!(!Viewed::default().is_same_file(7, None));
    }
}
