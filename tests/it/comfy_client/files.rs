//! Files over ComfyUI's own routes, in both directions.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse},
    routing::{any, post},
};
use comfy_remote::{
    comfy::{Client, ComfyError, Viewed},
    workflow::{Folder, RemoteFile},
};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{always, client, found, json_response, raw};
use crate::{graphs::tag, support::comfyui::RealComfyUi};

const NAME: &str = "a b%c&d+é.png";
const SUBFOLDER: &str = "sub/ünï cödé";

async fn with_one_file() -> Client {
    let answer = |method: Method, uri: Uri| async move {
        let query = uri.query().unwrap_or_default().to_owned();
        let expected = "filename=a%20b%25c%26d%2B%C3%A9.png&subfolder=sub%2F%C3%BCn%C3%AF%20c%C3%B6d%C3%A9&type=output";
        if query != expected {
            return StatusCode::NOT_FOUND.into_response();
        }
        let headers = [
            (header::CONTENT_TYPE, "image/png"),
            (header::CONTENT_LENGTH, "5"),
            (header::LAST_MODIFIED, "Tue, 24 Nov 2026 21:32:37 GMT"),
        ];
        let body = if method == Method::HEAD { "" } else { "12345" };
        (headers, body).into_response()
    };
    client(Router::new().route("/view", any(answer))).await
}

#[tokio::test]
async fn a_file_with_an_odd_name_is_seen_and_read() {
    let client = with_one_file().await;
    let viewed = client.stat_view(&file(NAME, SUBFOLDER)).await.unwrap().unwrap();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_555_957);
    assert_eq!((viewed.size, viewed.last_modified), (Some(5), Some(modified)));
    assert!(viewed.is_same_file(5, Some(modified)));
    let mut download = client.view(&file(NAME, SUBFOLDER), 0, &Viewed::default()).await.unwrap();
    assert_eq!(download.size(), Some(5));
    let mut content = Vec::new();
    assert_eq!(download.copy_to(&mut content, 5).await.unwrap(), 5);
    assert_eq!(content, b"12345");
}

