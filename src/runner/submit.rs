//! Chapter: the prompt goes to the box, at most once.
//!
//! The prompt's id is chosen and on disk before anything is sent. After an answer that leaves open whether the box
//! took it, nothing is sent again: [`follow`](super::follow) looks for the prompt on the box.

use std::time::Duration;

use super::{error::StepError, execution::Execution, link::Link};
use crate::{
    comfy::{Findings, SubmitError},
    workflow::{ErrorCode, Event, Failure, Graph, PromptId, WorkflowState},
};

/// An answer that takes longer may be lost: the prompt is looked for on the box meanwhile.
const ANSWER_IS_LATE: Duration = Duration::from_secs(5);

impl Execution {
    /// Sends the prompt.
    pub(super) async fn submit(&self, link: &Link, graph: &Graph) -> Result<(), StepError> {
        let state = self.state()?;
        if let Some(revision) = self.apply(Event::Submitting) {
            self.store.durable(revision).await?;
        }
        let prompt = graph.to_value();
        let answer = tokio::select! {
            answer = link.client.submit(&prompt, &state.client_id, &state.prompt_id, &state.id) => answer,
            id = arrival(link, &state) => {
                self.apply(Event::Submitted(id));
                return Ok(());
            }
        };
        match answer {
            Ok(submitted) => {
                tracing::info!(prompt.id = %submitted.prompt_id, "submitted");
                self.apply(Event::Submitted(submitted.prompt_id));
                if submitted.findings.is_empty() { Ok(()) } else { self.refuse_part(link, &submitted.findings).await }
            }
            Err(SubmitError::AlreadyAccepted) => {
                self.apply(Event::Submitted(state.prompt_id.clone()));
                Ok(())
            }
            Err(SubmitError::Unclear { cause }) => {
                tracing::warn!(cause, "it is unclear whether the box took the prompt");
                Ok(())
            }
            Err(SubmitError::NotTaken { cause }) => {
                self.apply(Event::NotTaken);
                Err(StepError::LinkLost(cause))
            }
            Err(refused) => Err(StepError::Fatal(refusal(&refused))),
        }
    }

    /// ComfyUI would run only the valid outputs: that is not what was asked for, so it runs none.
    async fn refuse_part(&self, link: &Link, findings: &Findings) -> Result<(), StepError> {
        self.stop_prompt(link).await?;
        let message = format!("ComfyUI refused a part of the workflow, so none of it was run: {findings}");
        Err(StepError::Fatal(Failure::new(ErrorCode::InvalidWorkflow, message)))
    }
}

/// Resolves when the box has the prompt although its answer does not come. Looks only after a while.
async fn arrival(link: &Link, state: &WorkflowState) -> PromptId {
    loop {
        tokio::time::sleep(ANSWER_IS_LATE).await;
        if let Ok(queue) = link.client.queue().await
            && let Some((id, _)) = queue.place_of(&state.prompt_id, &state.id)
        {
            return id;
        }
        if let Ok(Some((id, _))) = link.client.find_in_history(&state.prompt_id, &state.id).await {
            return id;
        }
    }
}

fn refusal(error: &SubmitError) -> Failure {
    let code = match error {
        SubmitError::Refused(_) | SubmitError::TooBig => ErrorCode::InvalidWorkflow,
        _ => ErrorCode::ComfyuiUnreachable,
    };
    Failure::new(code, error.to_string())
}
