//! Looking without touching: what would become of a request, and what a workflow would be on a box.
//!
//! Nothing of it stays on record, on the box, or in the output folder.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use chrono::Utc;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{
    ExecuteRequest, Options,
    admission::{
        self, Admitted, Purpose, check_target, document_in, in_turn, nearest_folder, read_bounded, read_document,
    },
    convert::{Settled, conversion_options, graph_of, settle},
    disk::{check_room_in, check_room_on_box},
    error::{ExecuteError, StepError, transfer_lost, tunnel_failure},
    known_boxes::Learned,
    link::Link,
    preflight::{BoxFacts, names, refusal},
    turns::Turns,
    upload::{self, Foreseen, foresee},
};
use crate::{
    convert::{self as conversion, ConvertError, NodeDefinitions},
    ssh::{BoxName, Pool, Target},
    workflow::{
        Document, ErrorCode, Failure, Finding, FindingCode, Graph, NodeId, Request, Severity, Source, WorkflowFormat,
        finding,
    },
};

/// How long the way to the box may take.
const REACH: Duration = Duration::from_secs(15);

/// How long the box may take to answer everything that is asked of it.
const ASK: Duration = Duration::from_secs(240);

/// Looks at boxes at once.
static LOOKS: Semaphore = Semaphore::const_new(16);

/// Looks at one box at once: one that never answers is no reason not to look at others.
static LOOKS_AT_ONE: LazyLock<Turns<BoxName>> = LazyLock::new(|| Turns::new(4));

/// Conversions at once that ask no box, and so need not wait for slow ones.
static CONVERSIONS: Semaphore = Semaphore::const_new(8);

/// What would become of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DryRun {
    /// In which form the workflow came.
    pub workflow_format: WorkflowFormat,
    /// Whether no finding is an error.
    pub valid: bool,
    /// The nodes that would run, in the expected order.
    pub nodes: Vec<PlannedNode>,
    /// The input files.
    pub uploads: Vec<PlannedUpload>,
    /// Where results would come from.
    pub outputs: Vec<PlannedOutput>,
    /// What was found, errors and warnings; errors first where it is too much to be kept.
    pub findings: Vec<Finding>,
    /// What else the caller should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A node that would run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedNode {
    /// Its id.
    pub node_id: NodeId,
    /// Its class.
    pub node_type: String,
    /// The title that its author gave it.
    pub title: Option<String>,
}

/// A file that would be brought to the box.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedUpload {
    /// Where it is here.
    pub local_path: PathBuf,
    /// Its name there.
    pub remote_name: String,
    /// Its size.
    pub bytes: u64,
    /// Whether its content is there already, so that nothing is sent.
    pub already_there: bool,
}

/// A node that would put something out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedOutput {
    /// Its id.
    pub node_id: NodeId,
    /// Its class.
    pub node_type: String,
    /// Where its files would land here.
    pub folder: PathBuf,
}

/// A workflow to be converted, and for what.
#[derive(Debug, Clone)]
pub struct ConvertRequest {
    /// The workflow.
    pub workflow: WorkflowGiven,
    /// The box that is asked for its node definitions, and the port of its ComfyUI.
    pub ssh_connection: Option<String>,
    /// ComfyUI's port on the box's loopback.
    pub comfyui_port: Option<u16>,
    /// A file with node definitions, in place of a box.
    pub object_info_file: Option<String>,
}

/// Where a workflow is.
#[derive(Debug, Clone)]
pub enum WorkflowGiven {
    /// In a file.
    File(String),
    /// In the request.
    Inline(Value),
}

/// A converted workflow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Converted {
    /// In which form it came.
    pub workflow_format: WorkflowFormat,
    /// What `/prompt` takes.
    pub prompt: Value,
    /// What its author should know; warnings only.
    pub findings: Vec<Finding>,
}

/// Finds out what would become of a request: everything that execute checks before it submits, on the box too. Nothing
/// of it stays, here or there.
///
/// # Errors
/// When a check that needs no box fails, or the box can't be asked.
pub async fn dry_run(request: ExecuteRequest, options: &Options, pool: &Pool) -> Result<DryRun, ExecuteError> {
    let _place = Place::at_box(&request.ssh_connection, pool).await?;
    let mut admitted = admission::check(request, Purpose::DryRun, options, pool).await?;
    let (target, _) = check_target(&admitted.request.ssh_connection, pool).map_err(ExecuteError::Rejected)?;
    let link = reach(pool, &target, admitted.request.comfyui_port).await?;
    admitted.warnings.extend(link.warnings().iter().cloned());
    in_time(look(&link, admitted, options)).await
}

/// The right to look, until it is dropped.
#[derive(Debug)]
struct Place {
    _among_all: SemaphorePermit<'static>,
    _at_box: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// To look at a box; nobody waits long for it.
    async fn at_box(ssh_connection: &str, pool: &Pool) -> Result<Self, ExecuteError> {
        let (pool, ssh_connection) = (pool.clone(), ssh_connection.to_owned());
        let name = tokio::task::spawn_blocking(move || pool.box_name(&ssh_connection)).await?;
        soon(async {
            let at_box = LOOKS_AT_ONE.take(name).await;
            Some(Self { _among_all: LOOKS.acquire().await.ok()?, _at_box: Some(at_box) })
        })
        .await
    }

