//! Chapter: the prompt goes to the box, at most once.
//!
//! The prompt's id is chosen and on disk before anything is sent, and so is a mark by which the ComfyUI that gets it is
//! known again. After an answer that leaves open whether the box took it, [`follow`](super::follow) looks for the prompt
//! on the box. It is sent again only when that same ComfyUI has been up throughout and does not know it: then it never
//! took it. Under the same id all the same, which newer servers refuse to take twice.

use std::time::Duration;

use super::{error::StepError, execution::Execution, link::Link};
use crate::{
    comfy::{self, Findings, SubmitError},
    workflow::{
        ErrorCode, ErrorDetail, Event, Failure, Finding, FindingCode, Graph, NodeId, Secrets, ServerMark, Severity,
        Submission, WorkflowState, finding::MAX_FINDINGS,
    },
};

/// An answer that takes longer may be lost: the prompt is looked for on the box meanwhile.
const ANSWER_IS_LATE: Duration = Duration::from_secs(5);

/// How often a prompt may be sent that ComfyUI never takes.
const MAX_SENDS: u32 = 3;

impl Execution {
    /// Sends the prompt.
    pub(super) async fn submit(&self, link: &Link, graph: &Graph) -> Result<(), StepError> {
        let ((), mark) = tokio::try_join!(link.knock(), self.mark_server(link))?;
        let state = self.state()?;
        let gone = || StepError::fatal(ErrorCode::Internal, "the workflow is no longer on record");
        let revision = self.apply(Event::Submitting(mark)).ok_or_else(gone)?;
        if let Err(error) = self.store.durable(revision).await {
            // Nothing was sent: it waits for the disk.
            self.apply(Event::NotTaken);
            return Err(error.into());
        }
        let (prompt, secrets) = (graph.to_value(), Secrets::of(graph));
        let answer = tokio::select! {
            answer = link.client.submit(&prompt, &state.client_id, &state.prompt_id, &state.id) => answer,
            () = arrival(link, &state) => Err(SubmitError::Unclear { cause: "the answer did not come".into() }),
        };
        match answer {
            Ok(submitted) => {
                tracing::info!(prompt.id = %submitted.prompt_id, "submitted");
                if !submitted.findings.is_empty() {
                    self.apply(Event::PartlyRefused(secrets.hide_in(partial_refusal(&submitted.findings))));
                }
                self.apply(Event::Submitted(submitted.prompt_id));
                Ok(())
            }
            Err(SubmitError::AlreadyAccepted) => {
                self.apply(Event::Submitted(state.prompt_id.clone()));
                Ok(())
            }
            Err(SubmitError::Unclear { cause }) => {
                let cause = secrets.hide(cause);
                tracing::warn!(cause, "it is unclear whether the box took the prompt");
                self.apply(Event::AnswerLost(cause));
                Ok(())
            }
            Err(SubmitError::NotTaken { cause }) => {
                self.apply(Event::NotTaken);
                Err(StepError::LinkLost(Failure::new(ErrorCode::ComfyuiUnreachable, secrets.hide(cause))))
            }
            Err(refused) => Err(StepError::Fatal(refusal(&refused, graph))),
        }
    }

    /// The mark of the ComfyUI that is to get the prompt. One workflow at a time sets it, so that there is one file.
    async fn mark_server(&self, link: &Link) -> Result<Option<ServerMark>, StepError> {
        if let Some(mark) = link.client.server_mark().await? {
            return Ok(Some(mark));
        }
        let request = self.request()?;
        let _turn = self.marking.take(format!("{} {}", request.ssh_connection, request.comfyui_port)).await;
        Ok(link.client.mark_server().await?)
    }

    /// Whether a prompt that the box does not know, after an unclear submission, was certainly never taken.
    pub(super) async fn was_never_taken(&self, link: &Link) -> Result<bool, StepError> {
        let state = self.state()?;
        let Some(sent_to) = state.server_mark.as_ref().filter(|_| state.submission == Submission::Unclear) else {
            return Ok(false);
        };
        Ok(link.client.server_mark().await?.as_ref() == Some(sent_to))
    }

