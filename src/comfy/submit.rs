//! `POST /prompt`: sent once, and every answer told apart by one question: may the box have taken it?

use serde::Serialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{
    answer::Answer,
    client::{Client, LARGE},
    error::ComfyError,
    queue::{MARKER_KEY, id_of},
    refusal::{Findings, Refusal},
};
use crate::{
    json::parse_lenient,
    workflow::{ClientId, PromptId, WorkflowId},
};

const WHAT: &str = "POST /prompt";

/// Refusals repeat lists of choices.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// A prompt that ComfyUI has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The id by which the server knows it. Servers before v0.3.45 choose their own.
    pub prompt_id: PromptId,
    /// Faults of parts that ComfyUI will skip; the rest runs.
    pub findings: Findings,
}

/// Why a prompt was not taken, or that nobody knows.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The graph is not valid.
    #[error("{0}")]
    Refused(Refusal),
    /// The box has a prompt with this id: an earlier try arrived.
    #[error("ComfyUI already has a prompt with this id")]
    AlreadyAccepted,
    /// The request is longer than the server's limit, 100 MB unless set otherwise.
    #[error("ComfyUI refused the workflow: it is larger than its limit for requests (--max-upload-size)")]
    TooBig,
    /// Something in front of ComfyUI, or its own access check, did not let it through.
    #[error("the prompt was not let through to ComfyUI: {found}")]
    Denied {
        /// What was found, such as `HTTP 401 asking for a login`.
        found: String,
    },
    /// What answers is not ComfyUI.
    #[error("what answers is not ComfyUI: {found}")]
    Foreign {
        /// What was found.
        found: String,
    },
    /// It certainly was not taken, for a reason that may pass; it may be sent again.
    #[error("the prompt was not taken: {cause}")]
    NotTaken {
        /// Why.
        cause: String,
    },
    /// The answer is lost: the box may have taken it or not. Look for it there before sending it again.
    #[error("it is unclear whether ComfyUI took the prompt: {cause}")]
    Unclear {
        /// What happened instead of an answer.
        cause: String,
    },
}

#[derive(Serialize)]
struct Body<'a> {
    prompt: &'a Value,
    client_id: &'a ClientId,
    prompt_id: &'a PromptId,
    extra_data: Map<String, Value>,
}

impl Client {
    /// Sends a graph in API format. It is marked with the workflow's id, by which
    /// [`place_of`](super::Queue::place_of) and [`find_in_history`](Self::find_in_history) recognise it on servers
    /// that do not keep our prompt id. Never sent twice by this call.
    ///
    /// # Errors
    /// [`SubmitError::Unclear`] whenever the box may have taken it, also for ComfyUI's own HTTP 500: some of these
    /// come after the prompt was queued (server.py, post_prompt, v0.3.64).
    pub async fn submit(
        &self,
        graph: &Value,
        client_id: &ClientId,
        prompt_id: &PromptId,
        workflow: &WorkflowId,
    ) -> Result<Submitted, SubmitError> {
        let mut extra_data = Map::new();
        extra_data.insert(MARKER_KEY.into(), json!({"workflow_id": workflow, "prompt_id": prompt_id}));
        let body = Body { prompt: graph, client_id, prompt_id, extra_data };
        let answer =
            self.post(WHAT, "/prompt", &body, MAX_ANSWER_BYTES, LARGE).await.map_err(SubmitError::from_call)?;
        let submitted = read(&answer, graph).await?;
        self.note_id(submitted.prompt_id == *prompt_id);
        Ok(submitted)
    }
}

impl SubmitError {
    fn from_call(error: ComfyError) -> Self {
        match &error {
            ComfyError::Unreachable { sent: false, .. } => Self::NotTaken { cause: error.to_string() },
            _ => Self::Unclear { cause: error.to_string() },
        }
    }
}

async fn read(answer: &Answer, graph: &Value) -> Result<Submitted, SubmitError> {
    let status = answer.status.as_u16();
    match status {
        // Also a redirect that leads back here: followed, it would become a GET.
        300..=399 | 401 | 403 | 407 => Err(SubmitError::Denied { found: answer.describe() }),
        408 | 500..=599 => Err(SubmitError::Unclear { cause: answer.describe() }),
        409 => Err(SubmitError::AlreadyAccepted),
        413 => Err(SubmitError::TooBig),
        429 => Err(SubmitError::NotTaken { cause: answer.describe() }),
        400 if !answer.is_foreign() => Err(SubmitError::Refused(refusal(answer, graph).await)),
        200..=299 => accepted(answer, graph).await,
        _ => Err(SubmitError::Foreign { found: answer.describe() }),
    }
}

async fn refusal(answer: &Answer, graph: &Value) -> Refusal {
    match answer.make_of_body(|body| parse_lenient(body).map_err(|error| error.to_string())).await {
        Ok(body) if body.is_object() => Refusal::read(&body, graph),
        _ => Refusal::from_sentence(answer.describe()),
    }
}

async fn accepted(answer: &Answer, graph: &Value) -> Result<Submitted, SubmitError> {
    let foreign = || SubmitError::Foreign { found: answer.describe() };
    let body = answer.json().await.map_err(|_| foreign())?;
    let prompt_id = body.get("prompt_id").and_then(id_of).ok_or_else(foreign)?;
    let node_errors = body.get("node_errors").unwrap_or(&Value::Null);
    Ok(Submitted { prompt_id: prompt_id.into(), findings: Findings::read(node_errors, graph) })
}