#[tokio::test]
async fn a_real_comfyui_sends_the_rest_of_the_same_file_only() {
    let Some(comfyui) = RealComfyUi::from_env() else { return };
    let client = Client::at(&comfyui.url);
    let name = format!("rest_{}.bin", tag());
    let path = comfyui.output_dir().join(&name);
    fs::write(&path, "12345678").unwrap();
    let remote = file(&name, "");
    let viewed = client.stat_view(&remote).await.unwrap().unwrap();
    let from_third = async || {
        let mut download = client.view(&remote, 3, &viewed).await.unwrap();
        let mut content = Vec::new();
        download.copy_to(&mut content, 8).await.unwrap();
        (download.from(), String::from_utf8(content).unwrap())
    };
    assert_eq!(from_third().await, (3, "45678".to_owned()));
    fs::write(&path, "abcdefgh").unwrap();
    let later = SystemTime::now() + Duration::from_secs(10);
    fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
    assert_eq!(from_third().await, (0, "abcdefgh".to_owned()));
    fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn the_rest_of_a_file_is_asked_for_and_must_be_the_rest_of_that_file() {
    let answer = |headers: HeaderMap| async move {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        // As aiohttp does: the time decides, a tag would be ignored.
        assert_eq!(text(header::IF_RANGE).as_deref(), Some("Tue, 24 Nov 2026 21:32:37 GMT"));
        assert_eq!(text(header::RANGE).as_deref(), Some("bytes=3-"));
        let told = [
            (header::CONTENT_RANGE, "bytes 3-4/5"),
            (header::LAST_MODIFIED, "Tue, 24 Nov 2026 21:32:37 GMT"),
            (header::ETAG, "\"a\""),
        ];
        (StatusCode::PARTIAL_CONTENT, told, "45").into_response()
    };
    let client = client(Router::new().route("/view", any(answer))).await;
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_555_957);
    let of = |size, etag: &str| Viewed { size: Some(size), last_modified: Some(modified), etag: Some(etag.into()) };
    let mut rest = client.view(&file("x.png", ""), 3, &of(5, "\"a\"")).await.unwrap();
    let mut content = Vec::new();
    assert_eq!((rest.from(), rest.copy_to(&mut content, 5).await.unwrap(), content.as_slice()), (3, 2, &b"45"[..]));
    for other in [of(6, "\"a\""), of(5, "\"b\"")] {
        let error = client.view(&file("x.png", ""), 3, &other).await.unwrap_err();
        assert!(matches!(error, ComfyError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_whole_file_may_come_where_the_rest_was_asked_for() {
    let client = with_one_file().await;
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_555_957);
    let of = Viewed { size: Some(5), last_modified: Some(modified), etag: None };
    let mut whole = client.view(&file(NAME, SUBFOLDER), 3, &of).await.unwrap();
    assert_eq!((whole.from(), whole.copy_to(&mut Vec::new(), 5).await.unwrap()), (0, 5));
}

#[tokio::test]
async fn a_missing_file_is_no_error_to_ask_for() {
    let client = with_one_file().await;
    assert_eq!(client.stat_view(&file("gone.png", "")).await.unwrap(), None);
    let error = client.view(&file("gone.png", ""), 0, &Viewed::default()).await.unwrap_err();
    assert!(matches!(error, ComfyError::NotFound { .. }));
    assert_eq!(error.to_string(), "the box has no file gone.png");
}

#[tokio::test]
async fn a_file_beyond_the_limit_is_not_taken() {
    let mut download = with_one_file().await.view(&file(NAME, SUBFOLDER), 0, &Viewed::default()).await.unwrap();
    let error = download.copy_to(&mut Vec::new(), 4).await.unwrap_err();
    assert!(matches!(error, ComfyError::TooBig { limit: 4, .. }));
    // Also when its size was not announced.
    let stream = futures_util::stream::iter(vec![Ok::<_, std::io::Error>("123"), Ok("456")]);
    let stream = Arc::new(Mutex::new(Some(stream)));
    let router =
        Router::new().fallback(any(move || async move { Body::from_stream(stream.lock().unwrap().take().unwrap()) }));
    let client = client(router).await;
    let mut download = client.view(&file("x.png", ""), 0, &Viewed::default()).await.unwrap();
    assert_eq!(download.size(), None);
    assert!(matches!(download.copy_to(&mut Vec::new(), 4).await, Err(ComfyError::TooBig { .. })));
}

#[tokio::test]
async fn a_cut_body_is_noticed() {
    let (client, _) = raw(|_, mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").await.unwrap();
    })
    .await;
    let mut content = Vec::new();
    let mut download = client.view(&file("x.png", ""), 0, &Viewed::default()).await.unwrap();
    let error = download.copy_to(&mut content, 100).await.unwrap_err();
    assert!(matches!(error, ComfyError::Unreachable { sent: true, .. }) && error.is_transient(), "{error}");
    assert_eq!(content, b"12345");
}

#[tokio::test]
async fn a_login_page_is_not_taken_for_a_picture() {
    let client = always(Html("<html><title>Login</title>")).await;
    let expected = "an HTML page titled \"Login\" (HTTP 200)";
    assert_eq!(found(client.view(&file("x.png", ""), 0, &Viewed::default()).await.unwrap_err()), expected);
    assert!(matches!(client.stat_view(&file("x.png", "")).await, Err(ComfyError::Foreign { .. })));
    // A page that was asked for is one.
    let mut content = Vec::new();
    client.view(&file("x.html", ""), 0, &Viewed::default()).await.unwrap().copy_to(&mut content, 100).await.unwrap();
    assert!(content.starts_with(b"<html>"));
}

async fn opened(path: &Path) -> tokio::fs::File {
    tokio::fs::File::open(path).await.unwrap()
}

#[tokio::test]
async fn an_upload_arrives_whole_and_under_its_name() {
    let answer = |headers: HeaderMap, body: Bytes| async move {
        let kind = headers[header::CONTENT_TYPE].to_str().unwrap();
        let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        let disposition = "Content-Disposition: form-data; name=\"image\"; filename=\"ünï \\\"q\\\".png\"";
        let expected = format!("--{boundary}\r\n{disposition}\r\n\r\n{}\r\n--{boundary}--\r\n", "x".repeat(300_000));
        assert_eq!(headers[header::CONTENT_LENGTH], expected.len().to_string());
        assert!(body == expected, "{}", String::from_utf8_lossy(&body[..300]));
        json_response(json!({"name": "ünï (1).png", "subfolder": "s", "type": "input"}))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local");
    std::fs::write(&path, "x".repeat(300_000)).unwrap();
    let client = client(Router::new().route("/upload/image", post(answer))).await;
    assert_eq!(client.upload_image(opened(&path).await, "ünï \"q\".png").await.unwrap(), "s/ünï (1).png");
    let error = client.upload_image(opened(folder.path()).await, "x.png").await.unwrap_err();
    assert!(matches!(error, ComfyError::Local { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_upload_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("local");
    std::fs::write(&path, "x").unwrap();
    let upload = |status, body: &'static str| {
        let path = path.clone();
        async move { always((status, body)).await.upload_image(opened(&path).await, "x.png").await.unwrap_err() }
    };
    assert!(matches!(upload(StatusCode::PAYLOAD_TOO_LARGE, "").await, ComfyError::TooBig { .. }));
    assert!(matches!(upload(StatusCode::BAD_REQUEST, "").await, ComfyError::Status { status: 400, .. }));
    assert!(matches!(upload(StatusCode::OK, "{}").await, ComfyError::Malformed { .. }));
    assert!(matches!(upload(StatusCode::OK, "<html>").await, ComfyError::Foreign { .. }));
}

fn file(filename: &str, subfolder: &str) -> RemoteFile {
    RemoteFile {
        filename: filename.into(),
        subfolder: subfolder.into(),
        folder: Folder::Output,
        listed_as: "images".into(),
    }
}
