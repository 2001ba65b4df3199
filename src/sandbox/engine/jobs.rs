//! `/api/jobs`: one view on queue and history, and cancelling that cannot hit the wrong run.
//!
//! Used by the routes of [`Version::Current`](super::Version). The shapes follow the description of ComfyUI 0.26; no
//! recording of such a server exists, so `tests/fidelity` does not cover it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::Shared;
use super::json::Object;
use super::query::Parameters;
use super::queue::{Entry, Item};
use super::routes::{Engine, crash, json_answer, json_error};

const STATUSES: [&str; 5] = ["pending", "in_progress", "completed", "failed", "cancelled"];

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/jobs", get(list))
        .route("/jobs/cancel", post(cancel_many))
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/cancel", post(cancel))
}

async fn list(State(shared): Engine, query: Parameters) -> Response {
    let bad = |what: &str| json_error(StatusCode::BAD_REQUEST, &json!({"error": format!("invalid {what}")}));
    let wanted: Vec<&str> = query.get("status").map(|list| list.split(',').collect()).unwrap_or_default();
    if wanted.iter().any(|status| !STATUSES.contains(status)) {
        return bad("status");
    }
    let read = |key: &str| query.get(key).map(|text| text.parse::<usize>()).transpose();
    let (Ok(limit), Ok(offset)) = (read("limit"), read("offset")) else { return bad("limit or offset") };
    let offset = offset.unwrap_or(0);

    let mut jobs = all(&shared);
    jobs.retain(|job| wanted.is_empty() || job["status"].as_str().is_some_and(|status| wanted.contains(&status)));
    jobs.sort_by_key(|job| job["create_time"].as_i64());
    if query.get("sort_order") != Some("asc") {
        jobs.reverse();
    }
    let total = jobs.len();
    let page: Vec<Value> = jobs.into_iter().skip(offset).take(limit.unwrap_or(usize::MAX)).collect();
    let has_more = offset + page.len() < total;
    json_answer(&json!({
        "jobs": page,
        "pagination": {"offset": offset, "limit": limit, "total": total, "has_more": has_more},
    }))
}

async fn show(State(shared): Engine, Path(id): Path<String>) -> Response {
    if let Some(entry) = shared.queue.entry(&id) {
        let mut job = finished(&entry);
        if let Some(map) = job.as_object_mut() {
            map.insert("outputs".into(), entry.outcome.outputs.clone());
            map.insert("execution_status".into(), entry.status());
            map.insert("workflow".into(), json!({"prompt": entry.item.prompt, "extra_data": entry.item.extra}));
        }
        return json_answer(&job);
    }
    match all(&shared).into_iter().find(|job| job["id"] == id.as_str()) {
        Some(job) => json_answer(&job),
        None => json_error(StatusCode::NOT_FOUND, &json!({"error": "Job not found"})),
    }
}

async fn cancel(State(shared): Engine, Path(id): Path<String>) -> Response {
    json_answer(&json!({"cancelled": cancel_one(&shared, &id)}))
}

async fn cancel_many(State(shared): Engine, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return crash() };
    let Some(ids) = body.get("job_ids").and_then(Value::as_array) else {
        return json_error(StatusCode::BAD_REQUEST, &json!({"error": "job_ids must be an array"}));
    };
    let canonical = |id: &&Value| {
        let text = id.as_str().unwrap_or_default();
        uuid::Uuid::try_parse(text).is_ok_and(|uuid| uuid.to_string() == text)
    };
    let invalid: Vec<&Value> = ids.iter().filter(|id| !canonical(id)).collect();
    if !invalid.is_empty() {
        let answer = json!({"error": "invalid job ids", "invalid_ids": invalid});
        return json_error(StatusCode::BAD_REQUEST, &answer);
    }
    let mut cancelled = false;
    for id in ids.iter().filter_map(Value::as_str) {
        cancelled |= cancel_one(&shared, id);
    }
    json_answer(&json!({"cancelled": cancelled}))
}

fn cancel_one(shared: &Shared, id: &str) -> bool {
    shared.interrupts.fetch_add(1, Ordering::Relaxed);
    if shared.faults.take_lost_interrupt() {
        return true;
    }
    shared.queue.if_running(id, || shared.interrupt()) || shared.queue.delete(id, &shared.hub)
}

fn all(shared: &Shared) -> Vec<Value> {
    let mut jobs: Vec<Value> = shared.queue.history().iter().map(finished).collect();
    jobs.extend(shared.queue.running().map(|item| unfinished(&item, "in_progress").into()));
    jobs.extend(shared.queue.pending().iter().map(|item| Value::from(unfinished(item, "pending"))));
    jobs
}

fn unfinished(item: &Item, status: &str) -> Object {
    let mut job = Object::new();
    job.insert("id".into(), item.id.clone().into());
    job.insert("status".into(), status.into());
    job.insert("priority".into(), item.number.clone().into());
    if let Some(time) = item.extra.get("create_time") {
        job.insert("create_time".into(), time.clone());
    }
    job
}

fn finished(entry: &Entry) -> Value {
    let messages = &entry.outcome.messages;
    let message = |kind: &str| messages.iter().find(|message| message[0] == kind).map(|message| &message[1]);
    let status = match (entry.outcome.succeeded, message("execution_interrupted")) {
        (true, _) => "completed",
        (false, Some(_)) => "cancelled",
        (false, None) => "failed",
    };
    let mut job = unfinished(&entry.item, status);
    let stamp = |message: Option<&Value>| message.and_then(|data| data.get("timestamp")).cloned();
    if let Some(start) = stamp(message("execution_start")) {
        job.insert("execution_start_time".into(), start);
    }
    if let Some(end) = stamp(messages.last().map(|message| &message[1])) {
        job.insert("execution_end_time".into(), end);
    }
    if let Some(error) = message("execution_error") {
        job.insert("execution_error".into(), error.clone());
    }
    let (count, preview) = outputs(&entry.outcome.outputs);
    job.insert("outputs_count".into(), count.into());
    if let Some(preview) = preview {
        job.insert("preview_output".into(), preview);
    }
    job.into()
}

/// How many files there are, and the one to show.
fn outputs(outputs: &Value) -> (usize, Option<Value>) {
    let (mut count, mut first) = (0, None);
    for (node, kinds) in outputs.as_object().into_iter().flatten() {
        for (kind, items) in kinds.as_object().into_iter().flatten() {
            for file in items.as_array().into_iter().flatten().filter(|item| item.get("filename").is_some()) {
                count += 1;
                if first.is_none() {
                    let mut file = file.as_object().cloned().unwrap_or_default();
                    file.insert("nodeId".into(), node.as_str().into());
                    file.insert("mediaType".into(), kind.as_str().into());
                    first = Some(file.into());
                }
            }
        }
    }
    (count, first)
}
