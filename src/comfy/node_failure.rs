//! An exception in a node, as `execution_error` tells it. Pure.

use serde_json::Value;

use super::{client::text_of, queue::id_of};
use crate::{text::clip_to, workflow::NodeId};

/// Longest exception message that is kept, in bytes. ComfyUI appends tips, nodes whole tensors.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// How much of a traceback's end is kept.
const MAX_TRACEBACK_LINES: usize = 20;
const MAX_TRACEBACK_BYTES: usize = 4 << 10;

/// ComfyUI's word for a branch that a node has closed on purpose; the run goes on.
const BLOCKED: &str = "ExecutionBlocked";

/// Why a node failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFailure {
    /// The node of the graph; `None` when the server does not say.
    pub node_id: Option<NodeId>,
    /// Its class.
    pub node_type: Option<String>,
    /// The Python exception's qualified name.
    pub exception_type: Option<String>,
    /// What the exception says, at most 4 KiB.
    pub exception_message: String,
    /// The last lines of the traceback: at most 20, at most 4 KiB.
    pub traceback_tail: Vec<String>,
}

impl NodeFailure {
    /// Whether the box's memory or its GPU's did not suffice: the run may succeed when others have ended.
    pub fn is_out_of_memory(&self) -> bool {
        let kind = self.exception_type.as_deref().unwrap_or_default();
        let message = self.exception_message.to_ascii_lowercase();
        kind.contains("OutOfMemory")
            || kind == "MemoryError"
            || message.contains("out of memory")
            || message.contains("allocation on device")
    }

    /// One sentence for people: `node 3 (RigFail) raised RuntimeError: forced failure`.
    pub fn message(&self) -> String {
        let who = match (&self.node_id, &self.node_type) {
            (Some(id), Some(class)) => format!("node {id} ({class})"),
            (Some(id), None) => format!("node {id}"),
            (None, Some(class)) => format!("a node of type {class}"),
            (None, None) => "a node (this ComfyUI does not say which)".into(),
        };
        let kind = self.exception_type.as_deref().unwrap_or("an error");
        let message = clip_to(&self.exception_message, 500);
        if message.is_empty() { format!("{who} raised {kind}") } else { format!("{who} raised {kind}: {message}") }
    }

    /// Reads the payload of `execution_error`; `None` for a branch that was closed on purpose.
    pub(super) fn read(data: &Value) -> Option<Self> {
        let exception_type = text_of(data, "exception_type").filter(|kind| !kind.is_empty());
        if exception_type.as_deref() == Some(BLOCKED) {
            return None;
        }
        Some(Self {
            node_id: data.get("node_id").and_then(id_of).map(NodeId::from),
            node_type: text_of(data, "node_type").map(|class| clip_to(&class, 200)),
            exception_type: exception_type.map(|kind| clip_to(&kind, 200)),
            exception_message: bounded(text_of(data, "exception_message").unwrap_or_default().trim()),
            traceback_tail: traceback_tail(data.get("traceback").unwrap_or(&Value::Null)),
        })
    }

    /// What is left where the server keeps only a sentence, or nothing.
    pub(super) fn from_sentence(sentence: &str) -> Self {
        let sentence = sentence.trim();
        let message = if sentence.is_empty() { "ComfyUI reports an error without saying which" } else { sentence };
        Self { exception_message: bounded(message), ..Self::default() }
    }
}

/// Entries of a traceback can hold several lines each. Python 3.11 underlines the code; these lines only take room.
fn traceback_tail(traceback: &Value) -> Vec<String> {
    let entries: Vec<&str> = match traceback {
        Value::String(text) => vec![text],
        Value::Array(entries) => entries.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let lines = entries.iter().rev().flat_map(|entry| entry.lines().rev()).map(str::trim_end);
    let (mut tail, mut bytes) = (Vec::new(), 0);
    let is_underline = |line: &str| line.trim_start().trim_matches(['^', '~']).is_empty();
    for line in lines.filter(|line| !is_underline(line)).take(MAX_TRACEBACK_LINES) {
        bytes += line.len();
        if bytes > MAX_TRACEBACK_BYTES {
            break;
        }
        tail.push(printable(line).collect());
    }
    tail.reverse();
    tail
}

fn bounded(text: &str) -> String {
    let end = (0..=text.len().min(MAX_MESSAGE_BYTES)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    printable(&text[..end]).collect()
}

/// A message keeps its lines, and commands no terminal.
fn printable(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_failure_is_read_from_any_shape() {
        let failure = NodeFailure::read(&json!({
            "node_id": 5, "node_type": "KSampler", "exception_type": "torch.OutOfMemoryError",
            "exception_message": "Allocation on device\n", "traceback": ["  File a\n    x()\n    ~^^\n", 3, "  File b\n"],
            "current_inputs": [],
        }));
        let failure = failure.unwrap();
        assert_eq!(failure.message(), "node 5 (KSampler) raised torch.OutOfMemoryError: Allocation on device");
        assert_eq!(failure.traceback_tail, ["  File a", "    x()", "  File b"]);
        assert!(failure.is_out_of_memory());
        let bare = NodeFailure::read(&json!(null)).unwrap();
        assert_eq!(bare.message(), "a node (this ComfyUI does not say which) raised an error");
        assert!(!bare.is_out_of_memory());
    }

    #[test]
    fn a_closed_branch_is_no_failure() {
        assert_eq!(NodeFailure::read(&json!({"exception_type": "ExecutionBlocked", "current_inputs": []})), None);
    }

    #[test]
    fn no_terminal_is_commanded() {
        let failure = NodeFailure::from_sentence("a\u{1b}[2J\r\nb\tc\u{9b}\0");
        assert_eq!(failure.exception_message, "a[2J\nb\tc");
    }

    #[test]
    fn long_messages_and_tracebacks_are_cut() {
        let lines: Vec<String> = (0..100).map(|i| format!("line {i}\n")).collect();
        let failure = NodeFailure::read(&json!({"exception_message": "é".repeat(5000), "traceback": lines})).unwrap();
        assert_eq!(failure.exception_message.len(), MAX_MESSAGE_BYTES);
        assert_eq!(failure.traceback_tail.len(), MAX_TRACEBACK_LINES);
        assert_eq!(failure.traceback_tail.last().map(String::as_str), Some("line 99"));
        let wide = NodeFailure::read(&json!({"traceback": vec!["x".repeat(3000); 5]})).unwrap();
        assert_eq!(wide.traceback_tail.len(), 1);
    }
}
