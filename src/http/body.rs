//! Reading the body of a request, field by field, so that a refusal names the field.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{StatusCode, header},
};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::{
    body_room::{GivesWay, Room, Share},
    error::ApiError,
};
use crate::{
    runner::{ConvertRequest, ExecuteRequest, WorkflowGiven},
    text::clip_to,
    workflow::Edits,
};

/// How long a client may take to send its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A body up to this size is nothing to be careful about.
const SMALL_BYTES: usize = 16 << 10;

/// Larger bodies share this much, as they come, until they are understood (which takes up to thirty times as much),
/// however many callers there are.
const LARGE_BODIES_BYTES: usize = 16 << 20;

/// Texts are paths, names and a command line; what is accepted is kept, and written with every change.
const MAX_TEXT_BYTES: usize = 4096;

/// Input images of one request.
const MAX_LISTED: usize = 256;

static LARGE_BODIES: Room = Room::new(LARGE_BODIES_BYTES);

/// The caller's own name for its request, if it gives one.
///
/// # Errors
/// A 400 for one that is empty, longer than 255 characters, or not plain text.
pub(super) fn idempotency_key(request: &Request) -> Result<Option<String>, ApiError> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim).filter(|key| (1..=255).contains(&key.len()));
    let wrong = || ApiError::bad_request("The header Idempotency-Key must be 1 to 255 plain characters");
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// The body of a request that must be a JSON object.
///
/// # Errors
/// 415 for another content type, 413 when it is too big, 408 when it is too slow, 400 when it is no JSON object, 503
/// while too many large ones are being read.
pub(super) async fn read_object(request: Request, max_bytes: usize) -> Result<Map<String, Value>, ApiError> {
    if !is_json(&request) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The request body must be JSON, with the header Content-Type: application/json",
        ));
    }
    let too_big = || {
        let message = format!("The request body is larger than {max_bytes} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if declared_length(&request).is_some_and(|length| length > max_bytes as u64) {
        return Err(too_big());
    }
    let share = LARGE_BODIES.enter();
    let body = read(request.into_body(), max_bytes, &share).await?.ok_or_else(too_big)?;
    share.is_whole();
    match serde_json::from_slice(&body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::bad_request("The request body must be a JSON object")),
        Err(error) => Err(ApiError::bad_request(format!("The request body is not valid JSON: {error}"))),
    }
}

/// `None` when there is more than `max_bytes`.
async fn read(body: Body, max_bytes: usize, share: &Share<'_>) -> Result<Option<Vec<u8>>, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut content = Vec::new();
    let collect = async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::bad_request("The request body ended early"))?;
            let length = content.len() + chunk.len();
            if length > max_bytes {
                return Ok(false);
            }
            if length > SMALL_BYTES {
                share.hold(length).await.map_err(crowded)?;
            }
            content.extend_from_slice(&chunk);
        }
        Ok(true)
    };
    let collect = async {
        tokio::select! {
            complete = collect => complete,
            gives_way = share.given_up() => Err(crowded(gives_way)),
        }
    };
    let timed_out = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time");
    let complete = tokio::time::timeout(READ_TIMEOUT, collect).await.map_err(timed_out)??;
    Ok(complete.then_some(content))
}

