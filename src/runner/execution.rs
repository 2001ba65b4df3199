//! The story of one run, top to bottom.
//!
//! [`Execution::story`] connects and then takes the steps in [`Execution::advance`]. Every step asks the state
//! whether it is already done, so that the same function serves three cases: a new workflow, one that goes on after the
//! way to the box was lost, and one that goes on after a restart of the service.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Beginning, Options, allowance::Allowance, early::EarlyFetches, error::StepError, follow::Followed,
    known_boxes::KnownBoxes, line::Seat, link::Link, part::Parts, patience::Patience, turns::Turns,
};
use crate::{
    ssh::{Pool, Target},
    store::{Revision, Store},
    workflow::{ErrorCode, Event, Failure, Phase, PromptId, Request, Secrets, Submission, WorkflowId, WorkflowState},
};

/// A run starts over at most this often, because its files are gone or the box has forgotten it.
const MAX_ATTEMPTS: u32 = 2;

/// The task that runs one workflow.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) id: WorkflowId,
    pub(super) store: Store,
    pub(super) pool: Pool,
    pub(super) options: Options,
    /// Tells the caller of execute how it began.
    pub(super) beginning: watch::Sender<Beginning>,
    /// Who marks which ComfyUI; shared by all executions.
    pub(super) marking: Arc<Turns<String>>,
    /// What boxes have told; shared by all executions.
    pub(super) known_boxes: Arc<KnownBoxes>,
    /// What newer servers want to see when the same client id comes back.
    pub(super) credential_key: Mutex<Option<String>>,
    /// What of the graph to submit must not be told, once that graph is known.
    pub(super) secrets: OnceLock<Secrets>,
    /// How often queue and history were read in full: a sign that the way to the box is good though nothing changes.
    pub(super) good_looks: AtomicU64,
    /// Outputs on their way here.
    pub(super) parts: Parts,
    /// How much may still come.
    pub(super) allowance: Allowance,
}

/// Whether the outputs of a run are all here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collected {
    /// They are.
    All,
    /// ComfyUI took results from its cache whose files are gone.
    GoneFromCache,
}

impl Execution {
    /// Waits for its turn and brings the workflow to a final status. Its place is taken until then, and free as soon
    /// as this ends or is dropped. Dropped half-way, it leaves the prompt on the box running.
    pub(super) async fn run(&self, seat: Seat, cancel: CancellationToken) {
        if !seat.has_place() {
            tracing::info!("waits in line");
            // There will be no tunnel soon.
            self.report_beginning(Ok(()));
        }
        cancel.run_until_cancelled(seat.turn()).await;
        let ended = AssertUnwindSafe(self.story_or_stop(&cancel)).catch_unwind().await;
        let event = ended.unwrap_or_else(|_| {
            tracing::error!("the execution panicked");
            Event::Failed(Failure::new(ErrorCode::Internal, "internal error; the log has more"))
        });
        let has_begun = self.state().is_ok_and(|state| state.phase() > Some(Phase::Waiting));
        // A final status promises that nothing half-done is left here.
        self.remove_parts().await;
        // Who has not begun leaves the line before its end shows.
        let place = has_begun.then_some(seat);
        self.finish(event).await;
        if place.is_some() {
            self.remove_partial_upload().await;
        }
    }

