//! Chapter: the run is followed to its end.
//!
//! The websocket only makes progress visible sooner. What is true comes from ComfyUI's queue and history, in that
//! order: read the other way round, a prompt that ends in between is in neither.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::{error::StepError, execution::Execution, link::Link};
use crate::{
    comfy::{Decoder, HistoryEntry, NodeFailure, Outcome, Place, Socket, SocketError, SocketMessage},
    workflow::{BoxEvent, ErrorCode, ErrorDetail, Event, Failure, Phase, Submission},
};

/// How often queue and history are read while nothing calls for it.
const POLL: Duration = Duration::from_secs(3);

/// The pause between two looks after the socket said that something changed: the history entry is written shortly
/// after the success message (main.py, prompt_worker, v0.3.64).
const SOON: Duration = Duration::from_millis(100);

/// The pause before a lost websocket is opened again; each further one is twice as long.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The longest such pause.
const LISTEN_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// How many looks follow each other at that pace.
const EAGER_LOOKS: u32 = 20;

/// The prompt counts as lost when it is missing this often…
const MISSING_LOOKS: u32 = 3;

/// …over at least this long.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// How a run ended, as history tells it.
pub(super) type Ending = HistoryEntry;

/// When the next look at queue and history is due, and what the last ones found.
#[derive(Debug)]
struct Looks {
    next: Instant,
    eager: u32,
    missing: u32,
    missing_since: Option<Instant>,
}

/// What comes over the websocket.
#[derive(Debug)]
struct Ear {
    socket: Option<Socket>,
    decoder: Decoder,
    /// The failure as the socket told it: some servers' history lacks its details.
    failure: Option<NodeFailure>,
    /// When to open another socket if there is none, and the pause after that.
    again: (Instant, Duration),
}

impl Execution {
    /// Follows the prompt until history has it. `socket` is one that was open before the submission.
    pub(super) async fn follow(&self, link: &Link, socket: Option<Socket>) -> Result<Ending, StepError> {
        let decoder = Decoder::new(self.state()?.prompt_id.clone());
        let mut ear = Ear { socket, decoder, failure: None, again: (Instant::now(), LISTEN_AGAIN) };
        let mut looks = Looks::new();
        loop {
            tokio::select! {
                message = next_message(&mut ear.socket) => match message {
                    Ok(message) => self.take_in(&mut ear, &mut looks, message)?,
                    Err(error) => {
                        tracing::debug!(%error, "the websocket ended");
                        ear.socket = None;
                        looks.soon();
                    }
                },
                () = sleep_until(looks.next.into()) => {
                    if let Some(ending) = self.look(link, &mut looks, &mut ear.decoder).await? {
                        return Ok(with_details(ending, ear.failure));
                    }
                    if ear.socket.is_none() && Instant::now() >= ear.again.0 {
                        self.listen_again(link, &mut ear).await?;
                    }
                }
                () = link.lost() => return Err(StepError::LinkLost("the SSH connection was lost".into())),
            }
        }
    }

    fn take_in(&self, ear: &mut Ear, looks: &mut Looks, message: SocketMessage) -> Result<(), StepError> {
        let decoded = ear.decoder.decode(&message);
        ear.failure = decoded.failure.or(ear.failure.take());
        for event in decoded.events {
            if event == BoxEvent::Over {
                looks.soon();
            }
            self.apply(Event::Box(event));
        }
        if decoded.queue_changed && self.state()?.phase() <= Some(Phase::Queued) {
            looks.soon();
        }
        Ok(())
    }

    /// Without a socket the run is followed by polling: that this fails is no harm.
    async fn listen_again(&self, link: &Link, ear: &mut Ear) -> Result<(), StepError> {
        let state = self.state()?;
        match self.subscribe(link).await {
            Ok(socket) => {
                ear.decoder = Decoder::new(state.prompt_id.clone());
                ear.socket = Some(socket);
            }
            Err(error) => tracing::debug!(?error, "no new websocket yet"),
        }
        let pause = ear.again.1;
        ear.again = (Instant::now() + pause, (pause * 2).min(LISTEN_AGAIN_AT_MOST));
        Ok(())
    }

    /// Reads queue, then history. `None` while the prompt is not over.
    async fn look(&self, link: &Link, looks: &mut Looks, decoder: &mut Decoder) -> Result<Option<Ending>, StepError> {
        let state = self.state()?;
        looks.plan_next();
        let queue = link.client.queue().await?;
        match queue.place_of(&state.prompt_id, &state.id) {
            Some((id, Place::Running)) => {
                looks.found();
                decoder.set_running();
                self.apply(Event::Submitted(id));
                self.apply(Event::Box(BoxEvent::Started));
                return Ok(None);
            }
            Some((id, Place::Pending(position))) => {
                looks.found();
                self.apply(Event::Submitted(id));
                self.apply(Event::Waiting { position });
                return Ok(None);
            }
            None => {}
        }
        if let Some((id, entry)) = link.client.find_in_history(&state.prompt_id, &state.id).await? {
            self.apply(Event::Submitted(id));
            return Ok(Some(entry));
        }
        if looks.is_lost() {
            return Err(StepError::Fatal(lost(state.submission)));
        }
        Ok(None)
    }
}

impl Looks {
    fn new() -> Self {
        Self { next: Instant::now(), eager: 0, missing: 0, missing_since: None }
    }

    fn soon(&mut self) {
        self.eager = EAGER_LOOKS;
        self.next = self.next.min(Instant::now() + SOON);
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

fn lost(submission: Submission) -> Failure {
    let message = match submission {
        Submission::Accepted => {
            "the box no longer knows the prompt: ComfyUI was restarted or its history was cleared while the workflow \
             was in it; run it again"
        }
        Submission::None | Submission::Unclear => {
            "the connection failed while the prompt was being sent, and the box does not know it; it was not sent \
             again, since it may have run: check the box's output folder, then run it again"
        }
    };
    Failure::new(ErrorCode::JobLost, message)
}

/// Never resolves without a socket. Cancel-safe, as [`Socket::next`] is.
async fn next_message(socket: &mut Option<Socket>) -> Result<SocketMessage, SocketError> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}
