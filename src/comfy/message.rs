//! Websocket frames to events. Pure, but for what a decoder remembers of one prompt.
//!
//! The socket tells the same facts several times over: `progress_state` repeats every node that ran with every step,
//! `progress` and `executing` say it again. The decoder passes on what is new. It listens to one prompt; other
//! prompts' messages reach us too (ComfyUI broadcasts those of client-less prompts, and all of them in
//! v0.3.45–0.3.57) and are dropped.
//!
//! Nothing here is proof: messages get lost, and how a run ended only history says.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{
    client::text_of,
    node_failure::NodeFailure,
    outputs,
    queue::{MAX_ID_BYTES, id_of},
    socket::SocketMessage,
};
use crate::{
    json::parse_lenient,
    workflow::{BoxEvent, NodeId, NodeOutput, PromptId},
};

/// Most nodes that are remembered; what is told about more is passed on every time.
const MAX_NODES: usize = 20_000;

/// What one message says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// News of the prompt, in order.
    pub events: Vec<BoxEvent>,
    /// Something moved in ComfyUI's line: a place in it may be another one now.
    pub queue_changed: bool,
    /// The failure that ends the run, with details that some servers' history lacks.
    pub failure: Option<NodeFailure>,
}

/// What a binary frame is. None of them says anything about the run's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// A preview picture.
    Preview,
    /// Text of a node.
    Text,
    /// A preview picture that says of which node it is.
    PreviewWithMetadata,
    /// An event of another number, or too short for its kind.
    Unknown,
}

/// Decodes the messages about one prompt.
#[derive(Debug)]
pub struct Decoder {
    prompt: PromptId,
    /// The prompt is known to run, so messages that name no prompt are about it.
    is_running: bool,
    /// The server sends `progress_state` (v0.3.45 and newer), which says when a node ends.
    tells_states: bool,
    current: Option<NodeId>,
    told: HashMap<NodeId, Told>,
    cached: HashSet<NodeId>,
    /// Expanded children, and the node of the graph that they belong to.
    parents: HashMap<String, NodeId>,
    ignored: u64,
}

/// What was passed on about a node.
#[derive(Debug, Default)]
struct Told {
    started: bool,
    finished: bool,
    step: Option<(f64, f64)>,
}

impl Decoder {
    /// A decoder for a prompt, by the id under which the server knows it.
    pub fn new(prompt: PromptId) -> Self {
        Self {
            prompt,
            is_running: false,
            tells_states: false,
            current: None,
            told: HashMap::new(),
            cached: HashSet::new(),
            parents: HashMap::new(),
            ignored: 0,
        }
    }

    /// Takes in that the queue shows the prompt running. Then a message that names no prompt counts as being about
    /// it, as the `executing` does that ComfyUI repeats to a socket that connects in the middle of a run. Without
    /// this, such messages count from the first one on that names the prompt.
    pub fn set_running(&mut self) {
        self.is_running = true;
    }

    /// How many messages were not understood: unknown kinds, and what is no message at all.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Decodes one frame.
    pub fn decode(&mut self, message: &SocketMessage) -> Decoded {
        match message {
            SocketMessage::Text(text) => self.text(text),
            SocketMessage::Binary(frame) => {
                if Binary::of(frame) == Binary::Unknown {
                    self.ignored += 1;
                }
                Decoded::default()
            }
        }
    }

    fn text(&mut self, text: &str) -> Decoded {
        let Ok(message) = parse_lenient(text.as_bytes()) else {
            self.ignored += 1;
            return Decoded::default();
        };
        let (kind, data) = (text_of(&message, "type").unwrap_or_default(), message.get("data").unwrap_or(&Value::Null));
        let mut decoded = Decoded::default();
        match kind.as_str() {
            // Sent when a prompt is added, begins or ends. When one begins, the count stays the same but every
            // place moves up, so the count says less than the message.
            "status" => decoded.queue_changed = true,
            "execution_start"
            | "execution_cached"
            | "executing"
            | "progress"
            | "progress_state"
            | "executed"
            | "execution_success"
            | "execution_error"
            | "execution_interrupted" => {
                if self.is_ours(data) {
                    self.news(&kind, data, &mut decoded);
                }
            }
            "feature_flags" => {}
            _ => self.ignored += 1,
        }
        decoded
    }

