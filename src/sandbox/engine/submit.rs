//! `POST /prompt`: from a request to a queued prompt, or to what is wrong with it.
//!
//! Used by the routes. The order of the checks is that of `post_prompt` in ComfyUI's `server.py`, because it shows:
//! a number is used up even if the prompt is refused.

use std::sync::atomic::Ordering;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Number, Value, json};

use super::Shared;
use super::json::{Object, python_str};
use super::process::ConnectionCut;
use super::queue::Item;
use super::routes::{Engine, RawBody, crash, json_answer, json_error, parse};
use super::validate::{Refusal, validate};
use crate::sandbox::fault::LostAnswer;

/// Secrets of paid nodes, which ComfyUI keeps out of sight.
const SENSITIVE: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

pub(super) async fn submit(
    State(shared): Engine,
    Extension(ConnectionCut(cut)): Extension<ConnectionCut>,
    body: RawBody,
) -> Response {
    if shared.faults.take_lost_prompt() {
        cut.cancel();
        std::future::pending::<()>().await;
    }
    let answer = match parse(body) {
        Ok(body) => accept(&shared, body),
        Err(answer) => *answer,
    };
    if answer.status().is_success() {
        match shared.faults.take_lost_answer() {
            Some(LostAnswer::Never) => std::future::pending::<()>().await,
            Some(LostAnswer::Cut) => {
                cut.cancel();
                std::future::pending::<()>().await;
            }
            None => {}
        }
    }
    answer
}

/// `post_prompt`.
fn accept(shared: &Shared, body: Value) -> Response {
    let mut body = match body {
        Value::Object(body) => body,
        // Python's `in` works on these, and finds nothing.
        Value::Array(_) | Value::String(_) => Object::new(),
        _ => return crash(),
    };
    let Some(number) = number(shared, &body) else { return crash() };
    let Some(mut prompt) = body.shift_remove("prompt") else {
        let text = "No prompt provided";
        let error = json!({"type": "no_prompt", "message": text, "details": text, "extra_info": {}});
        return json_error(StatusCode::BAD_REQUEST, &json!({"error": error, "node_errors": {}}));
    };
    let id = match prompt_id(shared, &body) {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let targets = body.get("partial_execution_targets").filter(|_| shared.version.has_partial_execution());
    let verdict = match validate(&mut prompt, targets, shared.version, &shared.folders) {
        Ok(verdict) => verdict,
        Err(Refusal::Crash) => return crash(),
        Err(Refusal::Invalid(answer)) => return json_error(StatusCode::BAD_REQUEST, &answer),
    };
    let Some(extra) = extra_data(shared, &mut body) else { return crash() };
    let Value::Object(prompt) = prompt else { return crash() };
    let item = Item { number: number.clone(), id: id.clone(), prompt, extra, outputs: verdict.outputs };
    shared.submissions.fetch_add(1, Ordering::Relaxed);
    match shared.queue.put(item, &shared.hub) {
        Ok(()) => json_answer(&json!({"prompt_id": id, "number": number, "node_errors": verdict.node_errors})),
        Err(error) => {
            tracing::debug!(?error, "the sandbox's queue failed the way ComfyUI's does");
            crash()
        }
    }
}

fn number(shared: &Shared, body: &Object) -> Option<Number> {
    let Some(given) = body.get("number") else {
        let count = shared.queue.count();
        let front = body.get("front").is_some_and(|front| *front != Value::Bool(false) && !front.is_null());
        return Some(if front { (-count).into() } else { count.into() });
    };
    let float = match given {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Bool(on) => f64::from(u8::from(*on)),
        _ => return None,
    };
    Number::from_f64(float)
}

fn prompt_id(shared: &Shared, body: &Object) -> Result<String, Box<Response>> {
    let fresh = || uuid::Uuid::new_v4().to_string();
    let given = body.get("prompt_id");
    if !shared.version.takes_prompt_id() || shared.faults.ignores_prompt_id() {
        return Ok(fresh());
    }
    if !shared.version.is_strict_about_ids() {
        return Ok(given.map_or_else(fresh, python_str));
    }
    let id = match given {
        None | Some(Value::Null) => return Ok(fresh()),
        Some(Value::String(id)) if uuid::Uuid::try_parse(id).is_ok_and(|uuid| uuid.to_string() == *id) => id.clone(),
        Some(other) => {
            let error = json!({
                "type": "invalid_prompt_id",
                "message": "prompt_id must be a canonical UUID",
                "details": python_str(other),
                "extra_info": {},
            });
            let answer = json!({"error": error, "node_errors": {}});
            return Err(Box::new(json_error(StatusCode::BAD_REQUEST, &answer)));
        }
    };
    if shared.queue.knows(&id) {
        let answer = json!({"error": "prompt_id already exists"});
        return Err(Box::new(json_error(StatusCode::CONFLICT, &answer)));
    }
    Ok(id)
}

fn extra_data(shared: &Shared, body: &mut Object) -> Option<Object> {
    let mut extra = match body.shift_remove("extra_data") {
        Some(Value::Object(extra)) => extra,
        Some(_) => return None,
        None => Object::new(),
    };
    if let Some(client) = body.shift_remove("client_id") {
        extra.insert("client_id".into(), client);
    }
    for key in SENSITIVE {
        extra.shift_remove(key);
    }
    if shared.version.stamps_prompts() {
        extra.insert("create_time".into(), chrono::Utc::now().timestamp_millis().into());
    }
    Some(extra)
}
