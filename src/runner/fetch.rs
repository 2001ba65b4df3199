//! One output on its way here.
//!
//! A file goes by SFTP where the request's folder is the one that ComfyUI uses, which shows in size and time; else
//! through ComfyUI's own `/view`. Either way goes on where an earlier try was cut, if the box still has the same file
//! by all that it tells. It lies in the output folder only when it is whole, and its content is compared with the box's
//! own checksum where there is one.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::try_join;
use indicatif::HumanBytes;
use tokio::sync::OnceCell;

use super::{
    allowance::Share,
    error::{StepError, transfer_lost},
    execution::Execution,
    link::Link,
    output_folder::StoreFileError,
    part::Part,
    patience::Patience,
};
use crate::{
    comfy::{ComfyError, Viewed},
    files::PathError,
    ssh::{Stat, Transfer, TransferError},
    workflow::{ErrorCode, Failure, Output, Stored, WorkflowId},
};

/// How long one file that does not come is tried again; once in any case.
const FILE_PATIENCE: Duration = Duration::from_secs(10);

/// The largest file that is taken.
const MAX_FILE_BYTES: u64 = 1 << 40;

/// The same for a file whose size the box does not tell.
const MAX_UNTOLD_BYTES: u64 = 4 << 30;

/// What became of one file.
pub(super) enum Fetched {
    Stored(Stored),
    Gone,
}

/// Why one file did not come.
pub(super) enum FetchError {
    Step(StepError),
    /// Worth another try; when that does not help either, the box may do better later or not.
    Retry {
        cause: String,
        may_pass: bool,
    },
    /// The file can't be stored here.
    Local(StoreFileError),
}

/// How the files of one step come.
#[derive(Default)]
pub(super) struct Ways {
    transfer: OnceCell<Result<Transfer, String>>,
    /// The user knows that SFTP does not serve.
    is_said: AtomicBool,
}

/// How one file comes, and what is known of it.
enum Way<'w> {
    Sftp(&'w Transfer, Stat),
    View,
}

impl Execution {
    /// Brings one file here.
    pub(super) async fn fetch_with_retries(
        &self,
        link: &Link,
        output: &Output,
        ways: &Ways,
    ) -> Result<Fetched, StepError> {
        let mut patience = Patience::new();
        let name = &output.remote.filename;
        loop {
            let (cause, may_pass) = match self.try_fetch(link, output, ways).await {
                Ok(fetched) => return Ok(fetched),
                Err(FetchError::Step(error)) => return Err(error),
                Err(FetchError::Local(error)) => return Err(StepError::Fatal(local_failure(&self.id, name, &error))),
                Err(FetchError::Retry { cause, may_pass }) => (cause, may_pass),
            };
            tracing::warn!(file = name, cause, "a download failed");
            if !patience.pause(FILE_PATIENCE).await {
                let failure = Failure::new(ErrorCode::DownloadFailed, format!("could not download {name}: {cause}"));
                return Err(if may_pass { StepError::Trouble(failure) } else { StepError::Fatal(failure) });
            }
        }
    }

