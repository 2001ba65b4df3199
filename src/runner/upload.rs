//! Chapter: the inputs go to the box.
//!
//! A file is stored under its own name where that is free or holds the same content, else under a name made from its
//! content, and the graph's references follow. It goes by SFTP under a temporary name that says whose it is and which
//! content, so that it goes on where it was cut; then it takes its own name in one step that never overwrites. Where that
//! way is closed or leads to the wrong folder, ComfyUI's own upload serves, which keeps to the same rules. Doing it again
//! finds the content in place, so nothing of it needs to be remembered.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    FileRules,
    digest::sha256_of,
    error::{StepError, transfer_lost},
    execution::Execution,
    link::Link,
};
use crate::{
    comfy::ComfyError,
    files::{PathError, open_regular},
    ssh::{Transfer, TransferError},
    workflow::{
        ErrorCode, Event, Failure, Folder, Graph, NodeDefinitions, Phase, RemoteFile, Submission,
        inputs::name_for_content,
    },
};

/// How often a name that another run has just taken is looked at again.
const RENAME_ATTEMPTS: u32 = 3;

/// How long cleaning up behind a cancelled upload may take.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// An input file as it is here. What was checked is what is sent: it stays open.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) path: PathBuf,
    file: File,
    pub(super) name: String,
    pub(super) size: u64,
    sha256: [u8; 32],
}

impl Execution {
    /// Brings every input to the box and returns the graph with its references adjusted.
    pub(super) async fn upload_inputs(
        &self,
        link: &Link,
        mut graph: Graph,
        definitions: Option<&NodeDefinitions>,
    ) -> Result<Graph, StepError> {
        self.apply(Event::Entered(Phase::Uploading));
        let images = self.request()?.input_images;
        if images.is_empty() {
            return Ok(graph);
        }
        let transfer = link.transfer().await?;
        for path in images {
            let input = self.read_input(path).await?;
            let name = self.upload(link, transfer.as_ref().map_err(String::as_str), &input).await?;
            if name != input.name {
                self.rename_references(&mut graph, &input.name, &name, definitions);
            }
        }
        Ok(graph)
    }

    fn rename_references(&self, graph: &mut Graph, from: &str, to: &str, definitions: Option<&NodeDefinitions>) {
        let is_file = |class: &str, field: &str| definitions?.class(class)?.input(field).map(|input| input.is_upload);
        let references = graph.rename_input(from, to, is_file);
        tracing::info!(from, to, references, "stored an input under another name");
        if references == 0 {
            self.warn(format!(
                "{from} was stored as {to}, since the box has another file of that name, but no file input of the \
                 workflow names it: if one means it, it gets the other file"
            ));
        }
    }

    /// Brings one input to the box and returns the name by which ComfyUI knows it.
    async fn upload(&self, link: &Link, transfer: Result<&Transfer, &str>, input: &Input) -> Result<String, StepError> {
        let folder = self.request()?.comfyui_input_dir;
        let reason = match transfer {
            Ok(transfer) => match self.upload_by_sftp(link, transfer, &folder, input).await? {
                Ok(name) => return Ok(name),
                Err(reason) => reason,
            },
            Err(reason) => reason.to_owned(),
        };
        self.warn(format!("inputs were uploaded through ComfyUI instead of SFTP: {reason}"));
        let failed = |error: ComfyError| match StepError::from(error) {
            StepError::Trouble(failure) => StepError::Trouble(Failure::new(
                ErrorCode::UploadFailed,
                format!("could not upload {}: {}", input.path.display(), failure.message),
            )),
            other => other,
        };
        let source = input.source().map_err(|error| unreadable(&input.path, &error))?;
        link.client.upload_image(source, &input.name).await.map_err(failed)
    }