    async fn story_or_stop(&self, cancel: &CancellationToken) -> Event {
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            ended = self.story() => Some(ended),
        };
        match ended {
            Some(Ok(())) => Event::Completed,
            Some(Err(failure)) => Event::Failed(failure),
            None => self.stop().await,
        }
    }

    async fn finish(&self, event: Event) {
        match &event {
            Event::Failed(failure) | Event::CancelUnconfirmed(failure) => {
                tracing::warn!(code = ?failure.code, message = failure.message, "failed");
            }
            Event::Cancelled => tracing::info!("cancelled"),
            _ => tracing::info!("completed"),
        }
        let beginning = match &event {
            Event::Failed(failure) => Err(failure.clone()),
            _ => Ok(()),
        };
        let revision = self.apply(event);
        if let Some(revision) = revision
            && let Err(error) = self.store.durable(revision).await
        {
            tracing::warn!(%error, "the final status is only in memory");
        }
        self.report_beginning(beginning);
    }

    async fn story(&self) -> Result<(), Failure> {
        // The box is the same one throughout.
        let _hold = self.pool.hold(&self.target()?).await;
        let mut link = self.connect().await?;
        let mut patience = Patience::new();
        loop {
            let before = self.signs_of_life()?;
            let Err(error) = self.advance(&link).await else { return Ok(()) };
            // This trouble is a new one.
            if self.signs_of_life()? != before {
                patience = Patience::new();
            }
            match error {
                StepError::Fatal(failure) => return Err(self.without_secrets(failure).await),
                StepError::LinkLost(failure) => {
                    drop(link);
                    link = self.reconnect(failure, &mut patience).await?;
                }
                StepError::Trouble(failure) => {
                    let failure = self.without_secrets(failure).await;
                    tracing::info!(message = failure.message, "trying again");
                    if !patience.pause(self.options.unreachable_before_submit).await {
                        return Err(failure);
                    }
                }
            }
        }
    }

    /// Differs after anything has moved.
    fn signs_of_life(&self) -> Result<(DateTime<Utc>, u64), Failure> {
        let state = self.state().map_err(StepError::into_failure)?;
        Ok((state.last_update, self.good_looks.load(Ordering::Relaxed)))
    }

    /// Takes every step that is left.
    async fn advance(&self, link: &Link) -> Result<(), StepError> {
        loop {
            let state = self.state()?;
            if state.phase() != Some(Phase::Downloading) {
                let mut ear = None;
                if state.submission == Submission::None {
                    let (graph, remembered) = self.graph(link).await?;
                    // Its file may be gone by the time a node quotes them.
                    self.note_secrets(&graph);
                    let mut known = self.plan(link, &graph, remembered).await?;
                    self.preflight(link, &graph, &mut known).await?;
                    self.report_beginning(Ok(()));
                    self.check_room(link).await?;
                    let graph = self.upload_inputs(link, graph, known.definitions.as_deref()).await?;
                    // Before the submission, so that no message is missed.
                    ear = self.listen(link).await?;
                    self.submit(link, &graph).await?;
                }
                self.stop_if_partly_refused(link).await?;
                let mut early = EarlyFetches::new(self, link);
                match self.follow(link, ear, &mut early).await? {
                    Followed::Ended(ending) => {
                        let failure = self.take_in_ending(*ending);
                        early.finish().await;
                        if let Some(failure) = failure {
                            return Err(self.keep_what_ran(link, failure).await);
                        }
                    }
                    Followed::Lost(failure) => {
                        self.run_lost_again(failure)?;
                        continue;
                    }
                    Followed::NotTaken => {
                        self.send_again()?;
                        continue;
                    }
                }
            }
            match self.collect_outputs(link).await? {
                Collected::All => return Ok(()),
                Collected::GoneFromCache => self.start_over(link).await?,
            }
        }
    }

    /// A prompt that the box certainly had and has forgotten may run once more, if the user wants that.
    fn run_lost_again(&self, failure: Failure) -> Result<(), StepError> {
        let state = self.state()?;
        let wanted = self.options.resubmit_lost && state.submission == Submission::Accepted;
        if !wanted || state.attempt >= MAX_ATTEMPTS {
            return Err(StepError::Fatal(failure));
        }
        self.warn(format!("the workflow runs once more, since {}", failure.message));
        self.apply(Event::AttemptStarted(PromptId::fresh()));
        Ok(())
    }

    /// Runs once more because the files of a cached run are gone from the box.
    async fn start_over(&self, link: &Link) -> Result<(), StepError> {
        if self.state()?.attempt >= MAX_ATTEMPTS {
            return Err(StepError::fatal(
                ErrorCode::DownloadFailed,
                "ComfyUI took results from its cache whose files are gone from the box, also after its cache was \
                 freed; change a seed or a file name prefix and run again",
            ));
        }
        link.client.free_memory().await?;
        self.warn(
            "ComfyUI took results from its cache whose files are gone from the box; its cache was freed and the \
             workflow runs once more"
                .to_owned(),
        );
        // ComfyUI acts on it between two prompts; an idle one within moments (main.py, prompt_worker, v0.3.64).
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.apply(Event::AttemptStarted(PromptId::fresh()));
        Ok(())
    }

    pub(super) fn report_beginning(&self, beginning: Result<(), Failure>) {
        self.beginning.send_if_modified(|known| {
            let news = known.is_none();
            if news {
                *known = Some(beginning);
            }
            news
        });
    }

    /// The workflow as it is now.
    pub(super) fn state(&self) -> Result<Arc<WorkflowState>, StepError> {
        let gone = || StepError::fatal(ErrorCode::Internal, "the workflow is no longer on record");
        self.store.get(&self.id).ok_or_else(gone)
    }

    /// The string was checked when the request came in; only an edited state file can make it fail here.
    pub(super) fn target(&self) -> Result<Target, Failure> {
        let state = self.state().map_err(StepError::into_failure)?;
        Target::parse(&state.request.ssh_connection)
            .map_err(|error| Failure::new(ErrorCode::Internal, format!("Invalid ssh_connection: {error}")))
    }

    pub(super) fn request(&self) -> Result<Request, StepError> {
        Ok(self.state()?.request.clone())
    }

    pub(super) fn apply(&self, event: Event) -> Option<Revision> {
        self.store.apply(&self.id, event)
    }

    pub(super) fn warn(&self, text: String) {
        tracing::warn!(text, "warning for the user");
        self.apply(Event::Warned(text));
    }
}
