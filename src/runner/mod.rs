//! Starts, cancels, recovers and shuts down executions.
//!
//! One task per active workflow. `execution` tells the story of one run from top to bottom; the other files are
//! its chapters. Two kinds of stop are kept apart: *cancel* ends the prompt on the box, *shutdown* leaves it running
//! and the next start goes on with it.

mod admission;
mod allowance;
mod collect;
mod convert;
mod digest;
mod disk;
mod dry_run;
mod ear;
mod early;
mod error;
mod execution;
mod fetch;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hearing;
#[cfg(test)]
mod held_up;
mod known_boxes;
mod later;
mod line;
mod link;
mod looks;
mod options;
mod output_folder;
mod part;
mod patience;
mod preflight;
mod reach;
mod repeats;
mod secrets;
mod stop;
mod submit;
mod turns;
mod upload;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use chrono::Utc;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use admission::Purpose;
pub(crate) use admission::check_box_folder;
pub use admission::{Defaults, ExecuteRequest};
use allowance::Allowance;
pub use dry_run::{
    ConvertRequest, Converted, DryRun, PlannedNode, PlannedOutput, PlannedUpload, WorkflowGiven, dry_run,
};
pub use error::ExecuteError;
use execution::Execution;
use known_boxes::KnownBoxes;
pub use later::Fetching;
use later::Later;
pub use line::{Full, Limits};
use line::{Line, Seat, SeatNumber};
pub use options::{FileRules, Options};
use part::Parts;
use repeats::Named;
use turns::Turns;

use crate::{
    ssh::Pool,
    store::{Store, StoreError},
    workflow::{Caller, Event, Failure, Phase, WorkflowId, WorkflowState},
};

/// How often a taken workflow id is replaced by another before that is an error.
const ID_ATTEMPTS: u32 = 16;

/// How long cancel waits for the disk. The request is remembered in memory in any case.
const CANCEL_DURABLE: Duration = Duration::from_secs(2);

/// An accepted workflow.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub workflow_id: WorkflowId,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// Why it failed, if it did so while the caller waited: there was no tunnel, or the file can't be converted for the
    /// box. The workflow is on record all the same.
    pub failed: Option<Failure>,
}

/// Runs workflows. Clones are handles to the same runner.
#[derive(Debug, Clone)]
pub struct Runner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    pool: Pool,
    options: Options,
    executions: TaskTracker,
    running: Mutex<HashMap<WorkflowId, Running>>,
    line: Line,
    turns: Turns<String>,
    marking: Arc<Turns<String>>,
    known_boxes: Arc<KnownBoxes>,
    later: Later,
    shutdown: CancellationToken,
}

/// How to reach the task of an active workflow.
#[derive(Debug)]
struct Running {
    cancel: CancellationToken,
    seat: SeatNumber,
}

/// How an execution began, for the caller of execute; `None` while that is open.
type Beginning = Option<Result<(), Failure>>;

impl Runner {
    /// Begins with what the store has: every workflow without a final status goes on where it was, or waits in line
    /// where it did, ahead of all new ones.
    pub fn start(store: Store, pool: Pool, options: Options) -> Self {
        let inner = Inner {
            store,
            pool,
            line: Line::new(options.limits),
            options,
            executions: TaskTracker::new(),
            running: Mutex::new(HashMap::new()),
            turns: Turns::default(),
            marking: Arc::default(),
            known_boxes: Arc::default(),
            later: Later::default(),
            shutdown: CancellationToken::new(),
        };
        let runner = Self { inner: Arc::new(inner) };
        let has_begun = |state: &Arc<WorkflowState>| state.phase() > Some(Phase::Waiting);
        let (begun, waiting): (Vec<_>, Vec<_>) = runner.inner.store.active().into_iter().partition(has_begun);
        let box_name = |state: &WorkflowState| runner.inner.pool.box_name(&state.request.ssh_connection);
        for state in begun {
            tracing::info!(workflow.id = %state.id, prompt.id = %state.prompt_id, "going on with a workflow");
            runner.spawn(&state.id, runner.inner.line.go_on(box_name(&state), state.caller.clone()));
        }
        for state in waiting {
            tracing::info!(workflow.id = %state.id, "a workflow is in line again");
            runner.spawn(&state.id, runner.inner.line.line_up(box_name(&state), state.caller.clone()));
        }
        runner
    }

