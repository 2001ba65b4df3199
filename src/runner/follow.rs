//! Chapter: the run is followed to its end.
//!
//! The websocket only makes progress visible sooner. What is true comes from ComfyUI's queue and history, in that
//! order: read the other way round, a prompt that ends in between is in neither.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use super::{
    ear::Ear, early::EarlyFetches, error::StepError, execution::Execution, link::Link, submit::missing_outputs,
};
use crate::{
    comfy::{ComfyError, Decoder, HistoryEntry, NodeFailure, Outcome, Place, Queue, SocketMessage},
    workflow::{BoxEvent, ErrorCode, ErrorDetail, Event, Failure, NodeId, Phase, PromptId, Submission, WorkflowState},
};

/// How often queue and history are read while nothing calls for it.
const POLL: Duration = Duration::from_secs(3);

/// The pause between two looks after the socket said that the run is over: the history entry is written shortly after
/// the success message (main.py, prompt_worker, v0.3.64).
const SOON: Duration = Duration::from_millis(100);

/// How many looks follow each other at that pace.
const EAGER_LOOKS: u32 = 20;

/// The pause before a look because something moved in ComfyUI's line; many such messages make one look.
const LINE_MOVED: Duration = Duration::from_millis(500);

/// The prompt counts as lost when it is missing this often…
const MISSING_LOOKS: u32 = 3;

/// …over at least this long.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// The pause before a lost websocket is opened again; each further one is twice as long.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The longest such pause.
const LISTEN_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// A socket that has told nothing at all of a running prompt for this long is taken for deaf; another one is opened,
/// which takes twice as long to come under suspicion.
const UNTOLD: Duration = Duration::from_secs(5);

/// A socket that did tell something, and then nothing for this long. Silence is normal while a model loads.
const SILENCE: Duration = Duration::from_secs(120);

/// How a run ended, as history tells it.
pub(super) type Ending = HistoryEntry;

/// What following a prompt came to.
#[derive(Debug)]
pub(super) enum Followed {
    /// It is over.
    Ended(Box<Ending>),
    /// The box no longer knows it: what the workflow fails with, unless it may run again.
    Lost(Failure),
}

/// What comes over the websocket.
#[derive(Debug)]
struct Hearing {
    ear: Option<Ear>,
    decoder: Decoder,
    /// The failure as the socket told it: some servers' history lacks its details.
    failure: Option<NodeFailure>,
    /// When to open another socket if there is none, and the pause after that.
    again: (Instant, Duration),
    /// Whether the socket has told anything of the prompt, and when last; before that, since when it could have.
    told: (bool, Instant),
    /// How long a socket may tell nothing at all.
    untold: Duration,
}

