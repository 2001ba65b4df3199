//! Chapter: the outputs come here.
//!
//! A file goes by SFTP where the request's folder is the one that ComfyUI uses, which shows in size and time; else
//! through ComfyUI's own `/view`. It lies in the output folder only when it is whole.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::OnceCell;

use super::{
    error::{StepError, transfer_lost},
    execution::{Collected, Execution},
    follow::{Ending, failure_of},
    link::Link,
    output_folder::{Incoming, StoreFileError, remove_parts},
    patience::Patience,
};
use crate::{
    comfy::{ComfyError, Viewed},
    ssh::{Transfer, TransferError},
    workflow::{BoxEvent, ErrorCode, Event, Failure, Output, Phase, WorkflowState},
};

/// How many files come at once: more would compete with the run itself on ComfyUI's side.
const PARALLEL: usize = 4;

/// How long one file that does not come is tried again.
const FILE_PATIENCE: Duration = Duration::from_secs(10);

/// The largest file that is taken.
const MAX_FILE_BYTES: u64 = 1 << 40;

/// What became of one file.
enum Fetched {
    Stored(PathBuf, u64),
    Gone,
}

/// Why one file did not come.
enum FetchError {
    Step(StepError),
    /// Worth another try; when that does not help either, the box may do better later or not.
    Retry {
        cause: String,
        may_pass: bool,
    },
}

