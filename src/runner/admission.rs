//! Everything that can be checked before the box is reached and money is spent.
//!
//! The order is part of the contract: connection string, workflow file, images, output folder. What fails leaves no
//! trace.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{FileRules, Options, digest::sha256_of, disk::check_room_in, error::ExecuteError};
use crate::{
    convert::extract::{ExtractError, Workflow, extract},
    files::{Folder, PathError, Roots, open_regular},
    home::expand_home,
    ssh::{BoxName, Pool, Target},
    workflow::{Caller, Document, Edits, Graph, Idempotency, Request, Source, WorkflowFormat, WorkflowId},
};

/// What a caller asks for; everything optional may be missing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ExecuteRequest {
    /// How to reach the box.
    pub ssh_connection: String,
    /// Path of the workflow file.
    pub workflow_file: String,
    /// For people; default: the file's name.
    pub workflow_name: Option<String>,
    /// Paths of the input files.
    pub input_images: Vec<String>,
    /// Where outputs land.
    pub output_dir: Option<String>,
    /// ComfyUI's port on the box's loopback.
    pub comfyui_port: Option<u16>,
    /// ComfyUI's input folder on the box.
    pub comfyui_input_dir: Option<String>,
    /// ComfyUI's output folder on the box.
    pub comfyui_output_dir: Option<String>,
    /// What is to be changed in the workflow.
    #[serde(flatten)]
    pub edits: Edits,
}

impl ExecuteRequest {
    /// Equal for equal requests, in hex digits.
    pub(super) fn fingerprint(&self) -> String {
        let mut request = self.clone();
        // In whichever order they are given, they are the same.
        request.edits.parameters.sort_keys();
        let text = serde_json::to_vec(&request).unwrap_or_default();
        hex::encode(Sha256::digest(text))
    }
}

/// For what a request leaves out.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// ComfyUI's port on the box's loopback.
    pub comfyui_port: u16,
    /// ComfyUI's input folder on the box.
    pub comfyui_input_dir: String,
    /// ComfyUI's output folder on the box.
    pub comfyui_output_dir: String,
    /// Where outputs land.
    pub output_dir: String,
}

/// A request that passed.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) request: Request,
    pub(super) source: Source,
    /// In which form it came.
    pub(super) workflow_format: WorkflowFormat,
    /// For the limit per box.
    pub(super) box_name: BoxName,
    pub(super) warnings: Vec<String>,
    pub(super) retry_of: Option<WorkflowId>,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) caller: Option<Caller>,
    /// Its place among those that are checked, held until it is on record: the source takes memory until then.
    _turn: Turn,
}

impl Admitted {
    fn new(request: Request, source: Source, workflow_format: WorkflowFormat, box_name: BoxName) -> Self {
        Self {
            request,
            source,
            workflow_format,
            box_name,
            warnings: Vec::new(),
            retry_of: None,
            idempotency: None,
            caller: None,
            _turn: None,
        }
    }
}

/// Requests that are checked at once: each may have gigabytes of inputs to read.
static CHECKS: Semaphore = Semaphore::const_new(8);

/// As many missing images are named in a message.
const NAMED_MISSING: usize = 10;

/// What becomes of a request that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is run: its output folder is made.
    Run,
    /// It is only looked at: nothing of it stays.
    DryRun,
}

/// Checks a request and fills in what it leaves out. Dropped, it stops before the next input.
pub(super) async fn check(
    request: ExecuteRequest,
    purpose: Purpose,
    options: &Options,
    pool: &Pool,
) -> Result<Admitted, ExecuteError> {
    let (options, pool) = (options.clone(), pool.clone());
    let (admitted, turn) = in_turn(move |gone| check_blocking(request, purpose, &options, &pool, gone)).await?;
    // A dry run has a turn of its own, since it asks the box too.
    Ok(Admitted { _turn: turn.filter(|_| purpose == Purpose::Run), ..admitted })
}

/// A place among those that are checked.
type Turn = Option<SemaphorePermit<'static>>;

/// Does the work on a thread of its own, a few at once. `gone` is cancelled when the caller has hung up. The place is free
/// once what comes with the result is dropped.
pub(super) async fn in_turn<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> Result<T, String> + Send + 'static,
) -> Result<(T, Turn), ExecuteError> {
    let turn = CHECKS.acquire().await.ok();
    let gone = CancellationToken::new();
    let _caller = gone.clone().drop_guard();
    let done = tokio::task::spawn_blocking(move || work(&gone).map(|done| (done, turn)));
    done.await?.map_err(ExecuteError::Rejected)
}

/// Checks again what may have changed since a request was accepted.
pub(super) async fn check_again(
    request: Request,
    source: Source,
    options: &Options,
    pool: &Pool,
) -> Result<Admitted, ExecuteError> {
    let (options, pool) = (options.clone(), pool.clone());
    let work = move |gone: &CancellationToken| {
        let (_, box_name) = check_target(&request.ssh_connection, &pool)?;
        let text = |path: &Path| path.display().to_string();
        let images: Vec<String> = request.input_images.iter().map(|image| text(image)).collect();
        check_images(&images, &options.files, gone)?;
        prepare_output_dir(&text(&request.output_dir), Purpose::Run, &options)?;
        let workflow_format = source.document.format();
        Ok(Admitted::new(request, source, workflow_format, box_name))
    };
    let (admitted, turn) = in_turn(work).await?;
    Ok(Admitted { _turn: turn, ..admitted })
}

