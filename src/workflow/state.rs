//! The state of one workflow, and the one function that changes it.
//!
//! [`WorkflowState::apply`] is a pure reducer. The websocket, the history and our own task tell the same facts
//! late, twice or out of order; these laws absorb that:
//! a final status absorbs everything after it; phases and progress never go back within one attempt;
//! the same event twice equals once. The first law has one exception: what the user asks for after the end may still
//! come, and a run that failed for nothing but its downloads is then completed.

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    caller::Caller,
    connection::Connection,
    event::{BoxEvent, Event},
    failure::Failure,
    graph::Graph,
    id::{ClientId, NodeId, PromptId, ServerMark, WorkflowId},
    node::{NodeState, NodeStatus},
    output::Output,
    request::{Idempotency, Request},
    source::{Source, WorkflowFormat},
};
use crate::text::one_line;

/// Warnings beyond this many are dropped.
const MAX_WARNINGS: usize = 100;

/// The closed set of workflow states that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted; the box has not begun to run it.
    Queued,
    /// The box runs it, or its outputs are on their way.
    Executing,
    /// Every output is on the local disk.
    Completed,
    /// It can't be finished.
    Failed,
    /// The user stopped it.
    Cancelled,
}

/// Where an active workflow is, finer than [`Status`]. In the order in which a run passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// In our own line.
    Waiting,
    /// On the way to the box.
    Connecting,
    /// Inputs go to the box.
    Uploading,
    /// In ComfyUI's line.
    Queued,
    /// ComfyUI runs it.
    Running,
    /// Outputs come here.
    Downloading,
}

/// Active in some phase, or over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Somebody works on it.
    Active(Phase),
    /// Every output is here.
    Completed,
    /// It can't be finished.
    Failed(Failure),
    /// The user stopped it.
    Cancelled,
}

/// What is known about the current attempt's prompt on the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Submission {
    /// It was never sent.
    None,
    /// It was about to be sent: the box may have it or not.
    Unclear,
    /// The box took it.
    Accepted,
}

/// Everything that readers can know about a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowState {
    /// Its id.
    pub id: WorkflowId,
    /// What was asked for.
    pub request: Request,
    /// Active or over.
    pub lifecycle: Lifecycle,
    /// The current attempt's prompt.
    pub prompt_id: PromptId,
    /// Whose websocket gets the prompt's messages.
    pub client_id: ClientId,
    /// What the box has of it.
    pub submission: Submission,
    /// Why it is unclear what the box has of it.
    pub unclear_because: Option<String>,
    /// The mark of the ComfyUI to which it was sent.
    #[serde(default)]
    pub server_mark: Option<ServerMark>,
    /// How often it was sent. More than once only when ComfyUI certainly had not taken it before.
    #[serde(default)]
    pub times_sent: u32,
    /// The box took only a part of the graph: why the workflow fails once that part is stopped.
    pub refusal: Option<Failure>,
    /// 1, and one more each time the run starts over.
    pub attempt: u32,
    /// The user wants it stopped.
    pub cancel_requested: bool,
    /// How the way to the box is; `None` before it first stood and after the end.
    pub connection: Option<Connection>,
    /// In which form the workflow came.
    #[serde(default)]
    pub workflow_format: WorkflowFormat,
    /// The workflow that this one tries again.
    pub retry_of: Option<WorkflowId>,
    /// The caller's own name for the request, if it gave one, and how it was answered.
    pub idempotency: Option<Idempotency>,
    /// Who asked for it.
    #[serde(default)]
    pub caller: Option<Caller>,
    /// The nodes, in the expected order; only those that will run, once that is known. None as long as the graph is not
    /// known.
    pub nodes: IndexMap<NodeId, NodeState>,
    /// Those that save or show a result, once that is known.
    pub output_nodes: Vec<NodeId>,
    /// Place in ComfyUI's line, 1 = next to run.
    pub queue_position: Option<u32>,
    /// The node that runs now.
    pub current_node: Option<NodeId>,
    /// The node that failed.
    pub failed_node: Option<NodeId>,
    /// When it was accepted.
    pub queue_time: DateTime<Utc>,
    /// When the box began to run it.
    pub start_time: Option<DateTime<Utc>>,
    /// When it reached its final status.
    pub end_time: Option<DateTime<Utc>>,
    /// When anything changed last.
    pub last_update: DateTime<Utc>,
    /// Files that nodes reported.
    pub outputs: Vec<Output>,
    /// The box reported more files than are kept: those in the list are not all.
    #[serde(default)]
    pub outputs_left_out: bool,
    /// Texts that nodes reported.
    pub texts: Vec<Text>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Since when nothing has moved although it should, where that is suspiciously long.
    #[serde(default)]
    pub stalled_since: Option<DateTime<Utc>>,
}