    /// Lets a prompt that was never taken be sent again, but not without end.
    pub(super) fn send_again(&self) -> Result<(), StepError> {
        let state = self.state()?;
        let cause = state.unclear_because.as_deref().unwrap_or("the service was stopped while it was being sent");
        if state.times_sent >= MAX_SENDS {
            let message = format!("ComfyUI did not take the prompt, which was sent {MAX_SENDS} times: {cause}");
            return Err(StepError::fatal(ErrorCode::ComfyuiUnreachable, message));
        }
        tracing::info!(cause, "ComfyUI never took the prompt; sending it again");
        self.apply(Event::NeverTaken);
        Ok(())
    }

    /// ComfyUI would run only the valid outputs: that is not what was asked for, so it is to run none.
    pub(super) async fn stop_if_partly_refused(&self, link: &Link) -> Result<(), StepError> {
        let Some(failure) = self.state()?.refusal.clone() else { return Ok(()) };
        self.stop_prompt(link).await?;
        Err(StepError::Fatal(failure))
    }
}

/// The failure that shows when a prompt whose answer was lost runs for fewer outputs than it has.
pub(super) fn missing_outputs(state: &WorkflowState, targets: Option<&[NodeId]>) -> Option<Failure> {
    let targets = targets?;
    let missing: Vec<String> = state
        .output_nodes
        .iter()
        .filter(|node| !targets.contains(node))
        .filter_map(|node| state.nodes.get(node).map(|known| format!("{node} ({})", known.class_type)))
        .collect();
    (!missing.is_empty()).then(|| {
        let message = format!(
            "ComfyUI refused a part of the workflow, so none of it was run: node {}; its reasons were lost with the \
             connection, run it again to see them",
            missing.join(", ")
        );
        Failure::new(ErrorCode::InvalidWorkflow, message)
    })
}

fn partial_refusal(findings: &Findings) -> Failure {
    let message = format!("ComfyUI refused a part of the workflow, so none of it was run: {findings}");
    with_first_finding(Failure::new(ErrorCode::InvalidWorkflow, message), findings)
}

/// Resolves when the box has the prompt although its answer does not come. Looks only after a while.
async fn arrival(link: &Link, state: &WorkflowState) {
    loop {
        tokio::time::sleep(ANSWER_IS_LATE).await;
        let queued = link.client.queue().await.is_ok_and(|queue| queue.place_of(&state.prompt_id, &state.id).is_some());
        if queued || matches!(link.client.find_in_history(&state.prompt_id, &state.id).await, Ok(Some(_))) {
            return;
        }
    }
}

fn refusal(error: &SubmitError, graph: &Graph) -> Failure {
    let code = match error {
        SubmitError::Refused(_) | SubmitError::TooBig => ErrorCode::InvalidWorkflow,
        _ => ErrorCode::ComfyuiUnreachable,
    };
    let SubmitError::Refused(refusal) = error else { return Failure::new(code, error.to_string()) };
    if refusal.findings.is_empty()
        && let [first, ..] = graph.nodes_in_cycles().as_slice()
    {
        // ComfyUI before v0.20 gives no reason for these.
        return Failure::new(code, format!("{error}: its links form a circle, in which node {first} stands"));
    }
    with_first_finding(Failure::new(code, error.to_string()), &refusal.findings)
}

/// The message names all findings; the fields for the node at fault have room for one.
fn with_first_finding(failure: Failure, findings: &Findings) -> Failure {
    let Some(first) = findings.iter().next() else { return failure };
    let detail = ErrorDetail {
        node_id: Some(first.node_id.clone()),
        exception_message: Some(first.message.clone()),
        findings: findings.iter().take(MAX_FINDINGS).map(in_our_words).collect(),
        ..ErrorDetail::default()
    };
    Failure { node_type: first.class_type.clone(), detail: Some(Box::new(detail)), ..failure }
}

fn in_our_words(refused: &comfy::Finding) -> Finding {
    let class = refused.class_type.clone().unwrap_or_default();
    let (message, details) = (&refused.message, &refused.details);
    Finding {
        severity: Severity::Error,
        code: FindingCode::of_refusal(&refused.kind),
        node_id: refused.node_id.to_string(),
        title: refused.title.clone().unwrap_or_else(|| class.clone()),
        node_type: class,
        input: refused.input.clone(),
        message: if details.is_empty() { message.clone() } else { format!("{message}: {details}") },
        hint: String::new(),
    }
}
