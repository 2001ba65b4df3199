//! Outputs that are fetched after the end, because the user asks for what is missing: what did not come, what is no longer
//! here, and what a run left that was not over when it was given up.
//!
//! One task per workflow at a time. It does not outlive the service: the user can ask again.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tracing::Instrument;

use super::{
    Runner,
    collect::gone_message,
    error::{ExecuteError, StepError, tunnel_failure},
    execution::Execution,
    link::Link,
    patience::Patience,
};
use crate::workflow::{ErrorCode, Event, Failure, Output, RemoteFile, Submission, WorkflowId, WorkflowState};

/// What is being fetched of a finished workflow.
#[derive(Debug, Clone, PartialEq)]
pub enum Fetching {
    /// These outputs, and whatever the box may know of besides.
    Outputs(Vec<Output>),
    /// The box is asked what the run has left; nothing of it is on record.
    WhatTheBoxKnows,
    /// Nothing: every output is here.
    Nothing,
    /// Nothing: it was never sent to the box.
    NeverRan,
}

/// What is being fetched, by workflow. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Later {
    under_way: Arc<Mutex<HashMap<WorkflowId, Fetching>>>,
}

/// One workflow's place among those; dropped, it is free again.
struct Place {
    later: Later,
    id: WorkflowId,
}

impl Runner {
    /// Begins to fetch the outputs of a finished workflow that are not here, or no longer, and returns which. Where nobody
    /// saw how the run ended on the box, the box is asked what it left. The result shows in the workflow: its outputs, and
    /// either `completed`, if nothing but downloads had failed, or why it failed again. While that is under way, asking
    /// again changes nothing and has the same answer.
    ///
    /// # Errors
    /// When the workflow is unknown or still active, or the service is about to end.
    pub async fn download(&self, id: &WorkflowId) -> Result<Fetching, ExecuteError> {
        let state = self.inner.store.get(id).ok_or_else(|| ExecuteError::Unknown(id.clone()))?;
        if state.is_active() {
            return Err(ExecuteError::StillActive(id.clone()));
        }
        if self.inner.shutdown.is_cancelled() {
            return Err(ExecuteError::Stopping);
        }
        let lost = lost_here(&state).await;
        let is_missing = |output: &&Output| !output.downloaded() || lost.contains(&output.remote);
        let missing: Vec<Output> = state.outputs.iter().filter(is_missing).cloned().map(Output::not_here).collect();
        let fetching = match (missing.is_empty(), state.may_have_left_more()) {
            (false, _) => Fetching::Outputs(missing),
            (true, true) => Fetching::WhatTheBoxKnows,
            (true, false) if state.submission == Submission::None && state.attempt == 1 => Fetching::NeverRan,
            (true, false) => Fetching::Nothing,
        };
        let place = match self.inner.later.enter(id, &fetching) {
            Ok(place) => place,
            Err(under_way) => return Ok(under_way),
        };
        if matches!(fetching, Fetching::Outputs(_) | Fetching::WhatTheBoxKnows) {
            let execution = self.execution(id, watch::channel(None).0);
            let (runner, span) = (self.clone(), tracing::info_span!("download", workflow.id = %id));
            let task = async move {
                tokio::select! {
                    () = runner.inner.shutdown.cancelled() => tracing::info!("a later download is left undone"),
                    () = execution.fetch_later() => {}
                }
                execution.remove_parts().await;
                drop(place);
            };
            self.inner.executions.spawn(task.instrument(span));
        }
        Ok(fetching)
    }
}

/// The files of a workflow that had come here and are gone.
async fn lost_here(state: &WorkflowState) -> Vec<RemoteFile> {
    let here = |output: &Output| Some((output.remote.clone(), output.local_path.clone()?));
    let here: Vec<_> = state.outputs.iter().filter_map(here).collect();
    let is_gone = |path: &Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let look = move || here.into_iter().filter(|(_, path)| is_gone(path)).map(|(remote, _)| remote).collect();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

impl Execution {
    /// Fetches what is missing of a finished workflow, and notes how that came out.
    async fn fetch_later(&self) {
        match self.fetch_on_any_link().await {
            Ok(()) => tracing::info!("fetched what was missing"),
            Err(failure) => {
                tracing::warn!(message = failure.message, "a later download failed");
                self.apply(Event::NotStoredLater(failure));
            }
        }
    }

    async fn fetch_on_any_link(&self) -> Result<(), Failure> {
        let mut patience = Patience::new();
        let mut link = self.open_link().await?;
        loop {
            let before = self.state().map_err(StepError::into_failure)?.last_update;
            let error = match self.fetch_all_there_is(&link).await {
                Ok(gone) if gone.is_empty() => return Ok(()),
                Ok(gone) => return Err(Failure::new(ErrorCode::DownloadFailed, gone_message(&gone))),
                Err(error) => error,
            };
            if self.state().map_err(StepError::into_failure)?.last_update != before {
                patience = Patience::new();
            }
            let mut last = match error {
                StepError::Fatal(failure) => return Err(failure),
                StepError::LinkLost(failure) | StepError::Trouble(failure) => failure,
            };
            link = loop {
                tracing::info!(message = last.message, "trying again");
                if !patience.pause(self.options.unreachable_before_submit).await {
                    return Err(last);
                }
                match self.open_link().await {
                    Ok(link) => break link,
                    Err(failure) => last = failure,
                }
            };
        }
    }

    /// Fetches what is missing, also of what only the box knows of; returns what is no longer there.
    async fn fetch_all_there_is(&self, link: &Link) -> Result<Vec<Output>, StepError> {
        let state = self.state()?;
        // Only now that they can come again: a disk that is away for a while is back with its files.
        self.apply(Event::LostHere(lost_here(&state).await));
        if state.may_have_left_more() {
            match link.client.find_in_history(&state.prompt_id, &state.id).await? {
                Some((_, ending)) => drop(self.apply(Event::ReportedLater(ending.outputs))),
                None => self.note_no_end(link, &state).await?,
            }
        }
        self.fetch_missing(link, Event::StoredLater).await
    }

    /// Says why the box knows of no end.
    async fn note_no_end(&self, link: &Link, state: &WorkflowState) -> Result<(), StepError> {
        let message = match link.client.queue().await?.place_of(&state.prompt_id, &state.id) {
            Some(_) => "the run is not over on the box; ask again when it is",
            None => {
                "the box knows of no result: the run was taken out of its line, ComfyUI was restarted, or its history \
                 was cleared"
            }
        };
        self.apply(Event::NotStoredLater(Failure::new(ErrorCode::JobLost, message)));
        Ok(())
    }

    async fn open_link(&self) -> Result<Link, Failure> {
        let port = self.request().map_err(StepError::into_failure)?.comfyui_port;
        let link = Link::open(&self.pool, &self.target()?, port).await.map_err(|error| tunnel_failure(&error))?;
        link.probe(port).await?;
        Ok(link)
    }
}

impl Later {
    /// A place for a workflow of which this is to be fetched, or what is being fetched of it already.
    fn enter(&self, id: &WorkflowId, fetching: &Fetching) -> Result<Place, Fetching> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match under_way.get(id) {
            Some(known) => Err(known.clone()),
            None => {
                under_way.insert(id.clone(), fetching.clone());
                Ok(Place { later: self.clone(), id: id.clone() })
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.later.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