/// A text among the results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The node that reported it.
    pub node_id: NodeId,
    /// The text.
    pub text: String,
}

impl WorkflowState {
    /// A workflow that was accepted just now, with fresh prompt and client ids.
    pub fn accepted(id: WorkflowId, request: Request, source: &Source, at: DateTime<Utc>) -> Self {
        Self {
            id,
            request,
            lifecycle: Lifecycle::Active(Phase::Waiting),
            prompt_id: PromptId::fresh(),
            client_id: ClientId::fresh(),
            submission: Submission::None,
            unclear_because: None,
            server_mark: None,
            times_sent: 0,
            refusal: None,
            attempt: 1,
            cancel_requested: false,
            connection: None,
            workflow_format: source.document.format(),
            retry_of: None,
            idempotency: None,
            caller: None,
            nodes: source.graph().map(pending_nodes).unwrap_or_default(),
            output_nodes: Vec::new(),
            queue_position: None,
            current_node: None,
            failed_node: None,
            queue_time: at,
            start_time: None,
            end_time: None,
            last_update: at,
            outputs: Vec::new(),
            outputs_left_out: false,
            texts: Vec::new(),
            warnings: Vec::new(),
            stalled_since: None,
        }
    }

    /// The status that clients know.
    pub fn status(&self) -> Status {
        match self.lifecycle {
            Lifecycle::Active(Phase::Running | Phase::Downloading) => Status::Executing,
            Lifecycle::Active(_) => Status::Queued,
            Lifecycle::Completed => Status::Completed,
            Lifecycle::Failed(_) => Status::Failed,
            Lifecycle::Cancelled => Status::Cancelled,
        }
    }

    /// The phase of an active workflow.
    pub fn phase(&self) -> Option<Phase> {
        match self.lifecycle {
            Lifecycle::Active(phase) => Some(phase),
            _ => None,
        }
    }

    /// Whether it has no final status yet.
    pub fn is_active(&self) -> bool {
        self.phase().is_some()
    }

    /// Why it failed.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.lifecycle {
            Lifecycle::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether the box may know of outputs that are not on record: the run ended here before anybody saw how it ended
    /// there.
    pub fn may_have_left_more(&self) -> bool {
        let unseen = match &self.lifecycle {
            Lifecycle::Active(_) | Lifecycle::Completed => false,
            Lifecycle::Cancelled => true,
            Lifecycle::Failed(failure) => !failure.code.is_seen_on_the_box(),
        };
        unseen && self.submission != Submission::None
    }

    /// How many nodes are done.
    pub fn completed_nodes(&self) -> usize {
        self.nodes.values().filter(|node| node.status == NodeStatus::Executed).count()
    }

    /// Completed nodes in percent of all, to one decimal; 100.0 exactly when the status is `completed`.
    pub fn progress_percent(&self) -> f64 {
        self.percent(self.completed_nodes() as f64)
    }

    /// Like [`progress_percent`](Self::progress_percent), but a running node counts with its part.
    pub fn overall_percent(&self) -> f64 {
        self.percent(self.nodes.values().map(|node| node.progress / 100.0).sum())
    }

    fn percent(&self, done: f64) -> f64 {
        if self.lifecycle == Lifecycle::Completed {
            return 100.0;
        }
        let all = self.nodes.len().max(1) as f64;
        ((done / all * 1000.0).round() / 10.0).clamp(0.0, 99.9)
    }

