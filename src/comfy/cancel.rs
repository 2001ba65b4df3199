//! Stopping what waits or runs, and freeing memory. Each call is sent once: the caller looks, and repeats.

use serde_json::{Value, json};

use super::{
    answer::SMALL_BYTES,
    client::{Client, SMALL, percent_encode},
    error::ComfyError,
};
use crate::workflow::PromptId;

impl Client {
    /// Takes a prompt out of the line. ComfyUI says yes whether or not it was there, and does nothing to a prompt
    /// that runs.
    ///
    /// # Errors
    /// No answer, no ComfyUI, or an error status.
    pub async fn delete_pending(&self, prompt: &PromptId) -> Result<(), ComfyError> {
        self.post("POST /queue", "/queue", &json!({"delete": [prompt]}), SMALL_BYTES, SMALL).await?.success()
    }

    /// Interrupts the run of a prompt. The caller has made sure that this prompt runs: servers before v0.3.57 ignore
    /// the id and interrupt whatever runs. It can be lost between two prompts, and a node without steps ends first.
    ///
    /// # Errors
    /// No answer, no ComfyUI, or an error status.
    pub async fn interrupt(&self, prompt: &PromptId) -> Result<(), ComfyError> {
        self.post("POST /interrupt", "/interrupt", &json!({"prompt_id": prompt}), SMALL_BYTES, SMALL).await?.success()
    }

    /// Cancels a prompt in any state, in one step, on servers that can (v0.26 and newer). `Some(false)` when it had
    /// ended or is unknown; `None` when the server lacks the call.
    ///
    /// # Errors
    /// No answer, no ComfyUI, or another error status.
    pub async fn cancel_job(&self, prompt: &PromptId) -> Result<Option<bool>, ComfyError> {
        let path = format!("/api/jobs/{}/cancel", percent_encode(prompt.as_str()));
        let answer = self.post("POST /api/jobs/{id}/cancel", &path, &json!({}), SMALL_BYTES, SMALL).await?;
        if matches!(answer.status.as_u16(), 404 | 405) {
            return Ok(None);
        }
        Ok(answer.json().await?.get("cancelled").and_then(Value::as_bool))
    }

    /// Asks ComfyUI to drop its models and caches. It does so between two prompts, after this returned.
    ///
    /// # Errors
    /// No answer, no ComfyUI, or an error status.
    pub async fn free_memory(&self) -> Result<(), ComfyError> {
        let body = json!({"unload_models": true, "free_memory": true});
        self.post("POST /free", "/free", &body, SMALL_BYTES, SMALL).await?.success()
    }
}
