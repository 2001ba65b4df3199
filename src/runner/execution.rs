//! The story of one run, top to bottom.
//!
//! [`Execution::story`] connects and then takes the steps in [`Execution::advance`]. Every step asks the state
//! whether it is already done, so that the same function serves three cases: a new workflow, one that goes on after the
//! way to the box was lost, and one that goes on after a restart of the service.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Options, TunnelOutcome,
    error::{StepError, tunnel_failure},
    link::Link,
};
use crate::{
    comfy::{Definitions, Socket},
    ssh::{Pool, Target},
    store::{Revision, Store},
    workflow::{ErrorCode, Event, Failure, Phase, PromptId, Request, Submission, WorkflowId, WorkflowState},
};

/// How long a ComfyUI that does not answer yet is waited for on the first connection; it may just be starting.
const COMFYUI_PATIENCE: Duration = Duration::from_secs(10);

/// The first pause between two tries to reach the box or ComfyUI; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A link that stood this long was a good one: the next trouble is a new trouble.
const STABLE: Duration = Duration::from_secs(60);

/// A run starts over at most this often because its files are gone.
const MAX_ATTEMPTS: u32 = 2;

/// The task that runs one workflow.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) id: WorkflowId,
    pub(super) store: Store,
    pub(super) pool: Pool,
    pub(super) options: Options,
    /// Tells the caller of execute how the tunnel came out.
    pub(super) tunnel: watch::Sender<TunnelOutcome>,
    /// What newer servers want to see when the same client id comes back.
    pub(super) credential_key: Mutex<Option<String>>,
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
    /// Brings the workflow to a final status. Dropped half-way, it leaves the prompt on the box running.
    pub(super) async fn run(self, cancel: CancellationToken) {
        let story = AssertUnwindSafe(self.story()).catch_unwind();
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            ended = story => Some(ended),
        };
        let event = match ended {
            Some(Ok(Ok(()))) => Event::Completed,
            Some(Ok(Err(failure))) => Event::Failed(failure),
            Some(Err(_)) => Event::Failed(Failure::new(ErrorCode::Internal, "internal error; the log has more")),
            None => self.stop().await,
        };
        self.finish(event).await;
        self.remove_partial_upload().await;
    }

    async fn finish(&self, event: Event) {
        match &event {
            Event::Failed(failure) => tracing::warn!(code = ?failure.code, message = failure.message, "failed"),
            Event::Cancelled => tracing::info!("cancelled"),
            _ => tracing::info!("completed"),
        }
        let message = match &event {
            Event::Failed(failure) => Err(failure.message.clone()),
            _ => Ok(()),
        };
        let revision = self.apply(event);
        if let Some(revision) = revision
            && let Err(error) = self.store.durable(revision).await
        {
            tracing::warn!(%error, "the final status is only in memory");
        }
        self.report_tunnel(message);
    }

    async fn story(&self) -> Result<(), Failure> {
        let mut link = self.connect().await?;
        let mut patience = Patience::new();
        loop {
            let began = Instant::now();
            match self.advance(&link).await {
                Ok(()) => return Ok(()),
                Err(StepError::Fatal(failure)) => return Err(failure),
                Err(StepError::LinkLost(cause)) => {
                    drop(link);
                    if began.elapsed() >= STABLE {
                        patience = Patience::new();
                    }
                    link = self.reconnect(&cause, &mut patience).await?;
                }
            }
        }
    }

    /// Takes every step that is left.
    async fn advance(&self, link: &Link) -> Result<(), StepError> {
        loop {
            let mut socket = None;
            if self.state()?.submission == Submission::None {
                let definitions = self.plan(link).await?;
                let graph = self.upload_inputs(link, definitions.as_ref()).await?;
                // Before the submission, so that no message is missed.
                socket = self.listen(link).await?;
                self.submit(link, &graph).await?;
            }
            let ending = self.follow(link, socket).await?;
            match self.collect_outputs(link, ending).await? {
                Collected::All => return Ok(()),
                Collected::GoneFromCache => self.start_over(link).await?,
            }
        }
    }

    /// The first way to the box. Its failure is final, and known to whoever waits for the answer to execute.
    async fn connect(&self) -> Result<Link, Failure> {
        let state = self.state().map_err(into_failure)?;
        // A recovered run whose tunnel had stood before.
        if state.phase() > Some(Phase::Connecting) {
            self.report_tunnel(Ok(()));
            return self.reconnect("the service was restarted", &mut Patience::new()).await;
        }
        self.apply(Event::Entered(Phase::Connecting));
        let (target, port) = (self.target()?, state.request.comfyui_port);
        let link = Link::open(&self.pool, &target, port).await.map_err(|error| tunnel_failure(&error))?;
        self.report_tunnel(Ok(()));
        for warning in link.warnings() {
            self.warn(warning);
        }
        let deadline = Instant::now() + COMFYUI_PATIENCE;
        let mut pauses = Pauses::new();
        loop {
            match link.probe(port).await {
                Ok(info) => {
                    tracing::info!(comfyui.version = info.version, "reached ComfyUI");
                    return Ok(link);
                }
                Err(message) if Instant::now() >= deadline => {
                    return Err(Failure::new(ErrorCode::ComfyuiUnreachable, message));
                }
                Err(message) => tracing::debug!(message, "ComfyUI does not answer yet"),
            }
            pauses.next().await;
        }
    }

    /// A new way to the box after one has stood, tried until the patience is over.
    pub(super) async fn reconnect(&self, cause: &str, patience: &mut Patience) -> Result<Link, Failure> {
        tracing::info!(cause, "connecting again");
        let port = self.state().map_err(into_failure)?.request.comfyui_port;
        let target = self.target()?;
        let mut last = Failure::new(ErrorCode::SshUnreachable, format!("the way to the box was lost: {cause}"));
        while patience.wait(self.unreachable_limit()).await {
            last = match Link::open(&self.pool, &target, port).await {
                Ok(link) => match link.probe(port).await {
                    Ok(_) => return Ok(link),
                    Err(message) => Failure::new(ErrorCode::ComfyuiUnreachable, message),
                },
                Err(error) if error.is_transient() => tunnel_failure(&error),
                Err(error) => return Err(tunnel_failure(&error)),
            };
            tracing::debug!(message = last.message, "still out of reach");
        }
        Err(last)
    }

    /// How long the box may stay out of reach.
    fn unreachable_limit(&self) -> Duration {
        match self.state().map(|state| state.submission) {
            Ok(Submission::Unclear | Submission::Accepted) => self.options.unreachable_limit,
            _ => self.options.unreachable_before_submit,
        }
    }

    /// Learns the box's node definitions and cuts the nodes to those that will run. `None` when they can't be had.
    async fn plan(&self, link: &Link) -> Result<Option<Definitions>, StepError> {
        let graph = self.store.graph(&self.id).await?;
        let definitions = match link.client.definitions(&graph.classes()).await {
            Ok(definitions) => definitions,
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                self.warn(format!("the box's node definitions could not be read: {error}"));
                return Ok(None);
            }
        };
        let is_output = |class: &str| definitions.class(class).is_some_and(|definition| definition.output_node);
        self.apply(Event::Planned(graph.order_from(|_, node| is_output(node.class_type()))));
        self.apply(Event::Entered(Phase::Uploading));
        Ok(Some(definitions))
    }

    /// A websocket, if there is one to be had: without it the run is followed by polling.
    async fn listen(&self, link: &Link) -> Result<Option<Socket>, StepError> {
        match self.subscribe(link).await {
            Ok(socket) => Ok(Some(socket)),
            Err(lost @ StepError::LinkLost(_)) if link.is_lost() => Err(lost),
            Err(error) => {
                tracing::info!(?error, "no websocket yet");
                Ok(None)
            }
        }
    }

    /// A websocket for this run, always under the same client id.
    pub(super) async fn subscribe(&self, link: &Link) -> Result<Socket, StepError> {
        let client_id = self.state()?.client_id.clone();
        let key = self.credential_key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let socket = link.subscribe(&client_id, key.as_deref()).await?;
        if let Some(key) = socket.credential_key() {
            *self.credential_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_owned());
        }
        Ok(socket)
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

    fn report_tunnel(&self, outcome: Result<(), String>) {
        self.tunnel.send_if_modified(|known| {
            let news = known.is_none();
            if news {
                *known = Some(outcome);
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
        let state = self.state().map_err(into_failure)?;
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

/// A step's failure where no link is at hand that could be lost.
fn into_failure(error: StepError) -> Failure {
    match error {
        StepError::Fatal(failure) => failure,
        StepError::LinkLost(cause) => Failure::new(ErrorCode::SshUnreachable, cause),
    }
}

/// One spell of trouble with the way to the box: since when, and how long the next pause is.
#[derive(Debug)]
pub(super) struct Patience {
    since: Option<Instant>,
    pauses: Pauses,
}

impl Patience {
    /// The trouble begins with the first try.
    pub(super) fn new() -> Self {
        Self { since: None, pauses: Pauses::new() }
    }

    /// Waits until the next try is due; the first is due at once. `false` when the trouble has lasted for `limit`.
    async fn wait(&mut self, limit: Duration) -> bool {
        match self.since {
            Some(since) => {
                self.pauses.next().await;
                since.elapsed() < limit
            }
            None => {
                self.since = Some(Instant::now());
                true
            }
        }
    }
}

/// Growing pauses with jitter, so that many workflows do not come back at once.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    async fn next(&mut self) {
        let jitter = f64::from(uuid::Uuid::new_v4().as_fields().1) / f64::from(u16::MAX);
        tokio::time::sleep(self.next.mul_f64(0.5 + 0.5 * jitter)).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
    }
}
