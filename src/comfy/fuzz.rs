//! For the fuzzer: what a ComfyUI, or whatever sits on its port, may say.

use bytes::Bytes;
use chrono::DateTime;

use super::{Decoder, SocketMessage, history, queue::Queue};
use crate::workflow::{Event, NodeId, PromptId, Request, Source, WorkflowId, WorkflowState};

const GRAPH: &[u8] =
    br#"{"1": {"class_type": "A", "inputs": {}}, "2": {"class_type": "B", "inputs": {"a": ["1", 0]}}}"#;

/// The prompt that the messages are about.
const PROMPT: &str = "b1f3d0a4-0f4c-4f3c-8d9e-0c8f5a3b2a10";

/// Lines are text frames; one that is no text is a binary frame. Whatever they say, the state stays within its laws.
pub(crate) fn messages(input: &[u8]) {
    let Some(mut state) = running() else { return };
    let mut decoder = Decoder::new(PromptId::from(PROMPT));
    decoder.set_running();
    let mut before = 0.0;
    for line in input.split(|byte| *byte == b'\n') {
        let message = match std::str::from_utf8(line) {
            Ok(text) => SocketMessage::Text(text.into()),
            Err(_) => SocketMessage::Binary(Bytes::copy_from_slice(line)),
        };
        for event in decoder.decode(&message).events {
            state.apply(DateTime::UNIX_EPOCH, Event::Box(event));
        }
        let percent = state.progress_percent();
        assert!((before..=99.9).contains(&percent), "{before} {percent}");
        assert!((0.0..=99.9).contains(&state.overall_percent()));
        assert!(state.nodes.values().all(|node| (0.0..=100.0).contains(&node.progress)));
        assert!(state.is_active(), "a message is only a hint");
        assert_eq!(state.nodes.len(), 2);
        before = percent;
    }
}

/// Answers about queue and history: read or refused, and nothing counts as ours that does not name our prompt.
pub(crate) fn answers(input: &[u8]) {
    let (prompt, workflow) = (PromptId::from(PROMPT), WorkflowId::from("comfyui_workflow_1_00000000"));
    let named = String::from_utf8_lossy(input).contains(PROMPT.split('-').next().unwrap_or_default());
    if let Ok(queue) = Queue::parse(input) {
        assert!(queue.place_of(&prompt, &workflow).is_none() || named || input.contains(&b'\\'));
    }
    if let Ok(entries) = history::parse(input) {
        assert!(entries.len() <= input.len());
        let ours = entries.iter().any(|entry| entry.belongs_to(&prompt, &workflow));
        assert!(!ours || named || input.contains(&b'\\'));
    }
}

/// A workflow whose prompt runs.
fn running() -> Option<WorkflowState> {
    let source = Source::parse_kept(GRAPH).ok()?;
    let request = Request {
        ssh_connection: String::new(),
        workflow_file: String::new(),
        workflow_name: String::new(),
        input_images: Vec::new(),
        output_dir: "/out".into(),
        comfyui_port: 1,
        comfyui_input_dir: String::new(),
        comfyui_output_dir: String::new(),
    };
    let mut state = WorkflowState::accepted(
        WorkflowId::from("comfyui_workflow_1_00000000"),
        request,
        &source,
        DateTime::UNIX_EPOCH,
    );
    state.apply(
        DateTime::UNIX_EPOCH,
        Event::Planned { order: ["1", "2"].map(NodeId::from).into(), outputs: Vec::new() },
    );
    state.apply(DateTime::UNIX_EPOCH, Event::Submitted(PromptId::from(PROMPT)));
    Some(state)
}
