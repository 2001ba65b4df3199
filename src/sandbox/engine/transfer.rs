//! `/view` and `/upload/image`: files over HTTP.
//!
//! Used by the routes. Which names are refused, and how, follows ComfyUI's `server.py`; how a part of a file is asked for
//! and sent follows aiohttp's `web_fileresponse.py`. Re-encoding (`preview`, `channel`) is left out: the file comes as it is.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::extract::multipart::MultipartRejection;
use axum::extract::{Multipart, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DurationRound, TimeDelta, Utc};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncSeekExt;
use tokio_util::io::ReaderStream;

use super::Folders;
use super::folders::{abspath, split_annotation};
use super::query::Parameters;
use super::routes::{Engine, crash, json_answer};

/// Types that a browser would run; sent as mere bytes.
const DANGEROUS: [&str; 4] = ["text/html", "application/xhtml+xml", "text/javascript", "text/css"];
/// Copies of one name that an upload may find taken.
const MAX_COPIES: u32 = 10_000;

pub(super) async fn view(State(shared): Engine, query: Parameters, asked: HeaderMap) -> Response {
    let path = match locate(&shared.folders, &query) {
        Ok(path) => path,
        Err(status) => return status.into_response(),
    };
    let Ok(mut file) = tokio::fs::File::open(&path).await else { return StatusCode::NOT_FOUND.into_response() };
    let Some(metadata) = file.metadata().await.ok().filter(std::fs::Metadata::is_file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let length = metadata.len();
    let changed = metadata.modified().map(chrono::DateTime::<Utc>::from).unwrap_or_default();
    let from = first_byte(&asked, changed);
    if from.is_some_and(|from| from >= length) {
        let told = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
        return (StatusCode::RANGE_NOT_SATISFIABLE, told).into_response();
    }
    if file.seek(SeekFrom::Start(from.unwrap_or(0))).await.is_err() {
        return crash();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mime = mime_guess::from_path(&path).first_or_octet_stream();
    let mime = if DANGEROUS.contains(&mime.essence_str()) { "application/octet-stream" } else { mime.essence_str() };
    let rest = length - from.unwrap_or(0);
    let mut response = Body::from_stream(ReaderStream::new(file)).into_response();
    let mut texts = vec![
        (header::CONTENT_TYPE, mime.to_owned()),
        // Raw UTF-8 in a header, as aiohttp sends it.
        (header::CONTENT_DISPOSITION, format!("filename=\"{name}\"")),
        (header::LAST_MODIFIED, http_date(changed)),
        (header::ETAG, format!("\"{:x}-{length:x}\"", changed.timestamp_nanos_opt().unwrap_or_default())),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if let Some(from) = from {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        texts.push((header::CONTENT_RANGE, format!("bytes {from}-{}/{length}", length - 1)));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, rest.into());
    for (key, text) in texts {
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(key, value);
        }
    }
    response
}

/// Where the part begins that is asked for (`bytes=N-` only), unless the file changed after the time in `If-Range`.
fn first_byte(asked: &HeaderMap, changed: chrono::DateTime<Utc>) -> Option<u64> {
    let text = |name| asked.get(name).and_then(|value| value.to_str().ok());
    let unchanged = text(header::IF_RANGE).and_then(|time| chrono::DateTime::parse_from_rfc2822(time).ok());
    let is_fresh = unchanged.is_none_or(|time| changed <= time);
    text(header::RANGE).filter(|_| is_fresh)?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// To the next full second, as aiohttp rounds.
fn http_date(time: chrono::DateTime<Utc>) -> String {
    let second = time.duration_trunc(TimeDelta::seconds(1)).unwrap_or(time);
    let rounded = if second < time { second + TimeDelta::seconds(1) } else { second };
    rounded.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The file a query means.
fn locate(folders: &Folders, query: &Parameters) -> Result<PathBuf, StatusCode> {
    let filename = query.get("filename").ok_or(StatusCode::NOT_FOUND)?;
    let (filename, annotated) = split_annotation(filename);
    if filename.is_empty() || filename.starts_with('/') || filename.contains("..") || filename.contains('\0') {
        return Err(StatusCode::BAD_REQUEST);
    }
    let kind = annotated.unwrap_or_else(|| query.get("type").unwrap_or("output"));
    let base = folders.by_type(kind).ok_or(StatusCode::BAD_REQUEST)?;
    let folder = query.get("subfolder").map_or_else(|| base.to_owned(), |subfolder| abspath(&base.join(subfolder)));
    if !folder.starts_with(base) {
        return Err(StatusCode::FORBIDDEN);
    }
    let name = Path::new(filename).file_name().ok_or(StatusCode::NOT_FOUND)?;
    Ok(folder.join(name))
}

#[derive(Default)]
struct Form {
    file: Option<(String, Bytes)>,
    overwrite: bool,
    subfolder: String,
    kind: Option<String>,
}

pub(super) async fn upload(State(shared): Engine, form: Result<Multipart, MultipartRejection>) -> Response {
    let bad = || StatusCode::BAD_REQUEST.into_response();
    let Ok(multipart) = form else { return bad() };
    let form = match read(multipart).await {
        Ok(form) => form,
        Err(answer) => return answer,
    };
    let kind = form.kind.clone().unwrap_or_else(|| "input".into());
    let Some(base) = shared.folders.by_type(&kind).map(Path::to_owned) else { return crash() };
    let Some((filename, content)) = form.file.filter(|(name, _)| !name.is_empty()) else { return bad() };
    let folder = base.join(&form.subfolder);
    if !abspath(&folder.join(&filename)).starts_with(&base) || filename.contains('\0') || form.subfolder.contains('\0')
    {
        return bad();
    }
    let folder = abspath(&folder);
    let stored = tokio::task::spawn_blocking(move || store(&folder, &filename, &content, form.overwrite)).await;
    match stored {
        Ok(Ok(name)) => json_answer(&json!({"name": name, "subfolder": form.subfolder, "type": kind})),
        _ => crash(),
    }
}

async fn read(mut multipart: Multipart) -> Result<Form, Response> {
    let mut form = Form::default();
    loop {
        let field = match multipart.next_field().await {
            Ok(Some(field)) => field,
            Ok(None) => return Ok(form),
            Err(error) => return Err(error.into_response()),
        };
        let (name, filename) = (field.name().map(str::to_owned), field.file_name().map(str::to_owned));
        let content = field.bytes().await.map_err(IntoResponse::into_response)?;
        let text = || String::from_utf8_lossy(&content).into_owned();
        match name.as_deref() {
            Some("image") => form.file = Some((filename.unwrap_or_default(), content)),
            Some("overwrite") => form.overwrite = matches!(text().as_str(), "true" | "1"),
            Some("subfolder") => form.subfolder = text(),
            Some("type") => form.kind = Some(text()),
            _ => {}
        }
    }
}

/// Writes the file unless it is there already; says under which name.
fn store(folder: &Path, filename: &str, content: &[u8], overwrite: bool) -> std::io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let mut name = filename.to_owned();
    if !overwrite {
        let (stem, extension) = split_extension(filename);
        for copy in 1..=MAX_COPIES {
            let path = folder.join(&name);
            if !path.exists() {
                break;
            }
            if Sha256::digest(std::fs::read(&path)?) == Sha256::digest(content) {
                return Ok(name);
            }
            name = format!("{stem} ({copy}){extension}");
        }
    }
    std::fs::write(folder.join(&name), content)?;
    Ok(name)
}

/// Python's `os.path.splitext`.
fn split_extension(name: &str) -> (&str, &str) {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    match name.rfind('.') {
        Some(dot) if dot > base && !name[base..dot].trim_start_matches('.').is_empty() => name.split_at(dot),
        _ => (name, ""),
    }
}