fn check_blocking(
    request: ExecuteRequest,
    purpose: Purpose,
    options: &Options,
    pool: &Pool,
    gone: &CancellationToken,
) -> Result<Admitted, String> {
    let defaults = &options.defaults;
    let (target, box_name) = check_target(&request.ssh_connection, pool)?;
    let (document, workflow_format) = read_document(&request.workflow_file, &options.files)?;
    let source = source_of(document, request.edits)?;
    let input_images = check_images(&request.input_images, &options.files, gone)?;
    let box_folder = |field: &str, given: Option<String>, default: &String| {
        let folder = given.unwrap_or_else(|| default.clone());
        check_box_folder(&folder).map_err(|why| format!("Field {field} {why}")).map(|()| folder)
    };
    let comfyui_input_dir = box_folder("comfyui_input_dir", request.comfyui_input_dir, &defaults.comfyui_input_dir)?;
    let comfyui_output_dir =
        box_folder("comfyui_output_dir", request.comfyui_output_dir, &defaults.comfyui_output_dir)?;
    let output_dir = request.output_dir.unwrap_or_else(|| defaults.output_dir.clone());
    let output_dir = prepare_output_dir(&output_dir, purpose, options)?;
    let file_name = Path::new(&request.workflow_file).file_name().map(|name| name.to_string_lossy().into_owned());
    let request = Request {
        ssh_connection: request.ssh_connection,
        workflow_name: request.workflow_name.or(file_name).unwrap_or_else(|| request.workflow_file.clone()),
        workflow_file: request.workflow_file,
        input_images,
        output_dir,
        comfyui_port: request.comfyui_port.unwrap_or(defaults.comfyui_port),
        comfyui_input_dir,
        comfyui_output_dir,
    };
    let mut admitted = Admitted::new(request, source, workflow_format, box_name);
    admitted.warnings = target.warnings().to_vec();
    Ok(admitted)
}

/// Whether a folder on a box is named so that it is the same whoever asks: from the root.
///
/// # Errors
/// Says what it must be, to be read behind the name of a field or key.
pub(crate) fn check_box_folder(folder: &str) -> Result<(), String> {
    if folder.chars().any(char::is_control) {
        return Err("must not contain control characters".to_owned());
    }
    if folder.starts_with('/') {
        return Ok(());
    }
    let hint = if folder.starts_with('~') { "; ~ is not expanded there" } else { "" };
    Err(format!("must be an absolute path on the box, such as /workspace/ComfyUI/input{hint}: {folder}"))
}

/// The connection string taken apart, and its box, if that is one which the operator allows.
pub(super) fn check_target(ssh_connection: &str, pool: &Pool) -> Result<(Target, BoxName), String> {
    let target = Target::parse(ssh_connection).map_err(|error| format!("Invalid ssh_connection: {error}"))?;
    let box_name = pool.check(&target).map_err(|error| format!("Field ssh_connection: {error}"))?;
    Ok((target, box_name))
}

pub(super) fn read_document(given: &str, rules: &FileRules) -> Result<(Document, WorkflowFormat), String> {
    let content = read_bounded(given, "Workflow file", "workflow_file", rules)?;
    document_in(&content).map_err(|error| format!("Workflow file {given} {error}"))
}

/// The content of a file that a request names, which is no longer than a workflow file may be.
pub(super) fn read_bounded(given: &str, what: &str, field: &str, rules: &FileRules) -> Result<Vec<u8>, String> {
    let limit = rules.workflow_file_bytes;
    let mut content = Vec::new();
    let file = open_input(given, what, field, rules)?;
    let unreadable = |error: io::Error| format!("{what} cannot be read: {given}: {}", plain(&error));
    file.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > limit {
        let limit = HumanBytes(limit);
        return Err(format!("{what} is larger than {limit} ([limits] workflow_file_bytes): {given}"));
    }
    Ok(content)
}

