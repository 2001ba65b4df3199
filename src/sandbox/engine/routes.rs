//! The HTTP routes, with and without `/api`, as ComfyUI's `server.py` has them.
//!
//! Used by [`process`](super::process) for every connection. Answers have the status, content type and JSON of the real
//! server; where Python fails with an exception this answers aiohttp's plain 500.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::json::{NAN, Object, dumps, python_str};
use super::nodes::{Class, find};
use super::query::Parameters;
use super::queue::Item;
use super::{MAX_BODY, Shared, jobs, lock, socket, submit, transfer};
use crate::sandbox::fault::Page;

/// Folders that `/models` lists; the sandbox has no models in them.
const MODEL_FOLDERS: [&str; 5] = ["checkpoints", "loras", "vae", "controlnet", "upscale_models"];

pub(super) type Engine = State<Arc<Shared>>;
pub(super) type RawBody = Result<Bytes, BytesRejection>;

/// The life of the process, for handlers that keep going.
#[derive(Clone)]
struct Life {
    token: CancellationToken,
    tasks: TaskTracker,
}

pub(super) fn router(shared: Arc<Shared>, token: CancellationToken, tasks: TaskTracker) -> Router {
    let mut plain = Router::new()
        .route("/ws", get(websocket))
        .route("/prompt", get(queue_info).post(submit::submit))
        .route("/queue", get(queue).post(change_queue))
        .route("/history", get(history).post(change_history))
        .route("/history/{id}", get(history_of))
        .route("/interrupt", post(interrupt))
        .route("/free", post(free))
        .route("/view", get(transfer::view))
        .route("/upload/image", post(transfer::upload))
        .route("/object_info", get(object_info))
        .route("/object_info/{class}", get(object_info_of))
        .route("/system_stats", get(system_stats))
        .route("/embeddings", get(|| async { json_answer(&json!([])) }))
        .route("/extensions", get(|| async { json_answer(&json!([])) }))
        .route("/models", get(|| async { json_answer(&json!(MODEL_FOLDERS)) }))
        .route("/models/{folder}", get(models));
    if shared.version.has_progress_state() {
        plain = plain.route("/features", get(features));
    }
    let mut prefixed = plain.clone();
    if shared.version.has_jobs() {
        prefixed = prefixed.merge(jobs::router());
    }
    let gate = middleware::from_fn_with_state(Arc::clone(&shared), gate);
    Router::new()
        .merge(plain)
        .nest("/api", prefixed)
        .route("/", get(|| async { ([(header::CONTENT_TYPE, "text/html")], "<!doctype html>") }))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(Life { token, tasks }))
        .layer(gate)
        .with_state(shared)
}

/// What every request passes first: faults set by tests, then ComfyUI's check of `Origin`.
async fn gate(State(shared): Engine, request: Request, next: Next) -> Response {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    shared.faults.thawed().await;
    if let Some(page) = shared.faults.page() {
        return proxy_page(page);
    }
    if is_foreign(request.headers()) {
        return StatusCode::FORBIDDEN.into_response();
    }
    if request.method() == Method::OPTIONS {
        return StatusCode::OK.into_response();
    }
    next.run(request).await
}

fn proxy_page(page: Page) -> Response {
    let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    match page {
        Page::Login => (html, "<!doctype html><title>Log in</title><form>Password: <input></form>").into_response(),
        Page::Unauthorized => {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"restricted\"")];
            (StatusCode::UNAUTHORIZED, challenge, html, "<!doctype html><h1>401</h1>").into_response()
        }
        Page::Redirect => (StatusCode::FOUND, [(header::LOCATION, "/login")], html, "").into_response(),
        Page::BadGateway => {
            (StatusCode::BAD_GATEWAY, html, "<!doctype html><h1>Starting up, please wait</h1>").into_response()
        }
    }
}

