//! Finds the workflow in a file: JSON in either format, bare or among other things, or a picture that carries it.
//!
//! Pure, and bounded: a picture is not decoded, texts are unpacked up to a limit, and nothing is believed about lengths.

mod png;
mod webp;

use std::io;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::{json::parse_lenient, workflow::WorkflowFormat};

/// How long a text in a picture may be, unpacked.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// A workflow out of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Extracted {
    /// What it came in.
    pub format: WorkflowFormat,
    /// The workflow itself.
    pub workflow: Workflow,
}

/// A workflow in one of its two formats.
#[derive(Debug, Clone, PartialEq)]
pub enum Workflow {
    /// As `/prompt` takes it.
    Api(Map<String, Value>),
    /// As ComfyUI's "Save" writes it.
    Ui(Value),
}

/// Why there is no workflow. Reads well after the file's name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// What begins as JSON does, and goes on otherwise.
    #[error("is not JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// Lists in lists, or objects, beyond what is read.
    #[error("is nested more than 128 levels deep")]
    TooDeep,
    /// Another kind of file.
    #[error("is neither JSON nor a PNG or WebP picture")]
    Foreign,
    /// JSON of another kind.
    #[error("holds no workflow: neither nodes by id with their class_type, nor lists of nodes and links")]
    NoWorkflow,
    /// A picture without any, or with something else in its place.
    #[error(
        "is a picture without a workflow; ComfyUI writes it into the pictures that it saves, other programs remove it"
    )]
    NoWorkflowInPicture,
    /// A picture that ends too early or is otherwise not what it says.
    #[error("is a damaged picture: {0}")]
    Damaged(#[source] io::Error),
    /// More text than anybody needs for a workflow.
    #[error("holds a text of more than {} MiB", MAX_TEXT_BYTES >> 20)]
    TooLong,
}

/// Finds the workflow in a file's content. Where both formats are there, the API format wins, since it is what ran.
///
/// # Errors
/// When there is none, or the file is damaged.
pub fn extract(content: &[u8]) -> Result<Extracted, ExtractError> {
    if content.trim_ascii().is_empty() {
        return Err(ExtractError::Empty);
    }
    let (format, texts) = if png::is_png(content) {
        (WorkflowFormat::Png, png::texts(content)?)
    } else if webp::is_webp(content) {
        (WorkflowFormat::Webp, webp::texts(content)?)
    } else {
        return from_json(parse_lenient(content).map_err(|error| not_json(content, error))?);
    };
    let workflow = texts.workflow().ok_or(ExtractError::NoWorkflowInPicture)?;
    Ok(Extracted { format, workflow })
}

fn not_json(content: &[u8], error: serde_json::Error) -> ExtractError {
    let begins_as_json = content.trim_ascii_start().starts_with(b"{") || content.trim_ascii_start().starts_with(b"[");
    if error.to_string().starts_with("recursion limit exceeded") {
        ExtractError::TooDeep
    } else if begins_as_json {
        ExtractError::NotJson(error)
    } else {
        ExtractError::Foreign
    }
}

/// The texts of a picture that may be workflows.
#[derive(Debug, Default)]
struct Texts {
    prompt: Option<Vec<u8>>,
    workflow: Option<Vec<u8>>,
}

impl Texts {
    /// Takes a text in, if it has the name of one; the first of a name stays.
    fn take(&mut self, name: &str, text: impl FnOnce() -> Result<Vec<u8>, ExtractError>) -> Result<(), ExtractError> {
        let slot = match name {
            "prompt" => &mut self.prompt,
            "workflow" => &mut self.workflow,
            _ => return Ok(()),
        };
        if slot.is_none() {
            *slot = Some(text()?);
        }
        Ok(())
    }

    fn workflow(self) -> Option<Workflow> {
        let found = |text: Option<Vec<u8>>| find(parse_lenient(&text?).ok()?);
        // Either may stand under the other's name, or hold what is no workflow.
        match found(self.prompt) {
            Some(api @ Workflow::Api(_)) => Some(api),
            other => found(self.workflow).or(other),
        }
    }
}

fn from_json(document: Value) -> Result<Extracted, ExtractError> {
    let workflow = find(document).ok_or(ExtractError::NoWorkflow)?;
    let format = match workflow {
        Workflow::Api(_) => WorkflowFormat::Api,
        Workflow::Ui(_) => WorkflowFormat::Ui,
    };
    Ok(Extracted { format, workflow })
}

/// Where a document of another kind may hold a workflow: a request to `/prompt`, what a node writes beside a file, what
/// ComfyUI keeps as history. API format first.
const PLACES: [&[&str]; 8] = [
    &["prompt"],
    &["metadata", "prompt"],
    &["workflow"],
    &["metadata", "workflow"],
    &["extra_pnginfo", "workflow"],
    &["extra_data", "extra_pnginfo", "workflow"],
    &["metadata", "extra_pnginfo", "workflow"],
    &["extra", "workflow"],
];

fn find(mut document: Value) -> Option<Workflow> {
    if let Some(found) = take_as_workflow(&mut document) {
        return Some(found);
    }
    PLACES.iter().find_map(|place| {
        let value = place.iter().try_fold(&mut document, |value, key| value.get_mut(*key))?;
        // Some write it as text within the JSON.
        match value.as_str().map(|text| parse_lenient(text.as_bytes())) {
            Some(parsed) => take_as_workflow(&mut parsed.ok()?),
            None => take_as_workflow(value),
        }
    })
}

fn take_as_workflow(document: &mut Value) -> Option<Workflow> {
    let fields = document.as_object_mut()?;
    if fields.get("nodes").is_some_and(Value::is_array) && fields.get("links").is_none_or(|links| !links.is_string()) {
        return Some(Workflow::Ui(document.take()));
    }
    let is_node = |node: &Value| node.get("class_type").is_some_and(Value::is_string);
    // One is enough to know the format; what is wrong with others is for whoever reads it as a graph.
    fields.values().any(is_node).then(|| Workflow::Api(std::mem::take(fields)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
