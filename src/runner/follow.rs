//! Chapter: the run is followed to its end.
//!
//! The websocket only makes progress visible sooner. What is true comes from ComfyUI's queue and history, in that
//! order: read the other way round, a prompt that ends in between is in neither.

use std::{sync::atomic::Ordering, time::Duration};

use chrono::Utc;
use tokio::time::sleep_until;

use super::{
    ear::Ear, early::EarlyFetches, error::StepError, execution::Execution, hearing::Hearing, link::Link, looks::Looks,
    submit::missing_outputs,
};
use crate::{
    comfy::{ComfyError, HistoryEntry, NodeFailure, Outcome, Place, Queue, SocketMessage},
    workflow::{BoxEvent, ErrorCode, ErrorDetail, Event, Failure, NodeId, Phase, PromptId, Submission, WorkflowState},
};

/// The pause before a look because something moved in ComfyUI's line; many such messages make one look.
const LINE_MOVED: Duration = Duration::from_millis(500);

/// How long it is tried to stop a prompt that does not move.
const STOP_WEDGED: Duration = Duration::from_secs(30);

/// How a run ended, as history tells it.
pub(super) type Ending = HistoryEntry;

/// What following a prompt came to.
#[derive(Debug)]
pub(super) enum Followed {
    /// It is over.
    Ended(Box<Ending>),
    /// The box no longer knows it: what the workflow fails with, unless it may run again.
    Lost(Failure),
    /// The box never took it: it may be sent again.
    NotTaken,
}

impl Execution {
    /// Follows the prompt until history has it. `ear` is one that was open before the submission.
    /// Outputs that nodes report meanwhile begin to come here through `early`.
    pub(super) async fn follow(
        &self,
        link: &Link,
        ear: Option<Ear>,
        early: &mut EarlyFetches<'_>,
    ) -> Result<Followed, StepError> {
        let mut hearing = Hearing::new(ear, self.state()?.prompt_id.clone());
        let followed = self.follow_hearing(link, &mut hearing, early).await;
        early.beside(hearing.close()).await;
        Ok(match followed? {
            Followed::Ended(ending) => Followed::Ended(Box::new(with_details(*ending, hearing.failure))),
            absent @ (Followed::Lost(_) | Followed::NotTaken) => absent,
        })
    }

    async fn follow_hearing(
        &self,
        link: &Link,
        hearing: &mut Hearing,
        early: &mut EarlyFetches<'_>,
    ) -> Result<Followed, StepError> {
        let mut looks = Looks::new();
        loop {
            tokio::select! {
                message = hearing.next() => match message {
                    Some(message) => {
                        if self.take_in(hearing, &mut looks, &message)? {
                            early.take_up(&*self.state()?);
                        }
                    }
                    None => looks.soon(),
                },
                () = sleep_until(looks.next.into()) => {
                    if let Some(followed) = early.beside(self.look(link, &mut looks, hearing)).await? {
                        return Ok(followed);
                    }
                }
                () = early.next() => {}
                () = link.lost() => return Err(StepError::connection_lost()),
            }
        }
    }

    /// Takes in one message, and says whether a node reported results.
    fn take_in(&self, hearing: &mut Hearing, looks: &mut Looks, message: &SocketMessage) -> Result<bool, StepError> {
        let decoded = hearing.understand(message);
        let has_results = decoded.events.iter().any(|event| matches!(event, BoxEvent::NodeOutput { .. }));
        for event in decoded.events {
            if event == BoxEvent::Over {
                looks.soon();
            }
            self.apply(Event::Box(event));
        }
        if decoded.queue_changed && self.state()?.phase() <= Some(Phase::Queued) {
            looks.within(LINE_MOVED);
        }
        Ok(has_results)
    }

    /// Looks whether the prompt is over, and sees to what has to be done while it is not.
    async fn look(&self, link: &Link, looks: &mut Looks, hearing: &mut Hearing) -> Result<Option<Followed>, StepError> {
        let followed = self.look_for_end(link, looks, hearing).await?;
        if followed.is_none() {
            self.good_looks.fetch_add(1, Ordering::Relaxed);
            self.stop_if_partly_refused(link).await?;
            if hearing.wants_ear() {
                hearing.listen_to(self.listen(link).await?, &*self.state()?);
            }
        }
        Ok(followed)
    }

