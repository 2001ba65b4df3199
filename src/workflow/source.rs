//! What a workflow file holds, as it was accepted.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::graph::{Graph, GraphError};
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
pub enum Source {
    /// Can be submitted as it is.
    Graph(Graph),
    /// In ComfyUI's UI format: which graph it means depends on the box's node definitions.
    Ui(Value),
}

impl Source {
    /// Reads a file's content: a graph, a request envelope with the graph under `prompt`, or a workflow in UI format.
    ///
    /// # Errors
    /// Says what the content is instead.
    pub fn parse(content: &[u8]) -> Result<Self, GraphError> {
        if content.trim_ascii().is_empty() {
            return Err(GraphError::Empty);
        }
        let Value::Object(object) = parse_lenient(content)? else {
            return Err(GraphError::NotAGraph("the file does not hold a JSON object".into()));
        };
        if is_ui_format(&object) {
            return Ok(Self::Ui(Value::Object(object)));
        }
        Graph::from_document(object).map(Self::Graph)
    }

    /// As it is kept; [`parse`](Self::parse) reads it again.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Graph(graph) => graph.to_value(),
            Self::Ui(document) => document.clone(),
        }
    }

    /// The graph, where that is known.
    pub fn graph(&self) -> Option<&Graph> {
        match self {
            Self::Graph(graph) => Some(graph),
            Self::Ui(_) => None,
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
            (r#"{"last_node_id":1,"nodes":[{"id":1,"type":"A"}],"links":[],"version":0.4}"#, WorkflowFormat::Ui),
        ] {
            let source = Source::parse(text.as_bytes()).unwrap();
            assert_eq!((source.format(), source.to_value().to_string().as_str()), (format, text));
            assert_eq!(Source::parse(source.to_value().to_string().as_bytes()).unwrap(), source);
        }
        assert!(matches!(Source::parse(b" \n"), Err(GraphError::Empty)));
        assert!(matches!(Source::parse(b"[]"), Err(GraphError::NotAGraph(_))));
    }
}