    /// Checks a request, puts it on record and starts it, or lines it up. Waits a moment for the tunnel of one that
    /// starts, so that a wrong connection string is answered at once. `warnings` are added to the workflow's own.
    ///
    /// With a `key`, the caller's own name for the request, the same request of the same caller is carried out once
    /// however often it comes, also across restarts: a repeat gets the first one's answer, and waits for it if need be.
    ///
    /// # Errors
    /// When a check fails, too many are waiting, or the workflow could not be put on record; then nothing of it stays.
    pub async fn execute(
        &self,
        request: ExecuteRequest,
        caller: Caller,
        warnings: Vec<String>,
        key: Option<String>,
    ) -> Result<Started, ExecuteError> {
        let (idempotency, turn) = match key {
            None => (None, None),
            Some(key) => match self.named(&request, &caller, key).await? {
                Named::Known(started) => return Ok(started),
                Named::New(idempotency, turn) => (Some(idempotency), Some(turn)),
            },
        };
        let mut admitted = admission::check(request, Purpose::Run, &self.inner.options, &self.inner.pool).await?;
        admitted.warnings.splice(0..0, warnings);
        admitted.idempotency = idempotency;
        admitted.caller = Some(caller);
        self.start_admitted(admitted, turn).await
    }

    /// Starts a finished workflow again, as a new one with the same request and what its file held when it was accepted.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); also when the workflow is unknown or still active.
    pub async fn retry(&self, id: &WorkflowId, caller: Caller) -> Result<Started, ExecuteError> {
        let state = self.inner.store.get(id).ok_or_else(|| ExecuteError::Unknown(id.clone()))?;
        if state.is_active() {
            return Err(ExecuteError::StillActive(id.clone()));
        }
        let source = self.inner.store.source(id).await.map_err(|cause| {
            tracing::warn!(workflow.id = %id, error = %cause, "a workflow cannot be started again");
            ExecuteError::NotKept { cause, file: state.request.workflow_file.clone() }
        })?;
        let (options, pool) = (&self.inner.options, &self.inner.pool);
        let mut admitted = admission::check_again(state.request.clone(), source, options, pool).await?;
        admitted.workflow_format = state.workflow_format;
        admitted.retry_of = Some(id.clone());
        admitted.caller = Some(caller);
        self.start_admitted(admitted, None).await
    }

    /// [`dry_run()`] with the settings and connections of this runner.
    ///
    /// # Errors
    /// As there; also when the service stops meanwhile.
    pub async fn dry_run(&self, request: ExecuteRequest) -> Result<DryRun, ExecuteError> {
        self.unless_stopped(dry_run(request, &self.inner.options, &self.inner.pool)).await
    }

    /// Converts a workflow for a box, or with node definitions from a file.
    ///
    /// # Errors
    /// When the workflow can't be read or converted, or the box can't be asked.
    pub async fn convert(&self, request: ConvertRequest) -> Result<Converted, ExecuteError> {
        self.unless_stopped(dry_run::convert(request, &self.inner.options, &self.inner.pool)).await
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, ExecuteError>>) -> Result<T, ExecuteError> {
        let ended = self.inner.shutdown.run_until_cancelled(work).await;
        ended.unwrap_or(Err(ExecuteError::Stopping))
    }

    async fn start_admitted(
        &self,
        admitted: admission::Admitted,
        turn: Option<repeats::Turn>,
    ) -> Result<Started, ExecuteError> {
        if self.inner.shutdown.is_cancelled() {
            return Err(ExecuteError::Stopping);
        }
        let seat = self
            .inner
            .line
            .reserve(admitted.box_name.clone(), admitted.caller.clone())
            .map_err(ExecuteError::LineFull)?;
        // In a task of its own, which has the turn too: a caller that hangs up must leave neither a workflow on record that
        // nobody runs, nor one half on record for the repeat of its request.
        let this = self.clone();
        let begun = tokio::spawn(async move {
            let begun = this.begin(admitted, seat).await;
            drop(turn);
            begun
        });
        begun.await?
    }

    async fn begin(&self, admitted: admission::Admitted, seat: Seat) -> Result<Started, ExecuteError> {
        let warnings = admitted.warnings.clone();
        let (workflow_id, mut beginning) = self.accept(admitted, seat).await?;
        let known = tokio::time::timeout(self.inner.options.execute_wait, beginning.wait_for(Option::is_some)).await;
        let failed = match known {
            Ok(Ok(outcome)) => outcome.clone().and_then(Result::err),
            _ => None,
        };
        if let Some(failure) = &failed {
            self.inner.store.apply(&workflow_id, Event::AnsweredWithError(failure.message.clone()));
        }
        Ok(Started { workflow_id, warnings, failed })
    }

