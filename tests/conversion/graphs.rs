//! Small graphs, put together by a test.

use comfy_remote::convert::{Conversion, ConvertError, Finding, NodeDefinitions, Options, convert};
use serde_json::{Value, json};

/// A graph under construction: nodes, and links between them.
#[derive(Default)]
pub(crate) struct Drawing {
    nodes: Vec<Value>,
    links: Vec<Value>,
    /// Fields of the file besides.
    pub(crate) file: serde_json::Map<String, Value>,
}

impl Drawing {
    /// Adds a node: its id, its class, the names and types of its inputs, the types of its outputs, its values.
    pub(crate) fn node(
        mut self,
        id: u64,
        class: &str,
        inputs: &[(&str, &str)],
        outputs: &[&str],
        values: Value,
    ) -> Self {
        let inputs: Vec<Value> =
            inputs.iter().map(|(name, kind)| json!({"name": name, "type": kind, "link": null})).collect();
        let outputs: Vec<Value> = outputs.iter().map(|kind| json!({"name": kind, "type": kind, "links": []})).collect();
        self.nodes.push(json!({
            "id": id, "type": class, "mode": 0, "inputs": inputs, "outputs": outputs, "properties": {}, "widgets_values": values,
        }));
        self
    }

    /// Sets fields of the node that was added last.
    pub(crate) fn with(mut self, fields: Value) -> Self {
        let node = self.nodes.last_mut().unwrap().as_object_mut().unwrap();
        node.extend(fields.as_object().unwrap().clone());
        self
    }

    /// Links an output to an input, each by node and place.
    pub(crate) fn link(mut self, from: (u64, usize), to: (u64, usize)) -> Self {
        let id = self.links.len() + 1;
        self.links.push(json!([id, from.0, from.1, to.0, to.1, "*"]));
        let target = self.nodes.iter_mut().find(|node| node["id"] == to.0).unwrap();
        target["inputs"][to.1]["link"] = json!(id);
        self
    }

    pub(crate) fn file(mut self, fields: Value) -> Self {
        self.file.extend(fields.as_object().unwrap().clone());
        self
    }

    pub(crate) fn value(&self) -> Value {
        let mut file = self.file.clone();
        file.insert("nodes".to_owned(), json!(self.nodes));
        file.insert("links".to_owned(), json!(self.links));
        Value::Object(file)
    }

    pub(crate) fn convert(&self) -> Result<Conversion, ConvertError> {
        convert(&self.value(), &few(), &Options::default())
    }

    /// The inputs of a node in the prompt.
    pub(crate) fn inputs(&self, id: &str) -> Value {
        let conversion = self.convert().unwrap();
        let node =
            conversion.prompt.get(id).unwrap_or_else(|| panic!("no node {id} in {:?}", conversion.prompt.keys()));
        node["inputs"].clone()
    }

    /// What it is refused for.
    pub(crate) fn refusals(&self) -> Vec<Finding> {
        match self.convert() {
            Err(ConvertError::Refused(findings)) => findings,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// A loader, a sampler, a sink, and some classes of packs.
pub(crate) fn few() -> NodeDefinitions {
    NodeDefinitions::read(&json!({
        "Loader": {
            "input": {"required": {"name": [["a", "b"]]}}, "output": ["MODEL", "CLIP", "VAE"],
            "python_module": "nodes", "display_name": "Load"
        },
        "Text": {
            "input": {"required": {"text": ["STRING", {"multiline": true, "dynamicPrompts": true}], "clip": ["CLIP"]}},
            "output": ["CONDITIONING"], "python_module": "nodes"
        },
        "Sampler": {
            "input": {"required": {
                "model": ["MODEL"], "seed": ["INT", {"default": 0, "max": 18_446_744_073_709_551_615_u64}],
                "steps": ["INT", {"default": 20}], "positive": ["CONDITIONING"], "negative": ["CONDITIONING"]
            }},
            "output": ["LATENT"], "python_module": "nodes"
        },
        "Save": {
            "input": {"required": {"images": ["LATENT"], "filename_prefix": ["STRING", {"default": "x"}]}},
            "output": [], "output_node": true, "python_module": "nodes"
        },
        "Anything Everywhere": {
            "input": {"optional": {"anything": ["*"]}}, "output": [], "python_module": "custom_nodes.cg-use-everywhere"
        },
        "Power Lora Loader (rgthree)": {
            "input": {"optional": {"model": ["MODEL"], "clip": ["CLIP"]}}, "output": ["MODEL", "CLIP"],
            "python_module": "custom_nodes.rgthree-comfy"
        },
        "Named": {
            "input": {"required": {"fps": ["FLOAT", {"default": 8}], "name": ["STRING", {}]}}, "output": [],
            "output_node": true, "python_module": "custom_nodes.VideoHelperSuite"
        }
    }))
}