fn crowded(_: GivesWay) -> ApiError {
    ApiError::unavailable("Too many large requests are being read; try again later")
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn declared_length(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a caller of execute wants.
pub(super) struct Execute {
    pub(super) request: ExecuteRequest,
    /// Only to be told what would become of it.
    pub(super) dry_run: bool,
    pub(super) warnings: Vec<String>,
}

/// The fields of execute, and a warning for each unknown one.
///
/// # Errors
/// A 400 that names the first missing or wrong field.
pub(super) fn execute_request(mut body: Map<String, Value>) -> Result<Execute, ApiError> {
    let mut fields = Fields(&mut body);
    let request = ExecuteRequest {
        ssh_connection: fields.required_text("ssh_connection")?,
        workflow_file: fields.required_text("workflow_file")?,
        workflow_name: fields.text("workflow_name")?,
        input_images: fields.texts("input_images")?,
        output_dir: fields.text("output_dir")?,
        comfyui_port: fields.port("comfyui_port")?,
        comfyui_input_dir: fields.text("comfyui_input_dir")?,
        comfyui_output_dir: fields.text("comfyui_output_dir")?,
        edits: Edits { parameters: fields.values("parameters")?, randomize_seeds: fields.flag("randomize_seeds")? },
    };
    let dry_run = fields.flag("dry_run")?;
    Ok(Execute { request, dry_run, warnings: unknown_fields(&body) })
}

/// The fields of convert, and a warning for each unknown one.
///
/// # Errors
/// A 400 that names the first missing or wrong field.
pub(super) fn convert_request(mut body: Map<String, Value>) -> Result<(ConvertRequest, Vec<String>), ApiError> {
    let mut fields = Fields(&mut body);
    let workflow = match (fields.text("workflow_file")?, fields.take("workflow")) {
        (Some(path), None) => WorkflowGiven::File(path),
        (None, Some(workflow @ Value::Object(_))) => WorkflowGiven::Inline(workflow),
        (None, Some(_)) => return Err(wrong("workflow", "an object")),
        (None, None) => return Err(ApiError::bad_request("Missing required field: workflow_file or workflow")),
        (Some(_), Some(_)) => return Err(ApiError::bad_request("Give either workflow_file or workflow, not both")),
    };
    let request = ConvertRequest {
        workflow,
        ssh_connection: fields.text("ssh_connection")?,
        comfyui_port: fields.port("comfyui_port")?,
        object_info_file: fields.text("object_info_file")?,
    };
    if request.ssh_connection.is_some() && request.object_info_file.is_some() {
        return Err(ApiError::bad_request("Give either ssh_connection or object_info_file, not both"));
    }
    Ok((request, unknown_fields(&body)))
}

fn unknown_fields(left: &Map<String, Value>) -> Vec<String> {
    let brief = |name: &String| clip_to(name, 80);
    left.keys().take(20).map(|name| format!("Unknown field ignored: {}", brief(name))).collect()
}

/// Takes fields out of a body; `null` is the same as absent.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    fn required_text(&mut self, name: &str) -> Result<String, ApiError> {
        match self.take(name) {
            Some(Value::String(text)) if !text.trim().is_empty() => bounded(name, text),
            Some(Value::String(_)) => Err(ApiError::bad_request(format!("Field {name} must not be empty"))),
            Some(_) => Err(wrong(name, "a string")),
            None => Err(ApiError::bad_request(format!("Missing required field: {name}"))),
        }
    }

    /// An empty text counts as absent: forms send one for a field that was left alone.
    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            Some(Value::String(text)) => {
                bounded(name, text).map(|text| Some(text).filter(|text| !text.trim().is_empty()))
            }
            Some(_) => Err(wrong(name, "a string")),
            None => Ok(None),
        }
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(vec![]) };
        let Value::Array(items) = value else { return Err(wrong(name, "a list of strings")) };
        if items.len() > MAX_LISTED {
            return Err(ApiError::bad_request(format!("Field {name} must not have more than {MAX_LISTED} entries")));
        }
        let text = |item| match item {
            Value::String(text) if !text.is_empty() => bounded(name, text),
            _ => Err(wrong(name, "a list of non-empty strings")),
        };
        items.into_iter().map(text).collect()
    }

    fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(wrong(name, "true or false")),
            None => Ok(false),
        }
    }

    fn values(&mut self, name: &str) -> Result<Map<String, Value>, ApiError> {
        match self.take(name) {
            Some(Value::Object(values)) if values.len() > MAX_LISTED => {
                Err(ApiError::bad_request(format!("Field {name} must not have more than {MAX_LISTED} entries")))
            }
            Some(Value::Object(values)) => Ok(values),
            Some(_) => Err(wrong(name, "an object with values by name")),
            None => Ok(Map::new()),
        }
    }

    fn port(&mut self, name: &str) -> Result<Option<u16>, ApiError> {
        let wrong = || wrong(name, "an integer from 1 to 65535");
        let Some(value) = self.take(name) else { return Ok(None) };
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        port.map(Some).ok_or_else(wrong)
    }
}

fn bounded(name: &str, text: String) -> Result<String, ApiError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ApiError::bad_request(format!("Field {name} must not be longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(text)
}

fn wrong(name: &str, expected: &str) -> ApiError {
    ApiError::bad_request(format!("Field {name} must be {expected}"))
}