    /// Asks an active workflow to stop; that it has stopped shows in its status. Asking twice is the same as once.
    /// `false` when it is unknown or already over.
    pub async fn cancel(&self, id: &WorkflowId) -> bool {
        if !self.inner.store.get(id).is_some_and(|state| state.is_active()) {
            return false;
        }
        let Some(revision) = self.inner.store.apply(id, Event::CancelRequested) else { return false };
        if let Some(running) = self.running().get(id) {
            running.cancel.cancel();
        }
        tracing::info!(workflow.id = %id, "cancel requested");
        match tokio::time::timeout(CANCEL_DURABLE, self.inner.store.durable(revision)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(workflow.id = %id, %error, "a cancel request is only in memory"),
            Err(_) => tracing::warn!(workflow.id = %id, "a cancel request is not on disk yet"),
        }
        // It may have ended between the look and the request.
        self.inner.store.get(id).is_some_and(|state| state.cancel_requested)
    }

    /// The place of an active workflow in our own line, 1 = next; `None` when it is not in it.
    pub fn local_queue_position(&self, id: &WorkflowId) -> Option<usize> {
        let seat = self.running().get(id)?.seat;
        self.inner.line.position(seat)
    }

    /// Ends every task and leaves the prompts on the boxes running. Nothing starts any more.
    pub async fn shutdown(&self) {
        self.inner.shutdown.cancel();
        self.inner.executions.close();
        self.inner.executions.wait().await;
        self.inner.pool.close_all().await;
    }

    async fn accept(
        &self,
        admitted: admission::Admitted,
        seat: Seat,
    ) -> Result<(WorkflowId, watch::Receiver<Beginning>), ExecuteError> {
        for _ in 0..ID_ATTEMPTS {
            let now = Utc::now();
            let id = WorkflowId::new(now, uuid::Uuid::new_v4().as_fields().0);
            let mut state = WorkflowState::accepted(id.clone(), admitted.request.clone(), &admitted.source, now);
            state.workflow_format = admitted.workflow_format;
            state.retry_of.clone_from(&admitted.retry_of);
            state.idempotency.clone_from(&admitted.idempotency);
            state.caller.clone_from(&admitted.caller);
            for warning in &admitted.warnings {
                state.apply(now, Event::Warned(warning.clone()));
            }
            match self.inner.store.insert(state, &admitted.source).await {
                Ok(()) => {
                    tracing::info!(workflow.id = %id, workflow.name = admitted.request.workflow_name, "accepted");
                    let beginning = self.spawn(&id, seat);
                    return Ok((id, beginning));
                }
                Err(StoreError::Taken) => {}
                Err(error) => {
                    tracing::error!(%error, "a workflow could not be put on record");
                    return Err(ExecuteError::NotRecorded(error));
                }
            }
        }
        Err(ExecuteError::NotRecorded(StoreError::Taken))
    }

    fn spawn(&self, id: &WorkflowId, seat: Seat) -> watch::Receiver<Beginning> {
        let cancel = CancellationToken::new();
        self.running().insert(id.clone(), Running { cancel: cancel.clone(), seat: seat.number() });
        // Asked before the last stop, or after it was put on record and before it could be told.
        if self.inner.store.get(id).is_some_and(|state| state.cancel_requested) {
            cancel.cancel();
        }
        let (beginning, known) = watch::channel(None);
        let execution = self.execution(id, beginning);
        let (runner, id) = (self.clone(), id.clone());
        let span = tracing::info_span!("execution", workflow.id = %id);
        let task = async move {
            tokio::select! {
                // Looked at first: while tasks end one by one, those in line must not come up and begin.
                biased;
                () = runner.inner.shutdown.cancelled() => {
                    // Of one that has ended, nobody would clean up at the next start.
                    execution.remove_partial_upload().await;
                    tracing::info!("left to the next start");
                }
                () = execution.run(seat, cancel) => {}
            }
            runner.running().remove(&id);
        };
        self.inner.executions.spawn(task.instrument(span));
        known
    }

    fn execution(&self, id: &WorkflowId, beginning: watch::Sender<Beginning>) -> Execution {
        let had =
            self.inner.store.get(id).map_or(0, |state| state.outputs.iter().filter_map(|output| output.size).sum());
        Execution {
            id: id.clone(),
            store: self.inner.store.clone(),
            pool: self.inner.pool.clone(),
            options: self.inner.options.clone(),
            beginning,
            marking: self.inner.marking.clone(),
            known_boxes: self.inner.known_boxes.clone(),
            credential_key: Mutex::new(None),
            secrets: OnceLock::new(),
            good_looks: AtomicU64::new(0),
            parts: Parts::of(id.clone(), self.inner.options.files.write_roots.clone()),
            allowance: Allowance::new(self.inner.options.files.download_bytes, had),
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<WorkflowId, Running>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