    /// Tries once to bring one file here. What has come of it when that fails stays for the next try.
    pub(super) async fn try_fetch(&self, link: &Link, output: &Output, ways: &Ways) -> Result<Fetched, FetchError> {
        let viewed = match link.client.stat_view(&output.remote).await {
            Ok(Some(viewed)) => Some(viewed),
            Ok(None) => return Ok(Fetched::Gone),
            // ComfyUI shows no file with two dots in its name (server.py, view_image, v0.3.64).
            Err(ComfyError::Status { status: 400, .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let way = self.way(link, output, viewed.as_ref(), ways).await?;
        let viewed = viewed.unwrap_or_default();
        let size = way.size(&viewed);
        if size.is_some_and(|size| size > MAX_FILE_BYTES) {
            let cause = format!("the box says that it is larger than {}", HumanBytes(MAX_FILE_BYTES));
            return Err(FetchError::Retry { cause, may_pass: false });
        }
        let mut part = self.open_part(output, way.content(&viewed), size).await?;
        let share = self.allowance.share(part.length(), size)?;
        let brought = self.bring(link, output, &way, &viewed, &mut part, &share).await;
        share.check()?;
        let by_box = brought?;
        if let Err(cause) = self.judge(link, output, &way, &viewed, &part, by_box).await? {
            return Err(unfit(cause, &mut part).await);
        }
        let size = part.length();
        let local_path = blocking(move || part.keep()).await?;
        share.keep();
        let (node, file) = (output.node_id.clone(), output.remote.clone());
        Ok(Fetched::Stored(Stored { node, file, local_path, size }))
    }

    /// SFTP, if the file in the folder of the request is certainly the one that ComfyUI means.
    async fn way<'w>(
        &self,
        link: &Link,
        output: &Output,
        viewed: Option<&Viewed>,
        ways: &'w Ways,
    ) -> Result<Way<'w>, FetchError> {
        let reason = match ways.transfer.get_or_try_init(|| link.transfer()).await? {
            Ok(transfer) => match transfer.stat(&output.remote_path).await {
                // What is no file may never come to an end.
                Ok(Some(stat))
                    if stat.is_file && viewed.is_none_or(|viewed| viewed.is_same_file(stat.size, stat.modified)) =>
                {
                    return Ok(Way::Sftp(transfer, stat));
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
        Ok(Way::View)
    }

    /// What is here of a file of this content and size, if the rest has room.
    async fn open_part(&self, output: &Output, content: Option<String>, size: Option<u64>) -> Result<Part, FetchError> {
        let (root, file, parts) = (self.request()?.output_dir, output.remote.clone(), self.parts.clone());
        let turn = parts.turn(&file).await;
        let open = move || {
            let mut part = parts.open(turn, &root, &file, content.as_deref())?;
            if size.is_some_and(|size| part.length() > size) {
                part.cut_to(0)?;
            }
            check_room(&part, size)?;
            Ok(part)
        };
        blocking(open).await
    }

    /// Completes the part, and returns the box's own checksum of the file if it has one to give.
    async fn bring(
        &self,
        link: &Link,
        output: &Output,
        way: &Way<'_>,
        viewed: &Viewed,
        part: &mut Part,
        share: &Share<'_>,
    ) -> Result<Option<[u8; 32]>, FetchError> {
        let from = part.length();
        if from > 0 {
            tracing::info!(file = output.remote.filename, from, "going on with a download");
        }
        match way {
            Way::Sftp(transfer, stat) => {
                let mut writer = share.measure(on_thread(part, |part| part.writer()).await?);
                let path = &output.remote_path;
                // A checksum is given time by the size that the box tells, so one that proves wrong must end the wait.
                let download = transfer.download(path, from, &mut writer, stat.size);
                let done = try_join(download, transfer.sha256_by_box(path, stat.size)).await;
                let (copied, by_box) = match done {
                    Ok(done) => done,
                    Err(error) => return Err(in_transfer(error, part).await),
                };
                part.grew(copied);
                Ok(by_box)
            }
            Way::View if from > 0 && viewed.size == Some(from) => Ok(None),
            Way::View => {
                let mut body = link.client.view(&output.remote, from, viewed).await?;
                let from = body.from();
                let open = move |part: &mut Part| part.cut_to(from).and_then(|()| part.writer());
                let mut writer = share.measure(on_thread(part, open).await?);
                let whole = viewed.size.or(body.size()).unwrap_or(MAX_UNTOLD_BYTES);
                let limit = whole.saturating_sub(part.length());
                let copied = match body.copy_to(&mut writer, limit).await {
                    Ok(copied) => copied,
                    Err(error) => return Err(in_view(error, part).await),
                };
                part.grew(copied);
                Ok(None)
            }
        }
    }

    /// Whether what has come is the file as it lies on the box; if not, what is wrong with it.
    async fn judge(
        &self,
        link: &Link,
        output: &Output,
        way: &Way<'_>,
        viewed: &Viewed,
        part: &Part,
        by_box: Option<[u8; 32]>,
    ) -> Result<Result<(), String>, FetchError> {
        if let Some(expected) = way.size(viewed).filter(|expected| *expected != part.length()) {
            return Ok(Err(format!("{} bytes came instead of {expected}", part.length())));
        }
        if let Some(by_box) = by_box {
            let part = part.clone();
            let is_same = blocking(move || Ok(part.sha256()? == by_box)).await?;
            return Ok(if is_same { Ok(()) } else { Err("what came differs from the file on the box".to_owned()) });
        }
        let is_unchanged = match way {
            Way::Sftp(transfer, stat) => transfer.stat(&output.remote_path).await? == Some(*stat),
            Way::View => link.client.stat_view(&output.remote).await?.as_ref() == Some(viewed),
        };
        Ok(if is_unchanged { Ok(()) } else { Err("the file on the box changed meanwhile".to_owned()) })
    }
}

impl Way<'_> {
    /// Bytes; `None` if the box does not tell.
    fn size(&self, viewed: &Viewed) -> Option<u64> {
        match self {
            Self::Sftp(_, stat) => Some(stat.size),
            Self::View => viewed.size,
        }
    }

    /// What tells this content of the file from others; `None` if the box tells too little for that.
    fn content(&self, viewed: &Viewed) -> Option<String> {
        let size = self.size(viewed)?;
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let modified = match self {
            Self::Sftp(_, stat) => stat.modified.map(seconds),
            Self::View => viewed.last_modified.map(seconds),
        };
        match (&viewed.etag, modified) {
            (Some(etag), _) => Some(format!("{size} {etag}")),
            (None, Some(modified)) => Some(format!("{size} {modified}")),
            (None, None) => None,
        }
    }
}

/// Whether the rest of a file has room here. Blocks.
fn check_room(part: &Part, size: Option<u64>) -> Result<(), StoreFileError> {
    let needed = size.unwrap_or(0).saturating_sub(part.length());
    match part.free_bytes() {
        Some((free, folder)) if free < needed => Err(StoreFileError::NoRoom {
            folder: folder.to_owned(),
            needed: HumanBytes(needed),
            free: HumanBytes(free),
        }),
        _ => Ok(()),
    }
}

fn local_failure(id: &WorkflowId, name: &str, error: &StoreFileError) -> Failure {
    let (code, help) = match error {
        StoreFileError::Name { .. } => return Failure::new(ErrorCode::PathRefused, error.to_string()),
        StoreFileError::Refused { cause, .. } => {
            let help = if matches!(cause, PathError::Outside) { " ([files] write_roots)" } else { "" };
            return Failure::new(ErrorCode::PathRefused, format!("could not store {name}: {error}{help}"));
        }
        StoreFileError::TooMuch { .. } => {
            let message = format!("could not store {name}: {error} ([limits] download_bytes)");
            return Failure::new(ErrorCode::LimitExceeded, message);
        }
        error if error.is_disk_full() => (ErrorCode::DiskFull, "free some space"),
        _ => (ErrorCode::DownloadFailed, "see to it that files can be written there"),
    };
    let message = format!(
        "could not store {name}: {error}; {help}, then POST /comfyui/workflow/{id}/download fetches what is missing"
    );
    Failure::new(code, message)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreFileError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(FetchError::Retry { cause: "the service is stopping".to_owned(), may_pass: false }),
    }
}

/// Does work on a part that blocks. It goes on when this is dropped, and keeps the turn of the part until it is done.
async fn on_thread<T: Send + 'static>(
    part: &mut Part,
    work: impl FnOnce(&mut Part) -> Result<T, StoreFileError> + Send + 'static,
) -> Result<T, FetchError> {
    let mut worked_on = part.clone();
    let done;
    (*part, done) = blocking(move || work(&mut worked_on).map(|done| (worked_on, done))).await?;
    Ok(done)
}

fn unwritten(source: io::Error, part: &Part) -> FetchError {
    FetchError::Local(StoreFileError::io("write", &part.path())(source))
}

async fn in_transfer(error: TransferError, part: &mut Part) -> FetchError {
    match error {
        TransferError::Local { source, .. } => unwritten(source, part),
        TransferError::TooLarge { .. } | TransferError::TooShort { .. } => unfit(error.to_string(), part).await,
        error => error.into(),
    }
}

async fn in_view(error: ComfyError, part: &mut Part) -> FetchError {
    match error {
        ComfyError::Local { source, .. } => unwritten(source, part),
        ComfyError::TooBig { .. } => unfit(error.to_string(), part).await,
        error => error.into(),
    }
}

/// What has come is not what it should be: nothing can be built on it.
async fn unfit(cause: String, part: &mut Part) -> FetchError {
    match on_thread(part, |part| part.cut_to(0)).await {
        Ok(()) => FetchError::Retry { cause, may_pass: false },
        Err(error) => error,
    }
}

impl From<StepError> for FetchError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<StoreFileError> for FetchError {
    fn from(error: StoreFileError) -> Self {
        Self::Local(error)
    }
}

impl From<ComfyError> for FetchError {
    fn from(error: ComfyError) -> Self {
        match &error {
            ComfyError::Unreachable { .. } | ComfyError::Timeout { .. } | ComfyError::TooSlow { .. } => {
                Self::Step(error.into())
            }
            _ => Self::Retry { cause: error.to_string(), may_pass: error.is_transient() },
        }
    }
}

impl From<TransferError> for FetchError {
    fn from(error: TransferError) -> Self {
        match transfer_lost(&error) {
            Some(lost) => Self::Step(lost),
            None => Self::Retry { cause: error.to_string(), may_pass: false },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
