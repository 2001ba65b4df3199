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
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    error::{StepError, is_lost},
    execution::{Collected, Execution},
    follow::{Ending, failure_of},
    link::Link,
    output_folder::{Incoming, StoreFileError, remove_parts},
};
use crate::{
    comfy::{ComfyError, Viewed},
    ssh::{Transfer, TransferError},
    workflow::{BoxEvent, ErrorCode, Event, Output, Phase, WorkflowState},
};

/// How many files come at once: more would compete with the run itself on ComfyUI's side.
const PARALLEL: usize = 4;

/// How often one file is tried.
const ATTEMPTS: u32 = 3;

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
    /// Worth another try.
    Retry(String),
}

impl Execution {
    /// Brings every output of the run here. After a failed run, what its finished nodes left comes here too, and then
    /// the failure is returned.
    pub(super) async fn collect_outputs(&self, link: &Link, ending: Ending) -> Result<Collected, StepError> {
        let failure = failure_of(&ending);
        self.apply(Event::Box(BoxEvent::Cached(ending.cached.clone())));
        for (node, output) in &ending.outputs {
            self.apply(Event::Box(BoxEvent::NodeOutput { node: node.clone(), output: output.clone() }));
        }
        if failure.is_none() {
            self.apply(Event::Entered(Phase::Downloading));
        }
        let gone = self.fetch_missing(link).await;
        match (failure, gone) {
            (_, Err(lost @ StepError::LinkLost(_))) => Err(lost),
            (Some(failure), Ok(_)) => Err(StepError::Fatal(failure)),
            (Some(failure), Err(StepError::Fatal(other))) => {
                self.warn(format!("an output of the failed run could not be fetched: {}", other.message));
                Err(StepError::Fatal(failure))
            }
            (None, Err(fatal)) => Err(fatal),
            (None, Ok(gone)) if gone.is_empty() => Ok(Collected::All),
            (None, Ok(gone)) if gone.iter().any(|output| ending.cached.contains(&output.node_id)) => {
                Ok(Collected::GoneFromCache)
            }
            (None, Ok(gone)) => Err(StepError::fatal(ErrorCode::DownloadFailed, gone_message(&gone))),
        }
    }

    /// Fetches what is not here yet, and returns what is no longer on the box.
    async fn fetch_missing(&self, link: &Link) -> Result<Vec<Output>, StepError> {
        let state = self.state()?;
        self.remove_parts(&state).await;
        let mut missing = state.outputs.iter().filter(|output| !output.downloaded()).cloned();
        let by_view = AtomicBool::new(false);
        let mut fetches: FuturesUnordered<_> =
            missing.by_ref().take(PARALLEL).map(|output| self.fetch(link, output, &by_view)).collect();
        let (mut gone, mut failed) = (Vec::new(), None);
        while let Some((output, fetched)) = fetches.next().await {
            fetches.extend(missing.next().map(|next| self.fetch(link, next, &by_view)));
            match fetched {
                Ok(Fetched::Stored(local_path, size)) => {
                    self.apply(Event::Stored { node: output.node_id, file: output.remote, local_path, size });
                }
                Ok(Fetched::Gone) => gone.push(output),
                Err(lost @ StepError::LinkLost(_)) => return Err(lost),
                Err(fatal) => failed = failed.or(Some(fatal)),
            }
        }
        match failed {
            Some(fatal) => Err(fatal),
            None => Ok(gone),
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

    async fn fetch(&self, link: &Link, output: Output, by_view: &AtomicBool) -> (Output, Result<Fetched, StepError>) {
        let fetched = self.fetch_with_retries(link, &output, by_view).await;
        (output, fetched)
    }

    async fn fetch_with_retries(
        &self,
        link: &Link,
        output: &Output,
        by_view: &AtomicBool,
    ) -> Result<Fetched, StepError> {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match self.try_fetch(link, output, by_view).await {
                Ok(fetched) => return Ok(fetched),
                Err(FetchError::Step(error)) => return Err(error),
                Err(FetchError::Retry(cause)) => {
                    tracing::warn!(file = output.remote.filename, cause, "a download failed");
                    last = cause;
                }
            }
        }
        let message = format!("could not download {}: {last}", output.remote.filename);
        Err(StepError::fatal(ErrorCode::DownloadFailed, message))
    }

    async fn try_fetch(&self, link: &Link, output: &Output, by_view: &AtomicBool) -> Result<Fetched, FetchError> {
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
        let size = match self.sftp_way(link, output, viewed.as_ref(), by_view).await? {
            Some(transfer) => transfer.download(&output.remote_path, &mut writer, MAX_FILE_BYTES).await?,
            None => {
                let mut body = link.client.view(&output.remote).await?;
                body.copy_to(&mut writer, MAX_FILE_BYTES).await?
            }
        };
        tokio::io::AsyncWriteExt::flush(&mut writer).await.map_err(|error| FetchError::Retry(error.to_string()))?;
        if let Some(expected) = viewed.and_then(|viewed| viewed.size).filter(|expected| *expected != size) {
            return Err(FetchError::Retry(format!("{size} bytes came instead of {expected}")));
        }
        let path = blocking(move || incoming.keep()).await?;
        Ok(Fetched::Stored(path, size))
    }

    /// SFTP, if the file in the folder of the request is certainly the one that ComfyUI means.
    async fn sftp_way<'l>(
        &self,
        link: &'l Link,
        output: &Output,
        viewed: Option<&Viewed>,
        by_view: &AtomicBool,
    ) -> Result<Option<&'l Transfer>, FetchError> {
        let reason = match link.transfer().await? {
            Ok(transfer) => match transfer.stat(&output.remote_path).await {
                Ok(Some(stat)) if viewed.is_none_or(|viewed| viewed.is_same_file(stat.size, stat.modified)) => {
                    return Ok(Some(transfer));
                }
                Ok(_) => "ComfyUI's output folder is not the one of the request; is comfyui_output_dir right?".into(),
                Err(error) if is_lost(&error) => return Err(error.into()),
                Err(error) => error.to_string(),
            },
            Err(reason) => reason.to_owned(),
        };
        if !by_view.swap(true, Ordering::Relaxed) {
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
        Err(_) => Err(FetchError::Retry("the service is stopping".into())),
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
        // An error status may be about this one file: on a new link it would be the same.
        match error {
            ComfyError::Unreachable { .. } | ComfyError::Timeout { .. } => Self::Step(error.into()),
            ComfyError::Local { source, .. } => Self::Step(local_failure(&source)),
            _ => Self::Retry(error.to_string()),
        }
    }
}

impl From<TransferError> for FetchError {
    fn from(error: TransferError) -> Self {
        match &error {
            lost if is_lost(lost) => Self::Step(StepError::LinkLost(error.to_string())),
            TransferError::Local { source, .. } => Self::Step(local_failure(source)),
            _ => Self::Retry(error.to_string()),
        }
    }
}
