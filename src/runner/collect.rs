//! Chapter: the outputs come here.

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    error::StepError,
    execution::{Collected, Execution},
    fetch::{Fetched, Ways},
    follow::{Ending, failure_of},
    link::Link,
};
use crate::workflow::{BoxEvent, ErrorCode, Event, Failure, Output, Phase, Stored};

/// How many files come at once: more would compete with the run itself on ComfyUI's side.
const PARALLEL: usize = 4;

impl Execution {
    /// Takes in how the run ended, and returns what the workflow fails with if it failed.
    pub(super) fn take_in_ending(&self, ending: Ending) -> Option<Failure> {
        let failure = failure_of(&ending);
        // Of a run that was over before anybody looked, only history tells that it ran.
        self.apply(Event::Box(BoxEvent::Started));
        self.apply(Event::Box(BoxEvent::Cached(ending.cached)));
        for node in ending.finished {
            self.apply(Event::Box(BoxEvent::NodeFinished(node)));
        }
        self.apply(Event::Reported(ending.outputs));
        if failure.is_none() {
            // Only now that all outputs are listed: from here on, the list is what is still to come.
            self.apply(Event::Entered(Phase::Downloading));
        }
        failure
    }

    /// After a failed run: brings here what its finished nodes left, and returns how the step ends.
    pub(super) async fn keep_what_ran(&self, link: &Link, failure: Failure) -> StepError {
        match self.fetch_missing(link, Event::Stored).await {
            Err(error @ (StepError::LinkLost(_) | StepError::Trouble(_))) => return error,
            Err(StepError::Fatal(other)) => {
                self.warn(format!("an output of the failed run could not be fetched: {}", other.message));
            }
            Ok(_) => {}
        }
        StepError::Fatal(failure)
    }

    /// Brings every output of a successful run here.
    pub(super) async fn collect_outputs(&self, link: &Link) -> Result<Collected, StepError> {
        let gone = self.fetch_missing(link, Event::Stored).await?;
        let state = self.state()?;
        if state.outputs_left_out {
            let message = format!(
                "the run reported more output files than are kept on record; {} of them are here, the others are in \
                 ComfyUI's output folder on the box",
                state.outputs.iter().filter(|output| output.downloaded()).count()
            );
            return Err(StepError::fatal(ErrorCode::LimitExceeded, message));
        }
        let is_cached = |output: &Output| state.nodes.get(&output.node_id).is_some_and(|node| node.is_cached());
        if gone.is_empty() {
            Ok(Collected::All)
        } else if gone.iter().any(is_cached) {
            Ok(Collected::GoneFromCache)
        } else {
            Err(StepError::fatal(ErrorCode::DownloadFailed, gone_message(&gone)))
        }
    }

    /// Fetches what is not here yet, and returns what is no longer on the box. `stored` makes the event for a file that
    /// has come.
    pub(super) async fn fetch_missing(
        &self,
        link: &Link,
        stored: impl Fn(Stored) -> Event,
    ) -> Result<Vec<Output>, StepError> {
        let state = self.state()?;
        let mut missing = state.outputs.iter().filter(|output| !output.downloaded()).cloned();
        let ways = Ways::default();
        let mut fetches: FuturesUnordered<_> =
            missing.by_ref().take(PARALLEL).map(|output| self.fetch(link, output, &ways)).collect();
        let (mut gone, mut failed) = (Vec::new(), None);
        while let Some((output, fetched)) = fetches.next().await {
            fetches.extend(missing.next().map(|next| self.fetch(link, next, &ways)));
            match fetched {
                Ok(Fetched::Stored(file)) => {
                    self.apply(stored(file));
                }
                Ok(Fetched::Gone) => gone.push(output),
                Err(lost @ StepError::LinkLost(_)) => return Err(lost),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(gone),
        }
    }

    /// Brings one file here while the run goes on. What does not work now is left to the end of the run, and what has
    /// come of it too.
    pub(super) async fn fetch_early(&self, link: &Link, output: Output) {
        match self.try_fetch(link, &output, &Ways::default()).await {
            Ok(Fetched::Stored(file)) => {
                tracing::info!(file = output.remote.filename, "fetched while the run goes on");
                self.apply(Event::Stored(file));
            }
            Ok(Fetched::Gone) | Err(_) => {
                tracing::debug!(file = output.remote.filename, "not fetched yet");
            }
        }
    }

    /// Removes what has come of files that won't be finished.
    pub(super) async fn remove_parts(&self) {
        let Ok(state) = self.state() else { return };
        let parts = self.parts.clone();
        let remove = move || {
            parts.remove_all(&state.request.output_dir, state.outputs.iter().map(|output| &output.remote));
        };
        tokio::task::spawn_blocking(remove).await.ok();
    }

    async fn fetch(&self, link: &Link, output: Output, ways: &Ways) -> (Output, Result<Fetched, StepError>) {
        let fetched = self.fetch_with_retries(link, &output, ways).await;
        (output, fetched)
    }
}

pub(super) fn gone_message(gone: &[Output]) -> String {
    let names: Vec<&str> = gone.iter().take(5).map(|output| output.remote.filename.as_str()).collect();
    format!("{} output file(s) are no longer on the box: {}", gone.len(), names.join(", "))
}