    /// `Ok(Err(reason))` when this way does not work on this box.
    async fn upload_by_sftp(
        &self,
        link: &Link,
        transfer: &Transfer,
        folder: &str,
        input: &Input,
    ) -> Result<Result<String, String>, StepError> {
        let part = self.part_path(folder, input);
        let (name, is_new) = match place(transfer, folder, &part, input).await {
            Ok(placed) => placed,
            Err(error @ TransferError::Local { .. }) => {
                return Err(StepError::fatal(ErrorCode::UploadFailed, error.to_string()));
            }
            Err(error @ TransferError::NoSpace { .. }) => {
                return Err(StepError::fatal(ErrorCode::DiskFull, error.to_string()));
            }
            Err(error) => return transfer_lost(&error).map_or_else(|| Ok(Err(error.to_string())), Err),
        };
        let path = join(folder, &name);
        let placed = match transfer.stat(&path).await {
            Ok(placed) => placed,
            Err(error) => return transfer_lost(&error).map_or_else(|| Ok(Err(error.to_string())), Err),
        };
        let seen = RemoteFile {
            filename: name.clone(),
            subfolder: String::new(),
            folder: Folder::Input,
            listed_as: String::new(),
        };
        let is_seen = match link.client.stat_view(&seen).await {
            Ok(Some(viewed)) => placed.is_some_and(|stat| viewed.is_same_file(stat.size, stat.modified)),
            Ok(None) => false,
            // ComfyUI shows no file with two dots in its name (server.py, view_image, v0.3.64).
            Err(ComfyError::Status { status: 400, .. }) => true,
            Err(error) => return Err(error.into()),
        };
        if is_seen {
            return Ok(Ok(name));
        }
        if is_new {
            transfer.remove(&path).await.ok();
        }
        Ok(Err(format!("ComfyUI does not see files in {folder}; is comfyui_input_dir right?")))
    }

    /// The temporary name of an upload: of this workflow alone, and of this content.
    fn part_path(&self, folder: &str, input: &Input) -> String {
        let mut content = hex::encode(input.sha256);
        content.truncate(16);
        join(folder, &format!(".{}-{content}.part", self.id))
    }

    async fn read_input(&self, path: PathBuf) -> Result<Input, StepError> {
        read(path, &self.options.files).await
    }

    /// After the end of a cancelled upload: removes what had arrived of it, if the box can still be reached.
    pub(super) async fn remove_partial_upload(&self) {
        let Ok(state) = self.state() else { return };
        let was_cancelled = state.cancel_requested && !state.is_active();
        if state.submission != Submission::None || state.request.input_images.is_empty() || !was_cancelled {
            return;
        }
        let remove = async {
            let link = Link::open(&self.pool, &self.target().ok()?, state.request.comfyui_port).await.ok()?;
            let transfer = link.transfer().await.ok()?.ok()?;
            for image in &state.request.input_images {
                let input = self.read_input(image.clone()).await.ok()?;
                transfer.remove(&self.part_path(&state.request.comfyui_input_dir, &input)).await.ok();
            }
            Some(())
        };
        tokio::time::timeout(CLEAN_UP, remove).await.ok();
    }
}

/// The name under which the content lies in the folder now, and whether it was put there just now.
async fn place(transfer: &Transfer, folder: &str, part: &str, input: &Input) -> Result<(String, bool), TransferError> {
    let mut taken = None;
    for _ in 0..RENAME_ATTEMPTS {
        match foresee(transfer, folder, input).await? {
            Some(Foreseen { name, is_there: true }) => return Ok((name, false)),
            Some(Foreseen { name, is_there: false }) => {
                let path = join(folder, &name);
                match put(transfer, part, &path, input).await {
                    Ok(()) => return Ok((name, true)),
                    // Another run took the name meanwhile: look at it again.
                    Err(error) if transfer.stat(&path).await?.is_some() => taken = Some(error),
                    Err(error) => return Err(error),
                }
            }
            None => break,
        }
    }
    Err(taken.unwrap_or_else(|| TransferError::AlreadyExists { path: join(folder, &input.name) }))
}

/// Where an input would come to lie.
#[derive(Debug)]
pub(super) struct Foreseen {
    pub(super) name: String,
    /// Whether its content lies there already.
    pub(super) is_there: bool,
}