/// How the files of one step come.
struct Ways {
    link_transfer: OnceCell<Result<Transfer, String>>,
    /// The user knows that SFTP does not serve.
    is_said: AtomicBool,
}

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
        match self.fetch_missing(link).await {
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
        let gone = self.fetch_missing(link).await?;
        let state = self.state()?;
        let is_cached = |output: &Output| state.nodes.get(&output.node_id).is_some_and(|node| node.is_cached());
        if gone.is_empty() {
            Ok(Collected::All)
        } else if gone.iter().any(is_cached) {
            Ok(Collected::GoneFromCache)
        } else {
            Err(StepError::fatal(ErrorCode::DownloadFailed, gone_message(&gone)))
        }
    }

    /// Fetches what is not here yet, and returns what is no longer on the box.
    async fn fetch_missing(&self, link: &Link) -> Result<Vec<Output>, StepError> {
        let state = self.state()?;
        self.remove_parts(&state).await;
        let mut missing = state.outputs.iter().filter(|output| !output.downloaded()).cloned();
        let ways = Ways { link_transfer: OnceCell::new(), is_said: AtomicBool::new(false) };
        let mut fetches: FuturesUnordered<_> =
            missing.by_ref().take(PARALLEL).map(|output| self.fetch(link, output, &ways)).collect();
        let (mut gone, mut failed) = (Vec::new(), None);
        while let Some((output, fetched)) = fetches.next().await {
            fetches.extend(missing.next().map(|next| self.fetch(link, next, &ways)));
            match fetched {
                Ok(Fetched::Stored(local_path, size)) => {
                    self.apply(Event::Stored { node: output.node_id, file: output.remote, local_path, size });
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

    /// Brings one file here while the run goes on. What does not work now is left to the end of the run.
    pub(super) async fn fetch_early(&self, link: &Link, output: Output) {
        let ways = Ways { link_transfer: OnceCell::new(), is_said: AtomicBool::new(false) };
        match self.try_fetch(link, &output, &ways).await {
            Ok(Fetched::Stored(local_path, size)) => {
                tracing::info!(file = output.remote.filename, "fetched while the run goes on");
                self.apply(Event::Stored { node: output.node_id, file: output.remote, local_path, size });
            }
            Ok(Fetched::Gone) | Err(_) => {
                tracing::debug!(file = output.remote.filename, "not fetched yet");
            }
        }
    }

    /// Removes what a killed service had half-way.
    async fn remove_parts(&self, state: &Arc<WorkflowState>) {
        let state = state.clone();
        let work = move || {
            for output in state.outputs.iter().filter(|output| !output.downloaded()) {
                remove_parts(&state.request.output_dir, &output.remote, &state.id);
            }
        };
        tokio::task::spawn_blocking(work).await.ok();
    }

    async fn fetch(&self, link: &Link, output: Output, ways: &Ways) -> (Output, Result<Fetched, StepError>) {
        let fetched = self.fetch_with_retries(link, &output, ways).await;
        (output, fetched)
    }

    async fn fetch_with_retries(&self, link: &Link, output: &Output, ways: &Ways) -> Result<Fetched, StepError> {
        let mut patience = Patience::new();
        loop {
            let (cause, may_pass) = match self.try_fetch(link, output, ways).await {
                Ok(fetched) => return Ok(fetched),
                Err(FetchError::Step(error)) => return Err(error),
                Err(FetchError::Retry { cause, may_pass }) => (cause, may_pass),
            };
            tracing::warn!(file = output.remote.filename, cause, "a download failed");
            if !patience.pause(FILE_PATIENCE).await {
                let message = format!("could not download {}: {cause}", output.remote.filename);
                let failure = Failure::new(ErrorCode::DownloadFailed, message);
                return Err(if may_pass { StepError::Trouble(failure) } else { StepError::Fatal(failure) });
            }
        }
    }

    async fn try_fetch(&self, link: &Link, output: &Output, ways: &Ways) -> Result<Fetched, FetchError> {
        let viewed = match link.client.stat_view(&output.remote).await {
            Ok(Some(viewed)) => Some(viewed),
            Ok(None) => return Ok(Fetched::Gone),
            // ComfyUI shows no file with two dots in its name (server.py, view_image, v0.3.64).
            Err(ComfyError::Status { status: 400, .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let (root, file, id) = (self.request()?.output_dir, output.remote.clone(), self.id.clone());
        let incoming = blocking(move || Incoming::open(&root, &file, &id)).await?;
        let mut writer = incoming.writer()?;
        let size = match self.sftp_way(link, output, viewed.as_ref(), ways).await? {
            Some(transfer) => transfer.download(&output.remote_path, &mut writer, MAX_FILE_BYTES).await?,
            None => {
                let mut body = link.client.view(&output.remote).await?;
                body.copy_to(&mut writer, MAX_FILE_BYTES).await?
            }
        };
        tokio::io::AsyncWriteExt::flush(&mut writer).await.map_err(|error| FetchError::Step(local_failure(&error)))?;
        if let Some(expected) = viewed.and_then(|viewed| viewed.size).filter(|expected| *expected != size) {
            return Err(FetchError::retry(format!("{size} bytes came instead of {expected}")));
        }
        let path = blocking(move || incoming.keep()).await?;
        Ok(Fetched::Stored(path, size))
    }

    /// SFTP, if the file in the folder of the request is certainly the one that ComfyUI means.
    async fn sftp_way<'w>(
        &self,
        link: &Link,
        output: &Output,
        viewed: Option<&Viewed>,
        ways: &'w Ways,
    ) -> Result<Option<&'w Transfer>, FetchError> {
        let reason = match ways.link_transfer.get_or_try_init(|| link.transfer()).await? {
            Ok(transfer) => match transfer.stat(&output.remote_path).await {
                Ok(Some(stat)) if viewed.is_none_or(|viewed| viewed.is_same_file(stat.size, stat.modified)) => {
                    return Ok(Some(transfer));
                }
                Ok(_) => "ComfyUI's output folder is not the one of the request; is comfyui_output_dir right?".into(),
                Err(error) => match transfer_lost(&error) {
                    Some(lost) => return Err(lost.into()),
                    None => error.to_string(),
                },
            },
            Err(reason) => reason.clone(),
        };
        if !ways.is_said.swap(true, Ordering::Relaxed) {
            self.warn(format!("outputs were downloaded through ComfyUI instead of SFTP: {reason}"));
        }
        Ok(None)
    }
}

fn gone_message(gone: &[Output]) -> String {
    let names: Vec<&str> = gone.iter().take(5).map(|output| output.remote.filename.as_str()).collect();
    format!("{} output file(s) are no longer on the box: {}", gone.len(), names.join(", "))
}

fn local_failure(error: &io::Error) -> StepError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let code = if full { ErrorCode::DiskFull } else { ErrorCode::DownloadFailed };
    StepError::fatal(code, format!("an output could not be written here: {error}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreFileError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(FetchError::retry("the service is stopping".into())),
    }
}

impl FetchError {
    fn retry(cause: String) -> Self {
        Self::Retry { cause, may_pass: false }
    }
}

impl From<StepError> for FetchError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<StoreFileError> for FetchError {
    fn from(error: StoreFileError) -> Self {
        let code = match &error {
            StoreFileError::Name { .. } => ErrorCode::PathRefused,
            error if error.is_disk_full() => ErrorCode::DiskFull,
            StoreFileError::Io { .. } => ErrorCode::DownloadFailed,
        };
        Self::Step(StepError::fatal(code, error.to_string()))
    }
}

impl From<ComfyError> for FetchError {
    fn from(error: ComfyError) -> Self {
        match &error {
            ComfyError::Unreachable { .. } | ComfyError::Timeout { .. } => Self::Step(error.into()),
            ComfyError::Local { source, .. } => Self::Step(local_failure(source)),
            _ => Self::Retry { cause: error.to_string(), may_pass: error.is_transient() },
        }
    }
}

impl From<TransferError> for FetchError {
    fn from(error: TransferError) -> Self {
        match (transfer_lost(&error), &error) {
            (Some(lost), _) => Self::Step(lost),
            (None, TransferError::Local { source, .. }) => Self::Step(local_failure(source)),
            (None, _) => Self::retry(error.to_string()),
        }
    }
}
