//! Outputs that are fetched after the end, because the user asks for what is missing.
//!
//! One task per workflow at a time. It does not outlive the service: the user can ask again.

use std::{
    collections::HashMap,
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
use crate::workflow::{ErrorCode, Event, Failure, Output, WorkflowId};

/// What is being fetched, by workflow. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Later {
    under_way: Arc<Mutex<HashMap<WorkflowId, Vec<Output>>>>,
}

/// One workflow's place among those; dropped, it is free again.
struct Place {
    later: Later,
    id: WorkflowId,
}

impl Runner {
    /// Begins to fetch the outputs of a finished workflow that are not here, and returns which. The result shows in the
    /// workflow: its outputs, and either `completed`, if nothing but downloads had failed, or why it failed again.
    /// While that is under way, asking again changes nothing and has the same answer.
    ///
    /// # Errors
    /// When the workflow is unknown or still active, or the service is about to end.
    pub async fn download(&self, id: &WorkflowId) -> Result<Vec<Output>, ExecuteError> {
        let state = self.inner.store.get(id).ok_or_else(|| ExecuteError::Unknown(id.clone()))?;
        if state.is_active() {
            return Err(ExecuteError::StillActive(id.clone()));
        }
        if self.inner.shutdown.is_cancelled() {
            return Err(ExecuteError::Stopping);
        }
        let missing: Vec<Output> = state.outputs.iter().filter(|output| !output.downloaded()).cloned().collect();
        let place = match self.inner.later.enter(id, &missing) {
            Ok(place) => place,
            Err(under_way) => return Ok(under_way),
        };
        if !missing.is_empty() {
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
        Ok(missing)
    }
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
            let error = match self.fetch_missing(&link, Event::StoredLater).await {
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

    async fn open_link(&self) -> Result<Link, Failure> {
        let port = self.request().map_err(StepError::into_failure)?.comfyui_port;
        let link = Link::open(&self.pool, &self.target()?, port).await.map_err(|error| tunnel_failure(&error))?;
        match link.probe(port).await {
            Ok(_) => Ok(link),
            Err(failure) => Err(failure),
        }
    }
}

impl Later {
    /// A place for a workflow of which this is missing, or what is being fetched of it already.
    fn enter(&self, id: &WorkflowId, missing: &[Output]) -> Result<Place, Vec<Output>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match under_way.get(id) {
            Some(known) => Err(known.clone()),
            None => {
                under_way.insert(id.clone(), missing.to_vec());
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