    /// Takes in one fact. `at` is when it became known here. Says whether anything changed.
    pub fn apply(&mut self, at: DateTime<Utc>, event: Event) -> bool {
        if let Event::AnsweredWithError(message) = event {
            return self.idempotency.as_mut().is_some_and(|known| replace(&mut known.tunnel_error, Some(message)));
        }
        let Lifecycle::Active(phase) = self.lifecycle else {
            return self.apply_after_the_end(at, event);
        };
        let changed = match event {
            Event::Entered(next) => self.enter(phase, next, at),
            Event::Converted(graph) => self.nodes.is_empty() && replace(&mut self.nodes, pending_nodes(&graph)),
            Event::Planned { order, outputs } => self.plan(&order) | replace(&mut self.output_nodes, outputs),
            Event::Submitting(mark) => self.submission == Submission::None && self.note_sending(mark),
            Event::NotTaken => self.submission == Submission::Unclear && self.note_not_sent(),
            Event::NeverTaken => self.submission == Submission::Unclear && self.note_submission(Submission::None),
            Event::AnswerLost(cause) => {
                self.submission == Submission::Unclear && replace(&mut self.unclear_because, Some(cause))
            }
            Event::PartlyRefused(failure) => replace(&mut self.refusal, Some(failure)),
            Event::Submitted(prompt_id) => self.note_submitted(phase, prompt_id, at),
            Event::Waiting { position } => phase <= Phase::Queued && replace(&mut self.queue_position, Some(position)),
            Event::Box(event) => self.apply_box(phase, at, event),
            Event::Reported(reports) => self.settle_outputs(reports),
            Event::Stored(stored) => self.note_stored(stored),
            Event::AttemptStarted(prompt_id) => self.start_over(prompt_id),
            Event::Warned(text) => self.warn(text),
            Event::Stalled(since) => replace(&mut self.stalled_since, Some(since)),
            Event::AnsweredWithError(_)
            | Event::ReportedLater(_)
            | Event::LostHere(_)
            | Event::StoredLater(_)
            | Event::NotStoredLater(_) => false,
            Event::Connected => self.connect(Connection::connected(at)) | replace(&mut self.stalled_since, None),
            Event::Reconnecting { cause, next_attempt } => {
                self.connect(Connection::reconnecting(at, cause, next_attempt))
            }
            Event::CancelRequested => replace(&mut self.cancel_requested, true),
            // What was cancelled in time ends cancelled, also if the run ends by itself at that very moment.
            Event::Completed if self.cancel_requested => self.end(Lifecycle::Cancelled, at),
            Event::Failed(failure) if self.cancel_requested => {
                self.warn(failure.message) | self.end(Lifecycle::Cancelled, at)
            }
            Event::Completed => self.end(Lifecycle::Completed, at),
            Event::Failed(failure) | Event::CancelUnconfirmed(failure) => self.fail(failure, at),
            Event::Cancelled => self.end(Lifecycle::Cancelled, at),
        };
        if changed {
            self.last_update = at;
        }
        changed
    }

    fn apply_box(&mut self, phase: Phase, at: DateTime<Utc>, event: BoxEvent) -> bool {
        let moved = match event {
            BoxEvent::Started => self.enter(phase, Phase::Running, at),
            BoxEvent::Cached(nodes) => self.each_node(&nodes, NodeState::take_from_cache) | self.leave_done_node(),
            BoxEvent::NodeStarted(node) => {
                let running = self.enter(phase, Phase::Running, at);
                self.set_running(&node, |state| state.start()) | running
            }
            BoxEvent::NodeStep { node, value, max } => {
                let running = self.enter(phase, Phase::Running, at);
                self.set_running(&node, |state| state.step(value, max)) | running
            }
            BoxEvent::NodeFinished(node) => self.finish_node(&node),
            BoxEvent::NodeOutput { node, output } => self.note_output(node, output),
            BoxEvent::Over => replace(&mut self.current_node, None),
        };
        if moved {
            self.stalled_since = None;
        }
        moved
    }

    fn enter(&mut self, phase: Phase, next: Phase, at: DateTime<Utc>) -> bool {
        if next <= phase {
            return false;
        }
        self.lifecycle = Lifecycle::Active(next);
        self.stalled_since = None;
        if next >= Phase::Running {
            self.queue_position = None;
            self.start_time.get_or_insert(at);
        }
        if next == Phase::Downloading {
            self.current_node = None;
            self.nodes.values_mut().for_each(|node| {
                node.finish();
            });
        }
        true
    }

    fn plan(&mut self, order: &[NodeId]) -> bool {
        if order.is_empty() || self.nodes.keys().eq(order) {
            return false;
        }
        let mut known = std::mem::take(&mut self.nodes);
        self.nodes = order.iter().filter_map(|id| known.swap_remove_entry(id)).collect();
        true
    }

    fn note_submission(&mut self, submission: Submission) -> bool {
        replace(&mut self.submission, submission)
    }

