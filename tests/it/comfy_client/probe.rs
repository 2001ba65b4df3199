//! What stands behind the port is told from what should stand there.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, Uri, header},
    response::Html,
    routing::{any, get},
};
use comfy_remote::comfy::{Client, ComfyError};
use serde_json::json;
use tokio::net::UnixListener;

use super::{always, client, found, json_response, nobody};

#[tokio::test]
async fn a_login_page_is_named() {
    let client = always(Html("<!doctype html><html><title>Login</title>")).await;
    assert_eq!(found(client.probe().await.unwrap_err()), "an HTML page titled \"Login\" (HTTP 200)");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let router = Router::new()
        .route("/login", get(|| async { json_response(json!({"system": {}})) }))
        .fallback(any(|| async { (StatusCode::FOUND, [(header::LOCATION, "/login?token=x")]) }));
    assert_eq!(found(client(router).await.probe().await.unwrap_err()), "a redirect to /login");
}

#[tokio::test]
async fn what_is_not_comfyui_is_told_apart() {
    for (status, body, expected, may_pass) in [
        (401, "", "HTTP 401 asking for a login", false),
        (404, "not here", "HTTP 404: not here", false),
        (500, "trouble", "HTTP 500: trouble", false),
        (502, "<html></html>", "HTTP 502 with an HTML page", true),
        (200, "{\"status\": \"ok\"}", "JSON that ComfyUI would not send (HTTP 200)", false),
        (200, "hello", "something that is not JSON (HTTP 200): hello", false),
    ] {
        let error = always((StatusCode::from_u16(status).unwrap(), body)).await.probe().await.unwrap_err();
        assert_eq!(error.is_transient(), may_pass, "{error}");
        assert_eq!(found(error), expected);
    }
}

#[tokio::test]
async fn nobody_is_unreachable() {
    let (client, _deaf) = nobody();
    let error = client.probe().await.unwrap_err();
    assert!(matches!(error, ComfyError::Unreachable { sent: false, .. }));
    assert_eq!(error.to_string(), "no answer to GET /system_stats: connection refused; is ComfyUI running?");
}

#[tokio::test]
async fn a_server_is_known_by_its_stats() {
    let stats = json!({"system": {"comfyui_version": "0.26.0", "argv": ["main.py"]}, "devices": [{"name": "cpu"}]});
    let router = Router::new()
        .route(
            "/system_stats",
            get(move |headers: HeaderMap| async move {
                assert!(!headers.contains_key("origin"));
                json_response(stats)
            }),
        )
        .route(
            "/api/jobs",
            get(|uri: Uri| async move {
                assert_eq!(uri.query(), Some("limit=1"));
                json_response(json!({"jobs": [], "pagination": {}}))
            }),
        );
    let info = client(router).await.probe().await.unwrap();
    assert_eq!((info.version.as_deref(), info.has_jobs_api), (Some("0.26.0"), true));
    assert_eq!((info.argv, info.devices), (vec!["main.py".to_owned()], vec!["cpu".to_owned()]));
}

#[tokio::test]
async fn a_unix_socket_does_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s o cket");
    let listener = UnixListener::bind(&path).unwrap();
    let router = Router::new().route("/system_stats", get(|| async { json_response(json!({"system": {}})) }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert!(!Client::over_socket(&path, "a box").probe().await.unwrap().has_jobs_api);
    let gone = Client::over_socket(&folder.path().join("gone"), "a box").probe().await.unwrap_err();
    assert!(matches!(gone, ComfyError::Unreachable { sent: false, .. }), "{gone}");
}