    async fn among(all: &'static Semaphore) -> Result<Self, ExecuteError> {
        soon(async { Some(Self { _among_all: all.acquire().await.ok()?, _at_box: None }) }).await
    }
}

async fn soon<T>(permit: impl Future<Output = Option<T>>) -> Result<T, ExecuteError> {
    tokio::time::timeout(REACH, permit).await.ok().flatten().ok_or(ExecuteError::Busy)
}

/// A way to a ComfyUI that answers.
async fn reach(pool: &Pool, target: &Target, port: u16) -> Result<Link, ExecuteError> {
    let deadline = Instant::now() + REACH;
    let late = |code, cause: String| {
        Failure::new(code, format!("the box could not be reached within {} s: {cause}", REACH.as_secs()))
    };
    let unconnected = |_| {
        let cause = format!("{target} has not let us in; is the instance running, and is the port right?");
        late(ErrorCode::SshUnreachable, cause)
    };
    let unanswered =
        |_| late(ErrorCode::ComfyuiUnreachable, format!("ComfyUI on port {port} does not answer; does it hang?"));
    let reached = async {
        let opened = timeout_at(deadline, Link::open(pool, target, port)).await.map_err(unconnected)?;
        let link = opened.map_err(|error| tunnel_failure(&error))?;
        timeout_at(deadline, link.probe(port)).await.map_err(unanswered)??;
        Ok(link)
    };
    reached.await.map_err(ExecuteError::Unreachable)
}

async fn in_time<T>(ask: impl Future<Output = Result<T, StepError>>) -> Result<T, ExecuteError> {
    let late = |_| {
        let message = format!("the box has not answered everything within {} s", ASK.as_secs());
        Err(StepError::fatal(ErrorCode::ComfyuiUnreachable, message))
    };
    tokio::time::timeout(ASK, ask).await.unwrap_or_else(late).map_err(|error| match error {
        StepError::Fatal(failure) if failure.code == ErrorCode::InvalidWorkflow => ExecuteError::Refused(failure),
        StepError::Fatal(failure) if failure.code == ErrorCode::Internal => ExecuteError::Internal,
        error => ExecuteError::Unreachable(error.into_failure()),
    })
}

async fn look(link: &Link, admitted: Admitted, options: &Options) -> Result<DryRun, StepError> {
    let Admitted { request, source, workflow_format, warnings, .. } = admitted;
    let mut plan = DryRun {
        workflow_format,
        valid: false,
        nodes: Vec::new(),
        uploads: uploads(link, &request, options).await?,
        outputs: Vec::new(),
        findings: Vec::new(),
        warnings,
    };
    let options_now = conversion_options(Utc::now(), &request.workflow_name);
    match settle(link, source, &options_now, Learned::default()).await {
        Ok(Settled { graph, known, findings }) => {
            let known = BoxFacts::ask(link, &graph.classes(), known).await?;
            plan.findings = findings;
            plan.findings.extend(known.look_at(link, &graph, names(&request.input_images)).await?);
            plan.nodes = known.order(&graph).into_iter().filter_map(|id| planned(id, &graph)).collect();
            plan.outputs = known.outputs(&graph).filter_map(|id| output(id, &graph, &request)).collect();
        }
        // What can't be converted or has wrong parameters is the answer, too.
        Err(StepError::Fatal(Failure { code: ErrorCode::InvalidWorkflow, message, detail, .. })) => {
            plan.findings = detail.map(|detail| detail.findings).unwrap_or_default();
            if plan.findings.is_empty() {
                plan.findings.push(Finding::of_all(Severity::Error, FindingCode::UnsupportedNode, message));
            }
        }
        Err(error) => return Err(error),
    }
    plan.findings.extend(full_disks(link, &request, options).await?);
    plan.valid = plan.findings.iter().all(|finding| finding.severity != Severity::Error);
    finding::cut(&mut plan.findings);
    Ok(plan)
}

fn planned(id: NodeId, graph: &Graph) -> Option<PlannedNode> {
    let node = graph.node(&id)?;
    let (node_type, title) = (node.class_type().to_owned(), node.title().map(str::to_owned));
    Some(PlannedNode { node_id: id, node_type, title })
}

/// Files land below the output folder as they lie on the box, so the subfolder in a prefix is known beforehand; what
/// ComfyUI fills in for `%date%` and the like is not.
fn output(id: &NodeId, graph: &Graph, request: &Request) -> Option<PlannedOutput> {
    let node = graph.node(id)?;
    let prefix = node.input("filename_prefix").and_then(Value::as_str);
    let subfolder = prefix.and_then(|prefix| Some(prefix.rsplit_once('/')?.0)).filter(|subfolder| {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..");
        !subfolder.contains('%') && subfolder.split('/').all(is_plain)
    });
    let folder = subfolder.map_or_else(|| request.output_dir.clone(), |subfolder| request.output_dir.join(subfolder));
    Some(PlannedOutput { node_id: id.clone(), node_type: node.class_type().to_owned(), folder })
}