    fn note_sending(&mut self, mark: Option<ServerMark>) -> bool {
        self.server_mark = mark;
        self.times_sent += 1;
        self.note_submission(Submission::Unclear)
    }

    fn note_not_sent(&mut self) -> bool {
        self.times_sent = self.times_sent.saturating_sub(1);
        self.note_submission(Submission::None)
    }

    fn note_submitted(&mut self, phase: Phase, prompt_id: PromptId, at: DateTime<Utc>) -> bool {
        let renamed = replace(&mut self.prompt_id, prompt_id);
        self.note_submission(Submission::Accepted) | self.enter(phase, Phase::Queued, at) | renamed
    }

    fn each_node(&mut self, ids: &[NodeId], change: impl Fn(&mut NodeState) -> bool) -> bool {
        ids.iter().fold(false, |changed, id| self.nodes.get_mut(id).is_some_and(&change) | changed)
    }

    fn set_running(&mut self, id: &NodeId, change: impl FnOnce(&mut NodeState) -> bool) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return false };
        if node.is_done() {
            return false;
        }
        change(node) | replace(&mut self.current_node, Some(id.clone()))
    }

    fn finish_node(&mut self, id: &NodeId) -> bool {
        self.nodes.get_mut(id).is_some_and(NodeState::finish) | self.leave_done_node()
    }

    /// Sees to it that the current node is one that runs.
    fn leave_done_node(&mut self) -> bool {
        let done = |id: &NodeId| self.nodes.get(id).is_some_and(NodeState::is_done);
        let left = self.current_node.as_ref().is_some_and(done);
        if left {
            let running = self.nodes.values().find(|node| node.status == NodeStatus::Executing);
            self.current_node = running.map(|node| node.id.clone());
        }
        left
    }

    /// Nodes begin again, and the new run reports its own results: the same content lands in the same local file.
    fn start_over(&mut self, prompt_id: PromptId) -> bool {
        if self.prompt_id == prompt_id {
            return false;
        }
        self.prompt_id = prompt_id;
        self.attempt += 1;
        self.submission = Submission::None;
        self.lifecycle = Lifecycle::Active(Phase::Uploading);
        self.stalled_since = None;
        self.current_node = None;
        self.queue_position = None;
        self.unclear_because = None;
        self.times_sent = 0;
        self.outputs.clear();
        self.outputs_left_out = false;
        self.texts.clear();
        for node in self.nodes.values_mut() {
            *node = NodeState::pending(node.id.clone(), &node.class_type, node.title.as_deref());
        }
        true
    }

    fn connect(&mut self, now: Connection) -> bool {
        let now = now.following(self.connection.as_ref());
        replace(&mut self.connection, Some(now))
    }

    fn warn(&mut self, text: String) -> bool {
        let text = one_line(&text);
        let news = !self.warnings.contains(&text) && self.warnings.len() < MAX_WARNINGS;
        if news {
            self.warnings.push(text);
        }
        news
    }

    fn fail(&mut self, failure: Failure, at: DateTime<Utc>) -> bool {
        if let Some(detail) = &failure.detail
            && let Some(id) = &detail.node_id
        {
            if let Some(node) = self.nodes.get_mut(id) {
                node.fail(detail.exception_message.as_deref().unwrap_or(&failure.message));
            }
            self.failed_node = Some(id.clone());
        }
        self.end(Lifecycle::Failed(failure), at)
    }

    fn end(&mut self, lifecycle: Lifecycle, at: DateTime<Utc>) -> bool {
        if lifecycle == Lifecycle::Completed {
            self.nodes.values_mut().for_each(|node| {
                node.finish();
            });
        }
        self.nodes.values_mut().for_each(NodeState::abandon);
        self.lifecycle = lifecycle;
        self.current_node = None;
        self.queue_position = None;
        self.connection = None;
        self.stalled_since = None;
        self.end_time = Some(at);
        true
    }
}

fn pending_nodes(graph: &Graph) -> IndexMap<NodeId, NodeState> {
    let order = graph.order_of_all();
    let known = order.into_iter().filter_map(|id| graph.node(&id).map(|node| (id, node)));
    known.map(|(id, node)| (id.clone(), NodeState::pending(id, node.class_type(), node.title()))).collect()
}

/// Stores a value and says whether it differs from what was there.
fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let differs = *place != value;
    *place = value;
    differs
}

mod after_end;
mod outputs;
#[cfg(test)]
mod tests;