/// Both headers present, the host is this machine, and they differ. Ports count only if both have one.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(host), Some(origin)) = (text(header::HOST), text(header::ORIGIN)) else { return false };
    let (Ok(host), Ok(origin)) = (format!("http://{host}").parse::<Uri>(), origin.parse::<Uri>()) else { return false };
    let (Some(host_name), Some(origin_name)) = (host.host(), origin.host()) else { return false };
    let loopback = host_name == "localhost"
        || host_name.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let ports_differ = match (host.port_u16(), origin.port_u16()) {
        (Some(host), Some(origin)) => host != origin,
        _ => false,
    };
    loopback && (!host_name.eq_ignore_ascii_case(origin_name) || ports_differ)
}

/// A static file that is not there.
async fn nothing_here(method: Method) -> Response {
    if method == Method::GET || method == Method::HEAD {
        return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/octet-stream")]).into_response();
    }
    wrong_method().await
}

async fn wrong_method() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed").into_response()
}

pub(super) fn json_answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], dumps(value)).into_response()
}

pub(super) fn json_error(status: StatusCode, value: &Value) -> Response {
    (status, json_answer(value)).into_response()
}

/// What aiohttp says when a handler fails.
pub(super) fn crash() -> Response {
    let text = "500 Internal Server Error\n\nServer got itself in trouble";
    (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONNECTION, "close")], text).into_response()
}

/// 200 without anything.
fn done() -> Response {
    StatusCode::OK.into_response()
}

/// The body as JSON; `Err` is what to answer instead.
pub(super) fn parse(body: RawBody) -> Result<Value, Box<Response>> {
    let bytes = body.map_err(|error| Box::new(error.into_response()))?;
    serde_json::from_slice(&bytes).map_err(|_| Box::new(crash()))
}

async fn websocket(
    State(shared): Engine,
    Extension(life): Extension<Life>,
    query: Parameters,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        let text = "No WebSocket UPGRADE hdr: None\n Can \"Upgrade\" only to \"WebSocket\".";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let named = query.get("clientId").filter(|id| !id.is_empty());
    let sid = named.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    // The library spawns the socket's task on its own; the token makes the process wait for it.
    let alive = life.tasks.token();
    // aiohttp's limits.
    upgrade.max_message_size(4 << 20).max_frame_size(4 << 20).on_upgrade(move |socket| async move {
        socket::serve(&shared, socket, sid, life.token).await;
        drop(alive);
    })
}

async fn queue_info(State(shared): Engine) -> Response {
    let remaining = shared.queue.with_remaining(|remaining| remaining);
    json_answer(&json!({"exec_info": {"queue_remaining": remaining}}))
}

async fn queue(State(shared): Engine) -> Response {
    let (running, pending) = shared.queue.snapshot();
    let list = |items: Vec<Item>| items.iter().map(Item::to_json).collect::<Vec<_>>();
    let running = list(running.into_iter().collect());
    json_answer(&json!({"queue_running": running, "queue_pending": list(pending)}))
}

