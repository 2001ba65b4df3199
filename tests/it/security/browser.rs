//! A web page in the user's browser: it can send requests here, but neither choose their `Host` nor their `Origin`.

use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{
    client::{ApiClient, answer},
    service::Service,
};

const EXECUTE: &str = "/comfyui/workflow/execute";

/// Every route that changes something, and one that does not exist.
const POSTS: [&str; 5] = [
    EXECUTE,
    "/comfyui/workflow/some_id/cancel",
    "/comfyui/workflow/some_id/retry",
    "/comfyui/workflow/some_id/download",
    "/nowhere",
];

fn post(client: &ApiClient, path: &str) -> RequestBuilder {
    client.request(Method::POST, path)
}

async fn refused(request: RequestBuilder, message: &str) {
    let (status, body) = answer(request).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    let said = body["message"].as_str().unwrap();
    assert!(body["success"] == false && said.contains(message), "{body}");
}

/// Not refused at the door: whatever else the route has to say.
async fn passes(request: RequestBuilder) -> Value {
    let (status, body) = answer(request).await;
    assert!(status != StatusCode::FORBIDDEN && status != StatusCode::UNAUTHORIZED, "{status} {body}");
    body
}

#[tokio::test]
async fn a_foreign_page_can_post_nothing_body_or_not() {
    let service = Service::start(&[]);
    let client = service.client();
    let port = service.url().rsplit(':').next().unwrap();
    let near_misses = [format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{port}0")];
    let foreign = ["http://evil.example", "null", "", "file://", "http://localhost.evil.example", "http://localhost:1"];
    for origin in foreign.into_iter().chain(near_misses.iter().map(String::as_str)) {
        for path in POSTS {
            refused(post(&client, path).header("origin", origin), "[server] cors_origins").await;
        }
        let with_body = post(&client, EXECUTE).header("origin", origin).json(&json!({}));
        refused(with_body, "[server] cors_origins").await;
        passes(client.request(Method::GET, "/comfyui/workflow/state").header("origin", origin)).await;
    }
    refused(post(&client, EXECUTE).header("origin", "null"), "serve the page over HTTP").await;
    let two = post(&client, EXECUTE).header("origin", "http://localhost").header("origin", "http://evil.example");
    refused(two, "http://evil.example").await;
}

#[tokio::test]
async fn our_own_page_and_listed_pages_can_post() {
    let service = Service::start(&[("server.cors_origins", vec!["http://page.example:*"].into())]);
    let client = service.client();
    let port = service.url().rsplit(':').next().unwrap();
    for path in POSTS {
        passes(post(&client, path)).await;
        for origin in [service.url(), "http://page.example", "http://page.example:3000"] {
            passes(post(&client, path).header("origin", origin)).await;
        }
        let by_name = post(&client, path).header("host", format!("localhost:{port}"));
        passes(by_name.header("origin", format!("http://localhost:{port}"))).await;
    }
}

#[tokio::test]
async fn a_name_that_was_pointed_here_is_refused_for_every_route() {
    let service = Service::start(&[("server.host_names", vec!["comfy.example.org"].into())]);
    let client = service.client();
    let get = |path: &str, host: &str| client.request(Method::GET, path).header(header::HOST, host);
    for host in ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example", "example.org"]
    {
        for path in ["/comfyui/workflow/state", "/comfyui/workflow/x/progress", "/health", "/nowhere"] {
            refused(get(path, host), "[server] host_names").await;
        }
        // The page's own origin, as a rebound page has it.
        let rebound = post(&client, EXECUTE).header(header::HOST, host).header("origin", format!("http://{host}"));
        refused(rebound.json(&json!({})), "[server] host_names").await;
    }
    for host in ["localhost", "LocalHost:5000", "[::1]:5000", "192.0.2.1", "comfy.example.org", "COMFY.example.org:80"]
    {
        passes(get("/comfyui/workflow/state", host)).await;
    }
    for host in ["", "a b", "user@localhost", "localhost:port"] {
        let (status, body) = answer(get("/comfyui/workflow/state", host)).await;
        assert_eq!((status, &body["success"]), (StatusCode::BAD_REQUEST, &json!(false)), "{host}: {body}");
    }
}

#[tokio::test]
async fn a_form_cannot_execute() {
    let service = Service::start(&[]);
    let client = service.client();
    let body = json!({"ssh_connection": "ssh root@box", "workflow_file": "/w.json"}).to_string();
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", ""] {
        let (status, _) = answer(post(&client, EXECUTE).header("content-type", content_type).body(body.clone())).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    let typed = post(&client, EXECUTE).header("content-type", "Application/JSON; charset=utf-8").body(body);
    assert_eq!(answer(typed).await.0, StatusCode::BAD_REQUEST, "read, and the file is not there");
}