    /// A prompt id decides. Without one, whether ours is known to run.
    fn is_ours(&mut self, data: &Value) -> bool {
        match data.get("prompt_id").and_then(id_of) {
            Some(id) => {
                let ours = id == self.prompt.as_str();
                self.is_running |= ours;
                ours
            }
            None => self.is_running,
        }
    }

    fn news(&mut self, kind: &str, data: &Value, decoded: &mut Decoded) {
        let events = &mut decoded.events;
        match kind {
            "execution_start" => events.push(BoxEvent::Started),
            "execution_cached" => self.cached(data, events),
            "executing" => self.executing(data, events),
            "progress" => self.progress(data, events),
            "progress_state" => self.states(data, events),
            "executed" => self.executed(data, events),
            "execution_error" => match NodeFailure::read(data) {
                // A branch was closed on purpose; the run goes on.
                None => {}
                failure => {
                    decoded.failure = failure;
                    self.over(events);
                }
            },
            "execution_success" => {
                self.finish_current(events);
                self.over(events);
            }
            _ => self.over(events),
        }
    }

    fn cached(&mut self, data: &Value, events: &mut Vec<BoxEvent>) {
        let nodes = data.get("nodes").and_then(Value::as_array).into_iter().flatten().filter_map(id_of);
        let nodes: Vec<NodeId> = nodes.map(NodeId::from).take(MAX_NODES).collect();
        self.cached.extend(nodes.iter().take(MAX_NODES.saturating_sub(self.cached.len())).cloned());
        if !nodes.is_empty() {
            events.push(BoxEvent::Cached(nodes));
        }
    }

    /// A node begins; or the prompt is over, however it ended.
    fn executing(&mut self, data: &Value, events: &mut Vec<BoxEvent>) {
        let Some(id) = data.get("node").and_then(id_of) else {
            return self.over(events);
        };
        let node = self.node_of(&id, data.get("display_node").and_then(id_of));
        if self.current.as_ref() != Some(&node) {
            self.finish_current(events);
            self.current = Some(node.clone());
        }
        self.start(node, events);
    }

    /// Without `progress_state`, a node has ended when the next one begins or the run has succeeded.
    fn finish_current(&mut self, events: &mut Vec<BoxEvent>) {
        if let Some(node) = self.current.take()
            && !self.tells_states
        {
            self.finish(node, events);
        }
    }

    fn progress(&mut self, data: &Value, events: &mut Vec<BoxEvent>) {
        let node = match data.get("node").and_then(id_of) {
            Some(id) => Some(self.node_of(&id, None)),
            None => self.current.clone(),
        };
        if let (Some(node), Some(step)) = (node, step_of(data)) {
            self.step(node, step, events);
        }
    }

    /// Every node that has begun, each time. Children count as their node running.
    fn states(&mut self, data: &Value, events: &mut Vec<BoxEvent>) {
        self.tells_states = true;
        let nodes = data.get("nodes").and_then(Value::as_object).into_iter().flatten();
        for (id, entry) in nodes.filter(|(id, _)| id.len() <= MAX_ID_BYTES) {
            let real = ["real_node_id", "display_node_id"].into_iter().find_map(|key| id_of(entry.get(key)?));
            let node = NodeId::from(real.unwrap_or_else(|| id.clone()));
            let is_child = node.as_str() != id;
            if is_child {
                self.remember_parent(id, &node);
            }
            match text_of(entry, "state").as_deref() {
                Some("running") => {
                    self.start(node.clone(), events);
                    // Before its first real step a node stands at 0 of 1.
                    if let Some((value, max)) = step_of(entry).filter(|(value, max)| *max > 1.0 || *value > 0.0) {
                        self.step(node, (value, max), events);
                    }
                }
                Some("finished") if !is_child => self.finish(node, events),
                _ => {}
            }
        }
    }