async fn change_queue(State(shared): Engine, body: RawBody) -> Response {
    let body = match parse(body) {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    if is_truthy(body.get("clear")) {
        shared.queue.clear(&shared.hub);
    }
    for id in body.get("delete").and_then(Value::as_array).into_iter().flatten() {
        shared.queue.delete(&python_str(id), &shared.hub);
    }
    done()
}

async fn history(State(shared): Engine, query: Parameters) -> Response {
    let read = |key: &str| query.get(key).map(|text| text.trim().parse::<i64>()).transpose();
    let (Ok(max_items), Ok(offset)) = (read("max_items"), read("offset")) else { return crash() };
    let entries = shared.queue.history();
    let length = i64::try_from(entries.len()).unwrap_or(i64::MAX);
    let offset = match (offset.unwrap_or(-1), max_items) {
        (offset, Some(max)) if offset < 0 => length.saturating_sub(max),
        (offset, _) => offset,
    };
    let skip = usize::try_from(offset.max(0)).unwrap_or(usize::MAX);
    // As in ComfyUI the limit is looked at after an entry was added.
    let take = max_items.map_or(usize::MAX, |max| usize::try_from(max.max(1)).unwrap_or(usize::MAX));
    let listed: Object =
        entries.iter().skip(skip).take(take).map(|entry| (entry.item.id.clone(), entry.to_json())).collect();
    json_answer(&listed.into())
}

async fn history_of(State(shared): Engine, Path(id): Path<String>) -> Response {
    match shared.queue.entry(&id) {
        Some(entry) => json_answer(&json!({id: entry.to_json()})),
        None => json_answer(&json!({})),
    }
}

async fn change_history(State(shared): Engine, body: RawBody) -> Response {
    let body = match parse(body) {
        Ok(body) => body,
        Err(answer) => return *answer,
    };
    if is_truthy(body.get("clear")) {
        shared.queue.clear_history();
    }
    for id in body.get("delete").and_then(Value::as_array).into_iter().flatten() {
        shared.queue.delete_history(&python_str(id));
    }
    done()
}

async fn interrupt(State(shared): Engine, body: RawBody) -> Response {
    shared.interrupts.fetch_add(1, Ordering::Relaxed);
    let bytes = body.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({}));
    let targeted = shared.version.targets_interrupts();
    if targeted && !body.is_object() {
        return crash();
    }
    if shared.faults.take_lost_interrupt() {
        return done();
    }
    let target =
        body.get("prompt_id").filter(|id| targeted && !shared.faults.interrupts_anything() && is_truthy(Some(id)));
    match target {
        Some(id) => {
            shared.queue.if_running(&python_str(id), || shared.interrupt());
        }
        None => shared.interrupt(),
    }
    done()
}

async fn free(State(shared): Engine, body: RawBody) -> Response {
    match parse(body) {
        Ok(body) if !body.is_object() => crash(),
        Ok(body) => {
            if is_truthy(body.get("free_memory")) {
                shared.queue.free_memory();
                // Nothing runs, so the worker acts at once.
                if shared.queue.running().is_none() && shared.queue.take_free_memory() {
                    lock(&shared.cache).clear();
                }
            }
            done()
        }
        Err(answer) => *answer,
    }
}

async fn object_info(State(shared): Engine) -> Response {
    let with_nan = shared.faults.has_nan();
    let classes = Class::all().iter();
    let info: Object = classes.map(|class| (class.name.to_owned(), class.info(&shared.folders, with_nan))).collect();
    json_answer(&info.into())
}

async fn object_info_of(State(shared): Engine, Path(name): Path<String>) -> Response {
    shared.definitions_asked_for.fetch_add(1, Ordering::Relaxed);
    match find(&name) {
        Some(class) => json_answer(&json!({name: class.info(&shared.folders, shared.faults.has_nan())})),
        None => json_answer(&json!({})),
    }
}

async fn features(State(shared): Engine) -> Response {
    json_answer(&shared.features())
}

async fn models(Path(folder): Path<String>) -> Response {
    if MODEL_FOLDERS.contains(&folder.as_str()) {
        json_answer(&json!([]))
    } else {
        (StatusCode::NOT_FOUND, Body::empty()).into_response()
    }
}

async fn system_stats(State(shared): Engine) -> Response {
    const MEMORY: u64 = 8 << 30;
    let free = if shared.faults.has_nan() { json!(NAN) } else { json!(MEMORY / 2) };
    let os = if shared.version >= super::Version::Current { "linux" } else { "posix" };
    json_answer(&json!({
        "system": {
            "os": os,
            "ram_total": MEMORY,
            "ram_free": free,
            "comfyui_version": shared.version.number(),
            "required_frontend_version": "1.32.9",
            "installed_templates_version": null,
            "required_templates_version": "0.7.25",
            "python_version": "3.11.7 (sandbox)",
            "pytorch_version": "2.6.0+cpu",
            "embedded_python": false,
            "argv": ["main.py", "--cpu", "--listen", "127.0.0.1", "--port", shared.address.port().to_string(),
                     "--base-directory", shared.folders.root.join("ComfyUI")],
        },
        "devices": [{
            "name": "cpu", "type": "cpu", "index": null, "vram_total": MEMORY, "vram_free": free,
            "torch_vram_total": MEMORY, "torch_vram_free": free,
        }],
    }))
}

fn is_truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}
