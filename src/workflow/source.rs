//! What a workflow file holds, as it was accepted.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    edits::Edits,
    graph::{Graph, GraphError},
};
use crate::json::parse_lenient;

/// In which form a workflow came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkflowFormat {
    /// What ComfyUI's "Export (API)" writes.
    #[default]
    Api,
    /// What its "Save" writes.
    Ui,
    /// A PNG picture with either.
    Png,
    /// A WebP picture with either.
    Webp,
}

/// A workflow before anything of the box is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// What its file holds.
    pub document: Document,
    /// What is to be changed in it before the run.
    pub edits: Edits,
}

/// A workflow in either form.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// Can be submitted as it is.
    Graph(Graph),
    /// In ComfyUI's UI format: which graph it means depends on the box's node definitions.
    Ui(Value),
}

impl Document {
    /// Reads a file's content: a graph, a request envelope with the graph under `prompt`, or a workflow in UI format.
    ///
    /// # Errors
    /// Says what the content is instead.
    pub fn parse(content: &[u8]) -> Result<Self, GraphError> {
        if content.trim_ascii().is_empty() {
            return Err(GraphError::Empty);
        }
        Self::read(parse_lenient(content)?)
    }

    /// Takes what [`parse`](Self::parse) reads as JSON.
    ///
    /// # Errors
    /// Says what it is instead.
    pub fn read(value: Value) -> Result<Self, GraphError> {
        let Value::Object(object) = value else {
            return Err(GraphError::NotAGraph("the file does not hold a JSON object".into()));
        };
        if is_ui_format(&object) {
            return Ok(Self::Ui(Value::Object(object)));
        }
        Graph::from_document(object).map(Self::Graph)
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Graph(graph) => graph.to_value(),
            Self::Ui(document) => document.clone(),
        }
    }

    /// The form of its JSON.
    pub fn format(&self) -> WorkflowFormat {
        match self {
            Self::Graph(_) => WorkflowFormat::Api,
            Self::Ui(_) => WorkflowFormat::Ui,
        }
    }
}

/// A source that is kept for later, where something is to be changed in it.
#[derive(Serialize, Deserialize)]
struct Kept {
    comfy_remote_edits: Edits,
    workflow: Value,
}

impl Source {
    /// As it is kept; [`parse_kept`](Self::parse_kept) reads it again.
    pub fn to_value(&self) -> Value {
        let workflow = self.document.to_value();
        if self.edits.is_empty() {
            return workflow;
        }
        let kept = Kept { comfy_remote_edits: self.edits.clone(), workflow };
        serde_json::to_value(kept).unwrap_or_default()
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// Says what the content is instead.
    pub fn parse_kept(content: &[u8]) -> Result<Self, GraphError> {
        let value = parse_lenient(content)?;
        // A node of a graph can be called anything.
        let is_kept = value.get("comfy_remote_edits").is_some_and(|edits| edits.get("class_type").is_none());
        if !is_kept || value.get("workflow").is_none() {
            return Document::read(value).map(Self::from);
        }
        let Kept { comfy_remote_edits: edits, workflow } = serde_json::from_value(value)?;
        Ok(Self { document: Document::read(workflow)?, edits })
    }

    /// Whether this is what will be submitted.
    pub fn is_settled(&self) -> bool {
        self.edits.is_empty() && self.graph().is_some()
    }

    /// The graph, where that is known.
    pub fn graph(&self) -> Option<&Graph> {
        match &self.document {
            Document::Graph(graph) => Some(graph),
            Document::Ui(_) => None,
        }
    }
}

/// With nothing to be changed.
impl From<Document> for Source {
    fn from(document: Document) -> Self {
        Self { document, edits: Edits::default() }
    }
}

fn is_ui_format(object: &Map<String, Value>) -> bool {
    object.get("nodes").is_some_and(Value::is_array) && object.get("links").is_some_and(Value::is_array)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_either_form_is_kept_as_it_is() {
        for (text, format) in [
            (r#"{"1":{"class_type":"A","inputs":{"seed":18446744073709551615}}}"#, WorkflowFormat::Api),
            (
                r#"{"comfy_remote_edits":{"class_type":"A","inputs":{}},"workflow":{"class_type":"B","inputs":{}}}"#,
                WorkflowFormat::Api,
            ),
            (r#"{"last_node_id":1,"nodes":[{"id":1,"type":"A"}],"links":[],"version":0.4}"#, WorkflowFormat::Ui),
        ] {
            let document = Document::parse(text.as_bytes()).unwrap();
            let mut source = Source::from(document.clone());
            assert_eq!((document.format(), source.to_value().to_string().as_str()), (format, text));
            assert_eq!(Source::parse_kept(text.as_bytes()).unwrap(), source);
            source.edits.parameters.insert("1.seed".into(), serde_json::json!(u64::MAX));
            let kept = source.to_value().to_string();
            assert_eq!(Source::parse_kept(kept.as_bytes()).unwrap(), source);
        }
        assert!(matches!(Document::parse(b" \n"), Err(GraphError::Empty)));
        assert!(matches!(Document::parse(b"[]"), Err(GraphError::NotAGraph(_))));
    }
}