/// A workflow as such, or one that a picture or other JSON carries.
pub(super) fn document_in(content: &[u8]) -> Result<(Document, WorkflowFormat), String> {
    let plain = match Document::parse(content) {
        Ok(document) => {
            let format = document.format();
            return within_bounds(document, format);
        }
        Err(error) => error,
    };
    let found = match extract(content) {
        Ok(found) => found,
        Err(ExtractError::NoWorkflow) => return Err(plain.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    let document = match found.workflow {
        Workflow::Ui(document) => Document::Ui(document),
        Workflow::Api(graph) => Document::Graph(Graph::from_document(graph).map_err(|error| error.to_string())?),
    };
    within_bounds(document, found.format)
}

fn within_bounds(document: Document, format: WorkflowFormat) -> Result<(Document, WorkflowFormat), String> {
    if let Document::Graph(graph) = &document {
        graph.check_bounds().map_err(|error| error.to_string())?;
    }
    Ok((document, format))
}

/// What is to be run, if its parameters lead somewhere as far as that can be known without the box.
fn source_of(document: Document, edits: Edits) -> Result<Source, String> {
    if let Document::Graph(graph) = &document {
        edits.places(graph)?;
    }
    Ok(Source { document, edits })
}

/// The images as absolute paths, each once. Those that are missing are told together.
fn check_images(given: &[String], rules: &FileRules, gone: &CancellationToken) -> Result<Vec<PathBuf>, String> {
    let mut seen = HashSet::new();
    let given: Vec<&String> = given.iter().filter(|image| seen.insert(*image)).collect();
    let missing: Vec<&str> =
        given.iter().map(|image| image.as_str()).filter(|image| is_missing(image, rules)).collect();
    if !missing.is_empty() {
        let named = missing.iter().copied().take(NAMED_MISSING).collect::<Vec<_>>().join(", ");
        let more = missing.len().saturating_sub(NAMED_MISSING);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        return Err(format!("Input image not found: {named}{more}"));
    }
    let mut images: Vec<PathBuf> = Vec::new();
    let mut contents: HashMap<String, (&String, [u8; 32])> = HashMap::new();
    for image in given {
        if gone.is_cancelled() {
            return Err("The caller has hung up".to_owned());
        }
        let file = open_input(image, "Input image", "input_images", rules)?;
        let path = absolute(image);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(format!("Input image has a name that cannot be used on the box: {image}"));
        }
        let unreadable = |error: io::Error| format!("Input image cannot be read: {image}: {}", plain(&error));
        let (size, sha256) = sha256_of(&mut file.take(rules.image_bytes.saturating_add(1))).map_err(unreadable)?;
        if size > rules.image_bytes {
            let limit = HumanBytes(rules.image_bytes);
            return Err(format!("Input image is larger than {limit} ([limits] image_bytes): {image}"));
        }
        match contents.get(name) {
            Some((_, known)) if *known == sha256 => continue,
            Some((other, _)) => {
                return Err(format!("Two input images are named {name} but differ: {other} and {image}"));
            }
            None => {}
        }
        contents.insert(name.to_owned(), (image, sha256));
        images.push(path);
    }
    Ok(images)
}

fn is_missing(image: &str, rules: &FileRules) -> bool {
    open_regular(&absolute(image), &rules.read_roots).is_err_and(|error| error.is_not_found())
}

/// Makes the folder if it is missing, and finds out by doing whether files can be made in it.
fn prepare_output_dir(given: &str, purpose: Purpose, options: &Options) -> Result<PathBuf, String> {
    let path = absolute(given);
    let roots = &options.files.write_roots;
    let folder = match purpose {
        Purpose::Run => Folder::make(&path, roots),
        Purpose::DryRun => nearest_folder(&path, roots),
    };
    let folder = folder.map_err(|error| match error {
        PathError::Outside => outside("output_dir", given, "write_roots"),
        PathError::NotAFolder { path: found } if found == path => format!("Output folder is not a folder: {given}"),
        PathError::Foreign { .. } => {
            format!("Output folder is not used: {given}: {error}; choose another output_dir, or remove it")
        }
        PathError::Io(error) => format!("Output folder cannot be created: {given}: {}", plain(&error)),
        error => format!("Output folder cannot be created: {given}: {error}"),
    })?;
    folder.check_writable().map_err(|error| format!("Output folder is not writable: {given}: {}", plain(&error)))?;
    // Of a full disk a dry run tells with everything else.
    if purpose == Purpose::Run {
        check_room_in(&folder, &path, options.min_free_bytes)?;
    }
    Ok(path)
}

/// The folder at `path`, or the one in which it would be made.
pub(super) fn nearest_folder(path: &Path, roots: &Roots) -> Result<Folder, PathError> {
    let mut tried = Folder::open(path, roots);
    for above in path.ancestors().skip(1) {
        match &tried {
            Err(PathError::Io(error)) if error.kind() == io::ErrorKind::NotFound => tried = Folder::open(above, roots),
            _ => break,
        }
    }
    tried
}

fn open_input(given: &str, what: &str, field: &str, rules: &FileRules) -> Result<File, String> {
    open_regular(&absolute(given), &rules.read_roots).map_err(|error| match error {
        PathError::Outside => outside(field, given, "read_roots"),
        PathError::IsFolder => format!("{what} is a directory: {given}"),
        PathError::NotRegular => format!("{what} is not a regular file: {given}"),
        error if error.is_not_found() => format!("{what} not found: {given}"),
        PathError::Io(error) => format!("{what} cannot be read: {given}: {}", plain(&error)),
        error => format!("{what} cannot be read: {given}: {error}"),
    })
}

/// The same whether or not something is there.
fn outside(field: &str, given: &str, key: &str) -> String {
    format!("Field {field}: {given} does not lie in a folder of [files] {key}")
}

/// `~/` expanded, and relative to the service's working directory.
fn absolute(given: &str) -> PathBuf {
    let path = expand_home(Path::new(given));
    std::path::absolute(&path).unwrap_or(path)
}

/// `permission denied` rather than `Permission denied (os error 13)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