    /// Reads queue, then history. `None` while the prompt is not over.
    async fn look_for_end(
        &self,
        link: &Link,
        looks: &mut Looks,
        hearing: &mut Hearing,
    ) -> Result<Option<Followed>, StepError> {
        let state = self.state()?;
        looks.plan_next();
        let queue = match link.client.queue().await {
            Ok(queue) => Some(queue),
            // A line so long that its graphs are more than we read: history alone must do.
            Err(ComfyError::TooBig { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(place) = queue.as_ref().and_then(|queue| self.look_at_queue(queue, &state, hearing)) {
            looks.found();
            if place == Place::Running {
                self.look_at_silence(link, hearing).await?;
            }
            return Ok(None);
        }
        if let Some((id, ending)) = link.client.find_in_history(&state.prompt_id, &state.id).await? {
            self.note_found(&state, id, ending.targets.as_deref(), hearing);
            self.stop_if_partly_refused(link).await?;
            return Ok(Some(Followed::Ended(Box::new(ending))));
        }
        if queue.is_none() || !looks.is_lost() {
            return Ok(None);
        }
        // Asked last: the ComfyUI that still bears the mark has been up during all the looks.
        Ok(Some(if self.was_never_taken(link).await? { Followed::NotTaken } else { Followed::Lost(lost(&state)) }))
    }

    /// Where in ComfyUI's line the prompt is, if it is there.
    fn look_at_queue(&self, queue: &Queue, state: &WorkflowState, hearing: &mut Hearing) -> Option<Place> {
        let (entry, place) = queue.find(&state.prompt_id, &state.id)?;
        self.note_found(state, entry.prompt_id.clone(), entry.targets.as_deref(), hearing);
        match place {
            Place::Running => {
                hearing.note_running(state.phase());
                self.apply(Event::Box(BoxEvent::Started));
            }
            Place::Pending(position) => {
                hearing.note_waiting();
                self.apply(Event::Waiting { position });
            }
        }
        Some(place)
    }

    /// Nothing heard of a running prompt: the socket may be deaf, a model may be loading, or ComfyUI hangs.
    async fn look_at_silence(&self, link: &Link, hearing: &mut Hearing) -> Result<(), StepError> {
        if hearing.is_deaf() {
            tracing::info!("the websocket tells nothing of a running prompt; opening another");
            hearing.close().await;
        }
        let quiet = hearing.quiet_for();
        if quiet < self.options.unreachable_limit {
            self.report_stall(quiet)?;
            return Ok(());
        }
        let failure = wedged(&*self.state()?, quiet);
        // It must not go on behind the user's back, should it wake up.
        let stopped = tokio::time::timeout(STOP_WEDGED, self.stop_prompt(link)).await;
        tracing::warn!(stopped = matches!(stopped, Ok(Ok(()))), "gave up a prompt that does not move");
        Err(StepError::Fatal(failure))
    }

    /// Lets readers know when nothing has moved for suspiciously long.
    pub(super) fn report_stall(&self, quiet: Duration) -> Result<(), StepError> {
        if quiet >= self.options.stalled_after && self.state()?.stalled_since.is_none() {
            tracing::warn!(quiet_s = quiet.as_secs(), "nothing moves on the box");
            self.apply(Event::Stalled(Utc::now() - quiet));
        }
        Ok(())
    }

    /// Takes in under which id, and for which outputs, the box has the prompt.
    fn note_found(&self, state: &WorkflowState, id: PromptId, targets: Option<&[NodeId]>, hearing: &mut Hearing) {
        if state.submission == Submission::Unclear
            && let Some(failure) = missing_outputs(state, targets)
        {
            self.apply(Event::PartlyRefused(failure));
        }
        if id != state.prompt_id {
            hearing.rename(id.clone());
        }
        self.apply(Event::Submitted(id));
    }
}

/// The ending with what the socket knew better.
fn with_details(mut ending: Ending, heard: Option<NodeFailure>) -> Ending {
    if let (Outcome::Failed(told), Some(heard)) = (&mut ending.outcome, heard)
        && told.node_id.is_none()
    {
        *told = heard;
    }
    ending
}

/// The failure that a run's end means, if it means one.
pub(super) fn failure_of(ending: &Ending) -> Option<Failure> {
    match &ending.outcome {
        Outcome::Succeeded => None,
        Outcome::Interrupted => {
            Some(Failure::new(ErrorCode::Interrupted, "The run was interrupted on the box, not by this service"))
        }
        Outcome::Failed(node) => {
            let code = if node.is_out_of_memory() { ErrorCode::OutOfMemory } else { ErrorCode::NodeError };
            let detail = ErrorDetail {
                node_id: node.node_id.clone(),
                exception_type: node.exception_type.clone(),
                exception_message: Some(node.exception_message.trim().to_owned()),
                traceback: node.traceback_tail.clone(),
                findings: Vec::new(),
            };
            Some(Failure {
                code,
                message: format!("Node execution failed: {}", node.exception_message.trim()),
                node_type: node.node_type.clone(),
                detail: Some(Box::new(detail)),
            })
        }
    }
}

fn wedged(state: &WorkflowState, quiet: Duration) -> Failure {
    let node = state.current_node.as_ref().and_then(|id| Some((id, state.nodes.get(id)?)));
    let place = node.map(|(id, node)| format!(" on node {id} ({})", node.class_type)).unwrap_or_default();
    let message = format!(
        "ComfyUI has shown no progress{place} for {} s, though it says that the prompt runs; it seems to hang: look at \
         its log on the box, restart it there, and run the workflow again",
        quiet.as_secs()
    );
    Failure::new(ErrorCode::Wedged, message)
}

fn lost(state: &WorkflowState) -> Failure {
    let message = match state.submission {
        Submission::Accepted => {
            "the box no longer knows the prompt: ComfyUI was restarted, its history was cleared, or \
                                 somebody removed the prompt from its queue; run it again"
                .to_owned()
        }
        Submission::None | Submission::Unclear => {
            let cause = state.unclear_because.as_deref().unwrap_or("the service was stopped while it was being sent");
            format!(
                "the box does not know the prompt, and it is unclear whether it ever took it ({cause}); it was not \
                 sent again, since it may have run: check the box's output folder, then run it again"
            )
        }
    };
    Failure::new(ErrorCode::JobLost, message)
}
