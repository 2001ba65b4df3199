//! Chapter: the user cancels.
//!
//! A prompt that waits is deleted from ComfyUI's queue; one that runs is interrupted, but only while it is certainly
//! ours that runs, since servers before v0.3.57 interrupt whatever runs. That is repeated until the prompt is gone:
//! an interrupt that falls between two prompts is lost, and a node without steps finishes first.

use std::time::{Duration, Instant};

use super::{error::StepError, execution::Execution, link::Link, patience::Patience};
use crate::{
    comfy::Place,
    workflow::{ErrorCode, Event, Failure, Phase, Submission, WorkflowState},
};

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// An interrupt is repeated after this.
const INTERRUPT_AGAIN: Duration = Duration::from_secs(3);

/// A prompt whose submission was unclear must be absent for this long before it counts as not there.
const ABSENT_FOR: Duration = Duration::from_secs(3);

impl Execution {
    /// Makes sure that the prompt does not run (any more), and says how the workflow ends.
    pub(super) async fn stop(&self) -> Event {
        let nothing_runs =
            |state: &WorkflowState| state.submission == Submission::None || state.phase() == Some(Phase::Downloading);
        if self.state().is_ok_and(|state| nothing_runs(&state)) {
            return Event::Cancelled;
        }
        let mut cause = Failure::new(ErrorCode::SshUnreachable, "cancel was requested");
        let mut patience = Patience::new();
        loop {
            let link = match self.reconnect(cause, &mut patience).await {
                Ok(link) => link,
                Err(failure) => return Event::CancelUnconfirmed(unconfirmed(&failure)),
            };
            match self.stop_prompt(&link).await {
                Ok(()) => return Event::Cancelled,
                Err(StepError::Fatal(failure)) => return Event::CancelUnconfirmed(unconfirmed(&failure)),
                Err(StepError::LinkLost(failure) | StepError::Trouble(failure)) => cause = failure,
            }
        }
    }

    /// Returns when the prompt is neither waiting nor running.
    pub(super) async fn stop_prompt(&self, link: &Link) -> Result<(), StepError> {
        let begun = Instant::now();
        let mut interrupted: Option<Instant> = None;
        let mut absent_since: Option<Instant> = None;
        loop {
            let state = self.state()?;
            let queue = link.client.queue().await?;
            match queue.place_of(&state.prompt_id, &state.id) {
                Some((id, Place::Pending(_))) => {
                    absent_since = None;
                    link.client.delete_pending(&id).await?;
                }
                Some((id, Place::Running)) => {
                    absent_since = None;
                    self.report_stall(begun.elapsed())?;
                    if begun.elapsed() >= self.options.unreachable_limit {
                        return Err(StepError::Fatal(unstoppable(begun.elapsed())));
                    }
                    if interrupted.is_none_or(|at| at.elapsed() >= INTERRUPT_AGAIN) {
                        tracing::info!(prompt.id = %id, "interrupting");
                        let cancelled = link.has_jobs_api() && link.client.cancel_job(&id).await?.is_some();
                        if !cancelled {
                            link.client.interrupt(&id).await?;
                        }
                        interrupted = Some(Instant::now());
                    }
                }
                None if state.submission == Submission::Accepted => return Ok(()),
                None => {
                    let since = *absent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= ABSENT_FOR {
                        return Ok(());
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = link.lost() => return Err(StepError::connection_lost()),
            }
        }
    }
}

fn unconfirmed(failure: &Failure) -> Failure {
    let message = format!(
        "cancel was requested, but whether the run on the box has stopped could not be confirmed: {}",
        failure.message
    );
    Failure::new(failure.code, message)
}

fn unstoppable(tried: Duration) -> Failure {
    let message = format!(
        "ComfyUI has not stopped it for {} s, though it was asked again and again; it seems to hang: restart it on the box",
        tried.as_secs()
    );
    Failure::new(ErrorCode::Wedged, message)
}
