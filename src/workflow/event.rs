//! What can happen to a workflow. The box's part ([`BoxEvent`]) may arrive late, twice or out of order;
//! [`WorkflowState::apply`](super::state::WorkflowState::apply) absorbs that.

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use super::{
    failure::Failure,
    graph::Graph,
    id::{NodeId, PromptId, ServerMark},
    output::{NodeOutput, RemoteFile},
    state::Phase,
};

/// One fact about a run, told by ComfyUI over its websocket or its history.
#[derive(Debug, Clone, PartialEq)]
pub enum BoxEvent {
    /// The box began to run the prompt.
    Started,
    /// These nodes have results from an earlier run and will not run.
    Cached(Vec<NodeId>),
    /// A node began to run.
    NodeStarted(NodeId),
    /// A node has done `value` of `max` steps. `max` is above 0; `value` may exceed it or fall.
    NodeStep {
        /// Which node.
        node: NodeId,
        /// Steps done.
        value: f64,
        /// Steps in all.
        max: f64,
    },
    /// A node is done.
    NodeFinished(NodeId),
    /// A node reported results.
    NodeOutput {
        /// Which node; of the graph, also where an expanded child reported.
        node: NodeId,
        /// What it reported.
        output: NodeOutput,
    },
    /// The prompt is over, one way or the other. Only history tells which.
    Over,
}

/// An output file that is on the local disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Which node reported it.
    pub node: NodeId,
    /// Which file.
    pub file: RemoteFile,
    /// Where it is now.
    pub local_path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// One fact about a workflow.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The execution reached a phase. Phases only go forward within an attempt.
    Entered(Phase),
    /// The graph that a workflow in UI format means on this box.
    Converted(Box<Graph>),
    /// What will run, as far as the box's definitions tell.
    Planned {
        /// The nodes in the expected order. Others are dropped.
        order: Vec<NodeId>,
        /// Those of them that save or show a result.
        outputs: Vec<NodeId>,
    },
    /// The prompt is about to be sent; from here on it may be on the box. With the mark of the ComfyUI that gets it, if
    /// it can be marked.
    Submitting(Option<ServerMark>),
    /// The prompt was not sent, or certainly did not reach the box's line.
    NotTaken,
    /// The prompt was sent, and the box certainly never took it.
    NeverTaken,
    /// The answer to the submission was lost, or leaves open whether the box took the prompt; for this reason.
    AnswerLost(String),
    /// The box took the prompt under this id.
    Submitted(PromptId),
    /// The box took only a part of the graph: the prompt must be stopped there, and the workflow fails for this reason.
    PartlyRefused(Failure),
    /// Place in ComfyUI's line, 1 = next to run.
    Waiting {
        /// The place.
        position: u32,
    },
    /// ComfyUI said something about the run.
    Box(BoxEvent),
    /// Everything that the run's nodes reported, by ComfyUI's history: what was heard before and is not in it counts
    /// no more, unless it is here already.
    Reported(Vec<(NodeId, NodeOutput)>),
    /// An output file is on the local disk.
    Stored(Stored),
    /// What history knew of a run that ended here before it was over there, or before anybody saw it end.
    ReportedLater(Vec<(NodeId, NodeOutput)>),
    /// These files had come to the local disk and are no longer there.
    LostHere(Vec<RemoteFile>),
    /// An output file came to the local disk after the end, since the user asked for what was missing.
    StoredLater(Stored),
    /// What the user asked for after the end did not come, or not all of it.
    NotStoredLater(Failure),
    /// The run starts over with a new prompt and reports its own results.
    AttemptStarted(PromptId),
    /// Something the user should know that fails nothing.
    Warned(String),
    /// The prompt has run, or ComfyUI not answered, for long without any sign of progress, since then.
    Stalled(DateTime<Utc>),
    /// The way to the box stands.
    Connected,
    /// The way to the box was lost.
    Reconnecting {
        /// Why, or why the last try failed.
        cause: String,
        /// When the next try is due; `None` while one is under way.
        next_attempt: Option<DateTime<Utc>>,
    },
    /// The answer to the request was that the tunnel failed, for this reason.
    AnsweredWithError(String),
    /// The user asked to cancel.
    CancelRequested,
    /// Every output is on the local disk.
    Completed,
    /// The workflow can't be finished.
    Failed(Failure),
    /// The prompt is certainly not running any more, as the user asked.
    Cancelled,
    /// The user asked to cancel, and it can't be found out whether the prompt still runs.
    CancelUnconfirmed(Failure),
}