/// When the next look at queue and history is due, and what the last ones found.
#[derive(Debug)]
struct Looks {
    next: Instant,
    eager: u32,
    missing: u32,
    missing_since: Option<Instant>,
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
        hearing.close().await;
        Ok(match followed? {
            Followed::Ended(ending) => Followed::Ended(Box::new(with_details(*ending, hearing.failure))),
            lost @ Followed::Lost(_) => lost,
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
                message = next_message(&mut hearing.ear) => match message {
                    Some(message) => {
                        if self.take_in(hearing, &mut looks, &message)? {
                            early.take_up(&*self.state()?);
                        }
                    }
                    None => {
                        hearing.ear = None;
                        looks.soon();
                    }
                },
                () = sleep_until(looks.next.into()) => {
                    if let Some(followed) = self.look(link, &mut looks, hearing).await? {
                        return Ok(followed);
                    }
                    self.good_looks.fetch_add(1, Ordering::Relaxed);
                    self.stop_if_partly_refused(link).await?;
                    if hearing.ear.is_none() && Instant::now() >= hearing.again.0 {
                        self.hear_again(link, hearing).await?;
                    }
                }
                () = early.next() => {}
                () = link.lost() => return Err(StepError::connection_lost()),
            }
        }
    }

    /// Takes in one message, and says whether a node reported results.
    fn take_in(&self, hearing: &mut Hearing, looks: &mut Looks, message: &SocketMessage) -> Result<bool, StepError> {
        let decoded = hearing.decoder.decode(message);
        if !decoded.events.is_empty() {
            hearing.told = (true, Instant::now());
        }
        hearing.failure = decoded.failure.or(hearing.failure.take());
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

    async fn hear_again(&self, link: &Link, hearing: &mut Hearing) -> Result<(), StepError> {
        if let Some(ear) = self.listen(link).await? {
            let state = self.state()?;
            hearing.decoder = Decoder::new(state.prompt_id.clone());
            if state.phase() == Some(Phase::Running) {
                hearing.decoder.set_running();
            }
            hearing.ear = Some(ear);
            hearing.told = (false, Instant::now());
        }
        let pause = hearing.again.1;
        hearing.again = (Instant::now() + pause, (pause * 2).min(LISTEN_AGAIN_AT_MOST));
        Ok(())
    }

    /// Reads queue, then history. `None` while the prompt is not over.
    async fn look(&self, link: &Link, looks: &mut Looks, hearing: &mut Hearing) -> Result<Option<Followed>, StepError> {
        let state = self.state()?;
        looks.plan_next();
        let queue = match link.client.queue().await {
            Ok(queue) => Some(queue),
            // A line so long that its graphs are more than we read: history alone must do.
            Err(ComfyError::TooBig { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(queue) = &queue
            && self.look_at_queue(queue, &state, hearing)
        {
            looks.found();
            if hearing.is_deaf(state.phase()) {
                tracing::info!("the websocket tells nothing of a running prompt; opening another");
                hearing.close().await;
            }
            return Ok(None);
        }
        if let Some((id, ending)) = link.client.find_in_history(&state.prompt_id, &state.id).await? {
            self.note_found(&state, id, ending.targets.as_deref(), hearing);
            self.stop_if_partly_refused(link).await?;
            return Ok(Some(Followed::Ended(Box::new(ending))));
        }
        Ok((queue.is_some() && looks.is_lost()).then(|| Followed::Lost(lost(&state))))
    }

    /// Whether the prompt is in ComfyUI's line or runs.
    fn look_at_queue(&self, queue: &Queue, state: &WorkflowState, hearing: &mut Hearing) -> bool {
        let Some((entry, place)) = queue.find(&state.prompt_id, &state.id) else { return false };
        self.note_found(state, entry.prompt_id.clone(), entry.targets.as_deref(), hearing);
        match place {
            Place::Running => {
                hearing.decoder.set_running();
                self.apply(Event::Box(BoxEvent::Started));
            }
            Place::Pending(position) => {
                self.apply(Event::Waiting { position });
            }
        }
        true
    }

    /// Takes in under which id, and for which outputs, the box has the prompt.
    fn note_found(&self, state: &WorkflowState, id: PromptId, targets: Option<&[NodeId]>, hearing: &mut Hearing) {
        if state.submission == Submission::Unclear
            && let Some(failure) = missing_outputs(state, targets)
        {
            self.apply(Event::PartlyRefused(failure));
        }
        if id != state.prompt_id {
            hearing.decoder = Decoder::new(id.clone());
        }
        self.apply(Event::Submitted(id));
    }
}

impl Hearing {
    fn new(ear: Option<Ear>, prompt: PromptId) -> Self {
        let now = Instant::now();
        Self {
            ear,
            decoder: Decoder::new(prompt),
            failure: None,
            again: (now, LISTEN_AGAIN),
            told: (false, now),
            untold: UNTOLD,
        }
    }

    /// Whether the socket should be replaced, now that the queue shows the prompt running. `phase` is what was known
    /// before that.
    fn is_deaf(&mut self, phase: Option<Phase>) -> bool {
        if self.ear.is_none() {
            return false;
        }
        if phase < Some(Phase::Running) {
            self.told.1 = Instant::now();
            return false;
        }
        match self.told {
            (true, heard) => heard.elapsed() >= SILENCE,
            (false, since) if since.elapsed() >= self.untold => {
                self.untold *= 2;
                true
            }
            (false, _) => false,
        }
    }

    async fn close(&mut self) {
        if let Some(ear) = self.ear.take() {
            ear.close().await;
        }
    }
}

impl Looks {
    fn new() -> Self {
        Self { next: Instant::now(), eager: 0, missing: 0, missing_since: None }
    }

    fn soon(&mut self) {
        self.eager = EAGER_LOOKS;
        self.within(SOON);
    }

    fn within(&mut self, pause: Duration) {
        self.next = self.next.min(Instant::now() + pause);
    }

    fn plan_next(&mut self) {
        let pause = if self.eager > 0 { SOON } else { POLL };
        self.eager = self.eager.saturating_sub(1);
        self.next = Instant::now() + pause;
    }

    fn found(&mut self) {
        self.missing = 0;
        self.missing_since = None;
    }

    /// Counts one more look that found nothing.
    fn is_lost(&mut self) -> bool {
        self.missing += 1;
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        self.missing >= MISSING_LOOKS && since.elapsed() >= MISSING_FOR
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

/// Never resolves without a socket. Cancel-safe, as [`Ear::next`] is.
async fn next_message(ear: &mut Option<Ear>) -> Option<SocketMessage> {
    match ear {
        Some(ear) => ear.next().await,
        None => std::future::pending().await,
    }
}