    fn executed(&mut self, data: &Value, events: &mut Vec<BoxEvent>) {
        let Some(id) = data.get("node").and_then(id_of) else { return };
        let node = self.node_of(&id, data.get("display_node").and_then(id_of));
        let output = outputs::read(data.get("output").unwrap_or(&Value::Null));
        if output != NodeOutput::default() {
            events.push(BoxEvent::NodeOutput { node: node.clone(), output });
        }
        if node.as_str() == id {
            self.finish(node, events);
        }
    }

    fn start(&mut self, node: NodeId, events: &mut Vec<BoxEvent>) {
        let told = self.told(&node);
        if told.is_none_or(|told| !std::mem::replace(&mut told.started, true)) {
            events.push(BoxEvent::NodeStarted(node));
        }
    }

    fn step(&mut self, node: NodeId, step: (f64, f64), events: &mut Vec<BoxEvent>) {
        let told = self.told(&node);
        if told.is_none_or(|told| told.step.replace(step) != Some(step)) {
            events.push(BoxEvent::NodeStep { node, value: step.0, max: step.1 });
        }
    }

    /// The end of a node that has run. A cached output node is told as finished too, without having begun.
    fn finish(&mut self, node: NodeId, events: &mut Vec<BoxEvent>) {
        let is_cached = self.cached.contains(&node);
        let told = self.told(&node);
        if told.is_none_or(|told| (told.started || !is_cached) && !std::mem::replace(&mut told.finished, true)) {
            events.push(BoxEvent::NodeFinished(node));
        }
    }

    fn over(&mut self, events: &mut Vec<BoxEvent>) {
        self.is_running = false;
        self.current = None;
        events.push(BoxEvent::Over);
    }

    /// What was told about a node; `None` when there are too many nodes to remember this one.
    fn told(&mut self, node: &NodeId) -> Option<&mut Told> {
        if self.told.len() >= MAX_NODES && !self.told.contains_key(node) {
            return None;
        }
        Some(self.told.entry(node.clone()).or_default())
    }

    /// The node of the graph behind an id. `display` is the node to be shown in its place.
    fn node_of(&mut self, id: &str, display: Option<String>) -> NodeId {
        if let Some(parent) = self.parents.get(id) {
            return parent.clone();
        }
        let node = NodeId::from(display.unwrap_or_else(|| id.to_owned()));
        if node.as_str() != id {
            self.remember_parent(id, &node);
        }
        node
    }

    fn remember_parent(&mut self, id: &str, node: &NodeId) {
        if self.parents.len() < MAX_NODES && self.parents.get(id) != Some(node) {
            self.parents.insert(id.to_owned(), node.clone());
        }
    }
}

impl Binary {
    /// Tells the kinds apart by their first bytes; never looks beyond the frame.
    pub fn of(frame: &[u8]) -> Self {
        let word = |at: usize| frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        // A length, and as many bytes behind it.
        let counted = || word(4).is_some_and(|length| frame.len() - 8 >= length as usize);
        match word(0) {
            Some(1) if frame.len() > 8 => Self::Preview,
            Some(3) if counted() => Self::Text,
            Some(4) if counted() => Self::PreviewWithMetadata,
            _ => Self::Unknown,
        }
    }
}

/// Steps done and steps in all. Custom nodes send anything; a `max` of 0 says nothing.
fn step_of(data: &Value) -> Option<(f64, f64)> {
    let number = |key| data.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
    let (value, max) = (number("value")?, number("max")?);
    (max > 0.0).then(|| (value.max(0.0), max))
}

#[cfg(test)]
mod tests;