async fn uploads(link: &Link, request: &Request, options: &Options) -> Result<Vec<PlannedUpload>, StepError> {
    let mut uploads = Vec::new();
    if request.input_images.is_empty() {
        return Ok(uploads);
    }
    let transfer = link.transfer().await?;
    for path in &request.input_images {
        let input = upload::read(path.clone(), &options.files).await?;
        let foreseen = match &transfer {
            Ok(transfer) => match foresee(transfer, &request.comfyui_input_dir, &input).await {
                Ok(foreseen) => foreseen,
                // Then it goes by ComfyUI's own upload.
                Err(error) => transfer_lost(&error).map_or(Ok(None), Err)?,
            },
            Err(_) => None,
        };
        let Foreseen { name, is_there } =
            foreseen.unwrap_or_else(|| Foreseen { name: input.name.clone(), is_there: false });
        let local_path = input.path;
        uploads.push(PlannedUpload { local_path, remote_name: name, bytes: input.size, already_there: is_there });
    }
    Ok(uploads)
}

async fn full_disks(link: &Link, request: &Request, options: &Options) -> Result<Vec<Finding>, StepError> {
    let (path, roots, least) = (request.output_dir.clone(), options.files.write_roots.clone(), options.min_free_bytes);
    let look = move || nearest_folder(&path, &roots).ok().and_then(|folder| check_room_in(&folder, &path, least).err());
    let here = tokio::task::spawn_blocking(look).await.ok().flatten();
    let there = check_room_on_box(link, request, least).await?;
    let full = |message| Finding::of_all(Severity::Error, FindingCode::DiskFull, message);
    Ok(here.into_iter().chain(there).map(full).collect())
}

/// See [`Runner::convert`](super::Runner::convert).
pub(super) async fn convert(
    request: ConvertRequest,
    options: &Options,
    pool: &Pool,
) -> Result<Converted, ExecuteError> {
    let (rules, workflow) = (options.files.clone(), request.workflow);
    let read = move || match workflow {
        WorkflowGiven::File(path) => read_document(&path, &rules),
        WorkflowGiven::Inline(value) => {
            document_in(value.to_string().as_bytes()).map_err(|error| format!("The workflow {error}"))
        }
    };
    let _place = match (&request.ssh_connection, &request.object_info_file) {
        (Some(ssh_connection), None) => Place::at_box(ssh_connection, pool).await?,
        _ => Place::among(&CONVERSIONS).await?,
    };
    let ((document, workflow_format), _) = in_turn(move |_| read()).await?;
    if let Document::Graph(graph) = &document {
        return Ok(Converted { workflow_format, prompt: graph.to_value(), findings: Vec::new() });
    }
    let prepared = conversion_options(Utc::now(), &uuid::Uuid::new_v4().to_string());
    let (graph, findings) = match (request.ssh_connection, request.object_info_file) {
        (_, Some(path)) => convert_with_file(document, path, prepared, options).await?,
        (Some(ssh_connection), None) => {
            let (target, _) = check_target(&ssh_connection, pool).map_err(ExecuteError::Rejected)?;
            let port = request.comfyui_port.unwrap_or(options.defaults.comfyui_port);
            let link = reach(pool, &target, port).await?;
            let settled = in_time(settle(&link, Source::from(document), &prepared, Learned::default())).await?;
            (settled.graph, settled.findings)
        }
        (None, None) => {
            let message = "A workflow in UI format needs ssh_connection or object_info_file to be converted";
            return Err(ExecuteError::Rejected(message.to_owned()));
        }
    };
    Ok(Converted { workflow_format, prompt: graph.to_value(), findings })
}

/// Why a file is not what it should be, without anything of what it is: it may be any file.
fn why(error: &serde_json::Error) -> String {
    if error.is_data() { "it is no JSON object of classes, or too large".to_owned() } else { error.to_string() }
}

async fn convert_with_file(
    document: Document,
    path: String,
    prepared: conversion::Options,
    options: &Options,
) -> Result<(Graph, Vec<Finding>), ExecuteError> {
    let rules = Arc::new(options.files.clone());
    let work = move || {
        let Document::Ui(document) = document else { return Err("is converted already".to_owned()) };
        let content = read_bounded(&path, "Node definitions", "object_info_file", &rules)?;
        let none = |why: &str| format!("Field object_info_file: {path} holds no node definitions: {why}");
        let definitions = NodeDefinitions::parse(&content).map_err(|error| none(&why(&error)))?;
        if definitions.tell_nothing() {
            return Err(none("it is not what ComfyUI answers to GET /object_info"));
        }
        Ok(conversion::convert(&document, &definitions, &prepared))
    };
    let refused = |error: ConvertError| {
        let message = format!("The workflow {error}");
        let findings = if let ConvertError::Refused(findings) = error { findings } else { Vec::new() };
        ExecuteError::Refused(refusal(message, findings))
    };
    let (converted, _) = in_turn(move |_| work()).await?;
    let converted = converted.map_err(refused)?;
    Ok((graph_of(converted.prompt).map_err(ExecuteError::Rejected)?, converted.findings))
}
