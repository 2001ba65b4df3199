//! How far one node has come.

use serde::{Deserialize, Serialize};

use super::id::NodeId;

/// The message of a node whose result is known from an earlier run.
const CACHED: &str = "cached";

/// The closed set of node states that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Has not started.
    Pending,
    /// Is running.
    Executing,
    /// Is done, in this run or (message `cached`) in an earlier one.
    Executed,
    /// Raised an exception.
    Failed,
}

/// Longest title that is kept, in characters; it is shown beside a bar.
const TITLE_CHARS: usize = 200;

/// One node of a workflow as readers see it. It only goes forward: pending, executing, then executed or failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// Its id in the graph.
    pub id: NodeId,
    /// Its class, such as `KSampler`.
    pub class_type: String,
    /// The title that its author gave it.
    pub title: Option<String>,
    /// How far it has come.
    pub status: NodeStatus,
    /// 0.0 to 100.0.
    pub progress: f64,
    /// For people, such as `Sampling step 45/100`.
    pub message: Option<String>,
}

impl NodeState {
    /// A node that has not started.
    pub fn pending(id: NodeId, class_type: &str, title: Option<&str>) -> Self {
        Self {
            id,
            class_type: class_type.to_owned(),
            title: title.map(|title| title.chars().take(TITLE_CHARS).collect()),
            status: NodeStatus::Pending,
            progress: 0.0,
            message: None,
        }
    }

    /// Whether nothing more is expected of it.
    pub fn is_done(&self) -> bool {
        matches!(self.status, NodeStatus::Executed | NodeStatus::Failed)
    }

    /// Whether its result is known from an earlier run.
    pub fn is_cached(&self) -> bool {
        self.message.as_deref() == Some(CACHED)
    }

    /// It began to run. Says whether that was news.
    pub(super) fn start(&mut self) -> bool {
        let news = self.status == NodeStatus::Pending;
        if news {
            self.status = NodeStatus::Executing;
        }
        news
    }

    /// It has done `value` of `max` steps. Progress never falls: samplers with several passes count anew.
    pub(super) fn step(&mut self, value: f64, max: f64) -> bool {
        if self.is_done() || !(value.is_finite() && max.is_finite() && max > 0.0) {
            return false;
        }
        let started = self.start();
        let value = value.clamp(0.0, max);
        let progress = (value / max * 1000.0).round() / 10.0;
        // One step of one is how ComfyUI counts a node without steps.
        let message = (max > 1.0).then(|| {
            let what = if self.class_type.contains("Sampler") { "Sampling step" } else { "Step" };
            format!("{what} {value:.0}/{max:.0}")
        });
        let news = started || progress > self.progress || (message.is_some() && message != self.message);
        self.progress = self.progress.max(progress);
        if message.is_some() {
            self.message = message;
        }
        news
    }

    /// It is done.
    pub(super) fn finish(&mut self) -> bool {
        let message = (self.class_type == "LoadImage").then(|| "Image loaded successfully".to_owned());
        self.end(NodeStatus::Executed, message)
    }

    /// Its result is known from an earlier run.
    pub(super) fn take_from_cache(&mut self) -> bool {
        if self.status == NodeStatus::Executed && !self.is_cached() {
            self.message = Some(CACHED.to_owned());
            return true;
        }
        self.end(NodeStatus::Executed, Some(CACHED.to_owned()))
    }

    /// It raised an exception.
    pub(super) fn fail(&mut self, message: &str) {
        if !self.is_done() {
            self.status = NodeStatus::Failed;
            self.message = message.lines().next().map(str::to_owned);
        }
    }

    /// The run is over and it did not come to its end. Its progress shows how far it was.
    pub(super) fn abandon(&mut self) {
        if self.status == NodeStatus::Executing {
            self.status = NodeStatus::Pending;
        }
    }

    fn end(&mut self, status: NodeStatus, message: Option<String>) -> bool {
        if self.is_done() {
            return false;
        }
        self.status = status;
        self.progress = 100.0;
        self.message = message;
        true
    }
}
