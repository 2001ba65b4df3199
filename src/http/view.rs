//! The bodies of successful answers.

use std::path::Path;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use crate::{
    runner::{Converted, DryRun},
    workflow::{
        Connection, ConnectionState, ErrorCode, ErrorDetail, FileType, NodeId, NodeState, NodeStatus, Output, Phase,
        PromptId, Status, WorkflowFormat, WorkflowId, WorkflowState, state::Text,
    },
};

/// `{"success": true}` with more beside it.
#[derive(Debug, Serialize)]
pub(super) struct Success<T: Serialize> {
    success: bool,
    #[serde(flatten)]
    body: T,
}

impl<T: Serialize> Success<T> {
    pub(super) fn new(body: T) -> Self {
        Self { success: true, body }
    }
}

impl<T: Serialize> IntoResponse for Success<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

/// The answer to execute.
#[derive(Debug, Serialize)]
pub(super) struct StartedView {
    pub(super) workflow_id: WorkflowId,
    pub(super) message: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

/// The answer to execute when nothing is to be run.
#[derive(Debug, Serialize)]
pub(super) struct DryRunView {
    pub(super) dry_run: bool,
    #[serde(flatten)]
    pub(super) plan: DryRun,
}

/// The answer to convert.
#[derive(Debug, Serialize)]
pub(super) struct ConvertedView {
    #[serde(flatten)]
    pub(super) converted: Converted,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

/// The answer to health when all is well.
#[derive(Debug, Serialize)]
pub(super) struct HealthView {
    pub(super) status: &'static str,
}

/// The answer to health when the state is not safe on the disk.
#[derive(Debug, Serialize)]
pub(super) struct TroubleView {
    success: bool,
    message: String,
    reasons: Vec<String>,
}

impl TroubleView {
    pub(super) fn new(reasons: Vec<String>) -> Self {
        let message = format!(
            "Running workflows go on from memory, new ones may be refused: {}. The log has more",
            reasons.join("; ")
        );
        Self { success: false, message, reasons }
    }
}

/// The answer to cancel.
#[derive(Debug, Serialize)]
pub(super) struct MessageView {
    pub(super) message: &'static str,
}

/// The answer to download.
#[derive(Debug, Serialize)]
pub(super) struct DownloadView<'a> {
    pub(super) message: &'static str,
    pub(super) workflow_id: WorkflowId,
    /// Those that are being fetched.
    pub(super) outputs: Vec<OutputView<'a>>,
}

/// The answer to progress.
#[derive(Debug, Serialize)]
pub(super) struct ProgressEnvelope<'a> {
    pub(super) progress: WorkflowView<'a>,
}

/// The answer to state.
#[derive(Debug, Serialize)]
pub(super) struct StateEnvelope<'a> {
    pub(super) state: Option<WorkflowView<'a>>,
}

/// The answer to outputs.
#[derive(Debug, Serialize)]
pub(super) struct OutputsEnvelope<'a> {
    pub(super) outputs: Vec<OutputView<'a>>,
}

/// The answer to active.
#[derive(Debug, Serialize)]
pub(super) struct ActiveView {
    pub(super) active: bool,
}

/// One workflow, flat. The first part is the reference's, in its order; the second part is extra.
#[derive(Debug, Serialize)]
pub(super) struct WorkflowView<'a> {
    workflow_id: &'a WorkflowId,
    workflow_name: &'a str,
    prompt_id: &'a PromptId,
    ssh_connection: &'a str,
    workflow_file: &'a str,
    status: Status,
    queue_position: Option<u32>,
    current_node: Option<&'a str>,
    total_nodes: usize,
    completed_nodes: usize,
    progress_percent: f64,
    nodes: Vec<NodeView<'a>>,
    queue_time: Time,
    start_time: Option<Time>,
    end_time: Option<Time>,
    last_update: Time,
    outputs: Vec<OutputView<'a>>,
    error_message: Option<&'a str>,
    failed_node: Option<&'a str>,

    workflow_format: WorkflowFormat,
    phase: Option<Phase>,
    attempt: u32,
    overall_percent: f64,
    current_node_id: Option<&'a NodeId>,
    failed_node_id: Option<&'a NodeId>,
    local_queue_position: Option<usize>,
    cancel_requested: bool,
    connection: Option<ConnectionView<'a>>,
    stalled_since: Option<Time>,
    retry_of: Option<&'a WorkflowId>,
    texts: &'a [Text],
    warnings: &'a [String],
    error_code: Option<ErrorCode>,
    error_detail: Option<&'a ErrorDetail>,
}

