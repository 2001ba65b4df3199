//! The words of the state file.
//!
//! ```json
//! { "format": 1, "workflows": { "comfyui_workflow_…": { … } } }
//! ```
//!
//! The rule for changes: a field that is added to a workflow's state has a serde default, so that files of older
//! versions keep loading; unknown fields are ignored. Only what an older version would misread counts the format up,
//! and then this module still reads the older ones. Each format that was in use has its files in
//! `tests/fixtures/state`, and they must load.

use serde_json::Value;

use crate::workflow::WorkflowState;

/// Counts incompatible changes of the format.
const FORMAT: u64 = 1;

/// What a state file says.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The workflows that can be read.
    pub(super) workflows: Vec<WorkflowState>,
    /// For each other one, why it can't.
    pub(super) broken: Vec<String>,
}

/// Why a whole file says nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// A newer version wrote it, in this format.
    Newer(u64),
    /// It is not ours, or damaged.
    Broken(String),
}

/// The frame around the workflows, each already in words.
pub(super) fn render<'a>(workflows: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut out = format!("{{\"format\":{FORMAT},\"workflows\":{{").into_bytes();
    for (at, (id, state)) in workflows.enumerate() {
        out.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        out.extend_from_slice(Value::from(id).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(state);
    }
    out.extend_from_slice(b"\n}}\n");
    out
}

/// Reads a file's content.
pub(super) fn parse(content: &[u8]) -> Result<Parsed, Unreadable> {
    let broken = |cause: &str| Unreadable::Broken(cause.to_owned());
    let document: Value = serde_json::from_slice(content).map_err(|error| broken(&error.to_string()))?;
    match document.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => return Err(Unreadable::Newer(newer)),
        Some(other) => return Err(Unreadable::Broken(format!("there is no format {other}"))),
        None => return Err(broken("it names no format")),
    }
    let workflows =
        document.get("workflows").and_then(Value::as_object).ok_or_else(|| broken("it has no workflows"))?;
    let mut parsed = Parsed { workflows: Vec::with_capacity(workflows.len()), broken: Vec::new() };
    for (id, state) in workflows {
        match serde_json::from_value::<WorkflowState>(state.clone()) {
            Ok(state) if state.id.as_str() == id => parsed.workflows.push(state),
            Ok(state) => parsed.broken.push(format!("{id} holds {}", state.id)),
            Err(error) => parsed.broken.push(format!("{id}: {error}")),
        }
    }
    Ok(parsed)
}