/// The first name that is free or has the content; `None` when other content has all of them.
pub(super) async fn foresee(
    transfer: &Transfer,
    folder: &str,
    input: &Input,
) -> Result<Option<Foreseen>, TransferError> {
    if !transfer.stat(folder).await?.is_some_and(|stat| stat.is_dir) {
        return Err(TransferError::NotFound { path: folder.to_owned() });
    }
    for name in [input.name.clone(), name_for_content(&input.name, &input.sha256)] {
        let path = join(folder, &name);
        match transfer.stat(&path).await? {
            None => return Ok(Some(Foreseen { name, is_there: false })),
            Some(stat) if stat.size == input.size && sha256(transfer, &path, input.size).await? == input.sha256 => {
                return Ok(Some(Foreseen { name, is_there: true }));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

/// What the box computes, or else what is read from it.
async fn sha256(transfer: &Transfer, path: &str, size: u64) -> Result<[u8; 32], TransferError> {
    match transfer.sha256_by_box(path, size).await? {
        Some(by_box) => Ok(by_box),
        None => transfer.sha256(path).await,
    }
}

/// Brings the content to the box and gives it its name. What arrived stays there if the connection is lost.
async fn put(transfer: &Transfer, part: &str, path: &str, input: &Input) -> Result<(), TransferError> {
    let from = transfer.stat(part).await?.map_or(0, |stat| stat.size);
    let mut brought = bring(transfer, part, from, input).await;
    let is_of_no_use =
        |error: &TransferError| matches!(error, TransferError::Local { .. } | TransferError::NotFound { .. });
    if from > 0 && brought.as_ref().is_err_and(is_of_no_use) {
        tracing::warn!(part, "what an earlier upload left is of no use");
        brought = bring(transfer, part, 0, input).await;
    }
    let placed = match brought {
        Ok(()) => transfer.rename(part, path).await,
        Err(error) => Err(error),
    };
    if placed.as_ref().is_err_and(|error| !error.is_transient()) {
        transfer.remove(part).await.ok();
    }
    placed
}

/// Completes the part, of which `from` bytes are there; of a new one, nothing is.
async fn bring(transfer: &Transfer, part: &str, from: u64, input: &Input) -> Result<(), TransferError> {
    if from == 0 {
        match transfer.remove(part).await {
            Ok(()) | Err(TransferError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    } else {
        tracing::info!(part, from, "going on with an upload");
    }
    let wrong = |what: String, source: String| TransferError::Local { what, source: io::Error::other(source) };
    let reading = |source| TransferError::Local { what: format!("could not read {}", input.path.display()), source };
    let size = transfer.upload(input.source().map_err(reading)?, part, from).await?;
    if size != input.size {
        let what = format!("{} changed while it was uploaded", input.path.display());
        return Err(wrong(what, format!("it had {} bytes and now has {size}", input.size)));
    }
    match transfer.sha256_by_box(part, size).await? {
        Some(by_box) if by_box != input.sha256 => {
            let what = format!("{} did not arrive as it was sent", input.path.display());
            Err(wrong(what, "its checksum on the box differs; did it change meanwhile?".to_owned()))
        }
        _ => Ok(()),
    }
}

impl Input {
    /// A handle to read it with. All of them share one position.
    fn source(&self) -> io::Result<tokio::fs::File> {
        Ok(tokio::fs::File::from_std(self.file.try_clone()?))
    }
}

/// Opens an input and looks through it.
pub(super) async fn read(path: PathBuf, rules: &FileRules) -> Result<Input, StepError> {
    let (rules, shown) = (rules.clone(), path.display().to_string());
    let read = tokio::task::spawn_blocking(move || read_input(path, &rules)).await;
    let stopped = |_| StepError::fatal(ErrorCode::UploadFailed, format!("Input image cannot be read: {shown}"));
    read.map_err(stopped)?
}

/// Opens an input and looks through it. Blocks.
fn read_input(path: PathBuf, rules: &FileRules) -> Result<Input, StepError> {
    let failed = |message: String| StepError::fatal(ErrorCode::UploadFailed, message);
    let shown = path.display();
    let mut file = open_regular(&path, &rules.read_roots).map_err(|error| match error {
        PathError::Outside => {
            let message = format!("Input image {shown} does not lie in a folder of [files] read_roots");
            StepError::fatal(ErrorCode::PathRefused, message)
        }
        error if error.is_not_found() => failed(format!("Input image not found: {shown}")),
        error => failed(format!("Input image cannot be read: {shown}: {error}")),
    })?;
    let read = sha256_of(&mut (&mut file).take(rules.image_bytes.saturating_add(1)));
    let (size, sha256) = read.map_err(|error| unreadable(&path, &error))?;
    if size > rules.image_bytes {
        let message = format!("Input image is larger than {} bytes ([limits] image_bytes): {shown}", rules.image_bytes);
        return Err(StepError::fatal(ErrorCode::LimitExceeded, message));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Input { name, path, file, size, sha256 })
}

fn unreadable(path: &Path, error: &io::Error) -> StepError {
    StepError::fatal(ErrorCode::UploadFailed, format!("Input image cannot be read: {}: {error}", path.display()))
}

fn join(folder: &str, name: &str) -> String {
    Path::new(folder).join(name).display().to_string()
}
