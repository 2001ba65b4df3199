//! The story of one run, top to bottom.
//!
//! [`Execution::story`] connects and then takes the steps in [`Execution::advance`]. Every step asks the state
//! whether it is already done, so that the same function serves three cases: a new workflow, one that goes on after the
//! way to the box was lost, and one that goes on after a restart of the service.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Beginning, Options,
    allowance::Allowance,
    ear::Ear,
    early::EarlyFetches,
    error::{StepError, tunnel_failure},
    follow::Followed,
    known_boxes::KnownBoxes,
    line::Seat,
    link::{Link, NoComfyUi, SubscribeError},
    part::Parts,
    patience::Patience,
    turns::Turns,
};
use crate::{
    ssh::{Pool, SshError, SshErrorKind, Target},
    store::{Revision, Store},
    workflow::{ErrorCode, Event, Failure, Phase, PromptId, Request, Secrets, Submission, WorkflowId, WorkflowState},
};

/// How long something else than ComfyUI is looked at again on the first connection.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(10);

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

    /// The first way to the box. Its failure is final, and known to whoever waits for the answer to execute.
    async fn connect(&self) -> Result<Link, Failure> {
        let state = self.state().map_err(StepError::into_failure)?;
        // A recovered run whose tunnel had stood before.
        if state.phase() > Some(Phase::Connecting) {
            self.report_beginning(Ok(()));
            let cause = Failure::new(ErrorCode::SshUnreachable, "the service was restarted");
            return self.reconnect(cause, &mut Patience::new()).await;
        }
        self.apply(Event::Entered(Phase::Connecting));
        let (target, port) = (self.target()?, state.request.comfyui_port);
        for warning in self.pool.warnings(&target).await {
            self.warn(warning);
        }
        let link = Link::open(&self.pool, &target, port).await.map_err(|error| tunnel_failure(&error))?;
        link.warnings().iter().for_each(|warning| self.warn(warning.clone()));
        self.wait_for_comfyui(link, port).await
    }

    /// Gives a ComfyUI that does not answer yet some time: a box takes logins before that has started.
    async fn wait_for_comfyui(&self, link: Link, port: u16) -> Result<Link, Failure> {
        let (mut starting, mut foreign) = (Patience::new(), Patience::new());
        loop {
            let NoComfyUi { failure: Failure { mut message, .. }, may_come } = match link.probe(port).await {
                Ok(version) => {
                    tracing::info!(comfyui.version = version, "reached ComfyUI");
                    self.apply(Event::Connected);
                    return Ok(link);
                }
                Err(found) => found,
            };
            if link.is_lost() {
                let cause = StepError::connection_lost().into_failure();
                return self.reconnect(cause, &mut Patience::new()).await;
            }
            let limit = self.options.comfyui_start;
            let (patience, limit) =
                if may_come { (&mut starting, limit) } else { (&mut foreign, limit.min(FOREIGN_PATIENCE)) };
            let announce = |pause| self.announce_reconnecting(message.clone(), Some(pause));
            if !patience.pause_announced(limit, announce).await {
                if may_come {
                    let seconds = patience.lasted().as_secs();
                    message.push_str(&format!("; it was waited for {seconds} s ([limits] comfyui_start_s)"));
                }
                return Err(Failure::new(ErrorCode::ComfyuiUnreachable, message));
            }
        }
    }

    /// A new way to the box after one has stood, tried until the patience is over. If it never comes, the workflow
    /// fails with what stood in the way last, or with the cause.
    pub(super) async fn reconnect(&self, cause: Failure, patience: &mut Patience) -> Result<Link, Failure> {
        tracing::info!(cause = cause.message, "connecting again");
        let port = self.state().map_err(StepError::into_failure)?.request.comfyui_port;
        let target = self.target()?;
        let mut last = cause;
        loop {
            let ((limit, setting), message) = (self.unreachable_limit(), last.message.clone());
            self.announce_reconnecting(message.clone(), None);
            let announce = |pause| self.announce_reconnecting(message, Some(pause));
            if !patience.wait(limit, announce).await {
                let seconds = patience.lasted().as_secs();
                let mut message =
                    format!("the box was out of reach for {seconds} s ([limits] {setting} ends it): {}", last.message);
                if self.state().is_ok_and(|state| state.submission != Submission::None) {
                    message.push_str(
                        "; the run may go on there: when the box is back, download what it left before you run it again",
                    );
                }
                return Err(Failure { message, ..last });
            }
            last = match Link::open(&self.pool, &target, port).await {
                Ok(link) => match link.probe(port).await {
                    Ok(_) => {
                        self.apply(Event::Connected);
                        return Ok(link);
                    }
                    Err(found) => found.failure,
                },
                Err(error) if self.is_final(&error) => return Err(tunnel_failure(&error)),
                Err(error) => tunnel_failure(&error),
            };
            tracing::debug!(message = last.message, "still out of reach");
            if last.code == ErrorCode::Wedged {
                self.report_stall(patience.lasted()).map_err(StepError::into_failure)?;
            }
        }
    }

    /// Lets readers know why nothing moves, and when the next try is due if none is under way.
    fn announce_reconnecting(&self, cause: String, pause: Option<Duration>) {
        let next_attempt = pause.and_then(|pause| Some(Utc::now() + TimeDelta::from_std(pause).ok()?));
        self.apply(Event::Reconnecting { cause, next_attempt });
    }

    /// Whether an error on the way back ends the workflow at once. With a prompt on the box only another machine at
    /// its address does: a box that boots may refuse keys for a while.
    fn is_final(&self, error: &SshError) -> bool {
        let submitted = self.state().is_ok_and(|state| state.submission != Submission::None);
        error.kind() == SshErrorKind::HostKey || (!submitted && !error.is_transient())
    }

    /// How long the box may stay out of reach, and the setting that says so.
    fn unreachable_limit(&self) -> (Duration, &'static str) {
        match self.state().map(|state| state.submission) {
            Ok(Submission::Unclear | Submission::Accepted) => (self.options.unreachable_limit, "unreachable_limit_s"),
            _ => (self.options.unreachable_before_submit, "unreachable_before_submit_s"),
        }
    }

    /// A websocket for this run, always under the same client id. `None` when there is none to be had: then the run
    /// is followed by polling.
    pub(super) async fn listen(&self, link: &Link) -> Result<Option<Ear>, StepError> {
        let client_id = self.state()?.client_id.clone();
        let key = self.credential_key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match link.subscribe(&client_id, key.as_deref()).await {
            Ok(socket) => {
                if let Some(key) = socket.credential_key() {
                    *self.credential_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_owned());
                }
                Ok(Some(Ear::new(socket)))
            }
            Err(SubscribeError::Ssh(error)) if link.is_lost() => Err(error.into()),
            Err(error) => {
                tracing::info!(%error, "no websocket yet");
                Ok(None)
            }
        }
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

    fn report_beginning(&self, beginning: Result<(), Failure>) {
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