/// How the way to the box is.
#[derive(Debug, Serialize)]
struct ConnectionView<'a> {
    state: ConnectionState,
    since: Time,
    cause: Option<&'a str>,
    next_attempt: Option<Time>,
}

impl<'a> From<&'a Connection> for ConnectionView<'a> {
    fn from(connection: &'a Connection) -> Self {
        Self {
            state: connection.state,
            since: Time(connection.since),
            cause: connection.cause.as_deref(),
            next_attempt: connection.next_attempt.map(Time),
        }
    }
}

/// One node.
#[derive(Debug, Serialize)]
struct NodeView<'a> {
    node_id: &'a NodeId,
    node_type: &'a str,
    status: NodeStatus,
    progress: f64,
    message: Option<&'a str>,
    title: Option<&'a str>,
}

/// One output file.
#[derive(Debug, Serialize)]
pub(super) struct OutputView<'a> {
    filename: &'a str,
    file_type: FileType,
    remote_path: &'a str,
    local_path: Option<&'a Path>,
    downloaded: bool,
    subfolder: &'a str,
    node_id: &'a NodeId,
    size: Option<u64>,
}

impl<'a> WorkflowView<'a> {
    /// `local_queue_position` is its place in our own line; it counts only as long as the state says that it waits.
    pub(super) fn new(state: &'a WorkflowState, local_queue_position: Option<usize>) -> Self {
        let class_of = |id: &NodeId| state.nodes.get(id).map(|node| node.class_type.as_str());
        let failure = state.failure();
        Self {
            workflow_id: &state.id,
            workflow_name: &state.request.workflow_name,
            prompt_id: &state.prompt_id,
            ssh_connection: &state.request.ssh_connection,
            workflow_file: &state.request.workflow_file,
            status: state.status(),
            queue_position: state.queue_position,
            current_node: state.current_node.as_ref().and_then(class_of),
            total_nodes: state.nodes.len(),
            completed_nodes: state.completed_nodes(),
            progress_percent: state.progress_percent(),
            nodes: state.nodes.values().map(NodeView::from).collect(),
            queue_time: Time(state.queue_time),
            start_time: state.start_time.map(Time),
            end_time: state.end_time.map(Time),
            last_update: Time(state.last_update),
            outputs: output_views(state),
            error_message: failure.map(|failure| failure.message.as_str()),
            failed_node: failure
                .and_then(|failure| failure.node_type.as_deref())
                .or_else(|| state.failed_node.as_ref().and_then(class_of)),
            workflow_format: state.workflow_format,
            phase: state.phase(),
            attempt: state.attempt,
            overall_percent: state.overall_percent(),
            current_node_id: state.current_node.as_ref(),
            failed_node_id: state.failed_node.as_ref(),
            local_queue_position: local_queue_position.filter(|_| state.phase() == Some(Phase::Waiting)),
            cancel_requested: state.cancel_requested,
            connection: state.connection.as_ref().map(ConnectionView::from),
            stalled_since: state.stalled_since.map(Time),
            retry_of: state.retry_of.as_ref(),
            texts: &state.texts,
            warnings: &state.warnings,
            error_code: failure.map(|failure| failure.code),
            error_detail: failure.and_then(|failure| failure.detail.as_deref()),
        }
    }
}

impl<'a> From<&'a NodeState> for NodeView<'a> {
    fn from(node: &'a NodeState) -> Self {
        Self {
            node_id: &node.id,
            node_type: &node.class_type,
            status: node.status,
            progress: node.progress,
            message: node.message.as_deref(),
            title: node.title.as_deref(),
        }
    }
}

impl<'a> From<&'a Output> for OutputView<'a> {
    fn from(output: &'a Output) -> Self {
        Self {
            filename: &output.remote.filename,
            file_type: output.file_type,
            remote_path: &output.remote_path,
            local_path: output.local_path.as_deref(),
            downloaded: output.downloaded(),
            subfolder: &output.remote.subfolder,
            node_id: &output.node_id,
            size: output.size,
        }
    }
}

/// The outputs of a workflow.
pub(super) fn output_views(state: &WorkflowState) -> Vec<OutputView<'_>> {
    state.outputs.iter().map(OutputView::from).collect()
}

/// RFC 3339 in UTC, ending in `Z`.
#[derive(Debug, Clone, Copy)]
struct Time(DateTime<Utc>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}
