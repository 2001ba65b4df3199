//! A graph in ComfyUI's API format: reading it, its links, and the order in which it will run.

use std::collections::{BTreeSet, HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{edits::Place, id::NodeId};
#[cfg(any(test, fuzzing))]
use crate::json::parse_lenient;

/// The rank of what feeds no output over one node or none.
const FAR: u8 = 3;

/// More nodes than this nobody draws; what is known of each is kept and shown.
const MAX_NODES: usize = 20_000;

/// Ids and class types are names.
const MAX_NAME_BYTES: usize = 1024;

/// Why a file is not a graph that `/prompt` could take. Each reads well after the file's name.
#[derive(Debug, Error)]
pub enum GraphError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Not JSON at all.
    #[error("is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// JSON, but of another kind.
    #[error("is not a workflow graph: {0}")]
    NotAGraph(String),
    /// More nodes than are taken.
    #[error("is too large: more than {MAX_NODES} nodes")]
    TooManyNodes,
    /// An id or a class type that is none.
    #[error("has a node whose id or class_type is longer than {MAX_NAME_BYTES} bytes")]
    LongName,
}

/// A non-empty graph whose every node has a class type and inputs, be it none. Nodes keep the author's order and every
/// field they came with.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: IndexMap<NodeId, Node>,
}

/// One node of a [`Graph`].
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    class_type: String,
    fields: Map<String, Value>,
}

impl Graph {
    /// Reads the text of a graph, or of a request envelope with the graph under `prompt`.
    ///
    /// # Errors
    /// Says what the text is instead.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn parse(content: &[u8]) -> Result<Self, GraphError> {
        match parse_lenient(content)? {
            Value::Object(object) => Self::from_document(object),
            _ => Err(GraphError::NotAGraph("the file does not hold a JSON object".into())),
        }
    }

    /// Takes a graph, or the graph under `prompt` of a request envelope.
    ///
    /// # Errors
    /// When it has no nodes, or something else among them.
    pub fn from_document(mut object: Map<String, Value>) -> Result<Self, GraphError> {
        if let Some(Value::Object(prompt)) = object.get("prompt")
            && !object.contains_key("class_type")
            && !prompt.contains_key("class_type")
        {
            object = prompt.clone();
        }
        Self::from_object(object)
    }

    fn from_object(object: Map<String, Value>) -> Result<Self, GraphError> {
        if object.is_empty() {
            return Err(GraphError::NotAGraph("it has no nodes".into()));
        }
        let nodes = object
            .into_iter()
            .map(|(id, node)| Ok((NodeId::from(id.as_str()), Node::from_value(&id, node)?)))
            .collect::<Result<_, GraphError>>()?;
        Ok(Self { nodes })
    }

    /// Whether what is kept of its nodes, beside the graph itself, stays within bounds.
    ///
    /// # Errors
    /// Says what there is too much of.
    pub fn check_bounds(&self) -> Result<(), GraphError> {
        let long = |text: &str| text.len() > MAX_NAME_BYTES;
        if self.nodes.len() > MAX_NODES {
            return Err(GraphError::TooManyNodes);
        }
        let has_long = self.nodes.iter().any(|(id, node)| long(id.as_str()) || long(&node.class_type));
        if has_long { Err(GraphError::LongName) } else { Ok(()) }
    }

    /// The graph as `/prompt` takes it.
    pub fn to_value(&self) -> Value {
        self.nodes.iter().map(|(id, node)| (id.to_string(), Value::Object(node.fields.clone()))).collect()
    }

    /// The node of that id.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// All nodes in the author's order.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    /// Sets an input of a node, if there is such a node.
    pub(super) fn set_input(&mut self, place: &Place, value: Value) {
        let Some(node) = self.nodes.get_mut(&place.node) else { return };
        if let Some(Value::Object(inputs)) = node.fields.get_mut("inputs") {
            inputs.insert(place.input.clone(), value);
        }
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut()
    }

    /// The class types that occur.
    pub fn classes(&self) -> BTreeSet<String> {
        self.nodes.values().map(|node| node.class_type.clone()).collect()
    }

    /// All nodes in the order in which they can be expected to run, while it is unknown which classes are outputs:
    /// whatever nobody links to is taken for one.
    pub fn order_of_all(&self) -> Vec<NodeId> {
        let linked: HashSet<&str> = self.nodes.values().flat_map(Node::links).collect();
        let mut order = self.order_from(|id, _| !linked.contains(id.as_str()));
        let seen: HashSet<&NodeId> = order.iter().collect();
        let rest: Vec<NodeId> = self.nodes.keys().filter(|id| !seen.contains(id)).cloned().collect();
        order.extend(rest);
        order
    }

    /// The nodes that will run, in the expected order: those that a node chosen by `is_output` needs.
    ///
    /// Follows ComfyUI's scheduler (`comfy_execution/graph.py`, v0.3.64): nodes are staged depth-first from the
    /// outputs, and of those ready to run, outputs go first, then what stands one or two steps before an output.
    /// A cycle, which ComfyUI refuses, is put at the end.
    pub fn order_from(&self, is_output: impl Fn(&NodeId, &Node) -> bool) -> Vec<NodeId> {
        let outputs: HashSet<usize> =
            self.nodes.iter().enumerate().filter(|(_, (id, node))| is_output(id, node)).map(|(at, _)| at).collect();
        let staged = self.staged(&outputs);
        let mut consumers: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut missing: HashMap<usize, usize> = HashMap::new();
        for &at in &staged {
            let sources: BTreeSet<usize> = self.sources(at).collect();
            missing.insert(at, sources.len());
            for source in sources {
                consumers.entry(source).or_default().push(at);
            }
        }
        let distances = self.distances(&outputs);
        let rank = |at: usize| distances.get(&at).copied().unwrap_or(FAR);
        let place: HashMap<usize, usize> = staged.iter().enumerate().map(|(place, &at)| (at, place)).collect();
        let key = |at: usize| (rank(at), place.get(&at).copied().unwrap_or(usize::MAX), at);
        let mut ready: BTreeSet<_> = staged.iter().copied().filter(|at| missing[at] == 0).map(key).collect();
        let mut order = Vec::with_capacity(staged.len());
        while let Some((_, _, at)) = ready.pop_first() {
            order.push(at);
            for &consumer in consumers.get(&at).into_iter().flatten() {
                if let Some(count) = missing.get_mut(&consumer) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(key(consumer));
                    }
                }
            }
        }
        let done: HashSet<usize> = order.iter().copied().collect();
        order.extend(staged.iter().copied().filter(|at| !done.contains(at)));
        order.into_iter().filter_map(|at| self.nodes.get_index(at)).map(|(id, _)| id.clone()).collect()
    }

    /// The nodes that a circle of links holds up, in the author's order; none of them can ever run.
    pub fn nodes_in_cycles(&self) -> Vec<NodeId> {
        let mut held_up: BTreeSet<usize> = (0..self.nodes.len()).collect();
        let mut consumers: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut missing = vec![0_usize; self.nodes.len()];
        for (at, missing) in missing.iter_mut().enumerate() {
            for source in self.sources(at) {
                *missing += 1;
                consumers.entry(source).or_default().push(at);
            }
        }
        let mut free: Vec<usize> = held_up.iter().copied().filter(|at| missing[*at] == 0).collect();
        while let Some(at) = free.pop() {
            held_up.remove(&at);
            for &consumer in consumers.get(&at).into_iter().flatten() {
                missing[consumer] -= 1;
                if missing[consumer] == 0 {
                    free.push(consumer);
                }
            }
        }
        held_up.into_iter().filter_map(|at| self.nodes.get_index(at)).map(|(id, _)| id.clone()).collect()
    }

    /// Everything that the outputs need, in the order in which ComfyUI stages it.
    fn staged(&self, outputs: &HashSet<usize>) -> Vec<usize> {
        let (mut staged, mut seen) = (Vec::new(), HashSet::new());
        for root in (0..self.nodes.len()).filter(|at| outputs.contains(at)) {
            let mut stack = vec![root];
            while let Some(at) = stack.pop() {
                if seen.insert(at) {
                    staged.push(at);
                    stack.extend(self.sources(at));
                }
            }
        }
        staged
    }

    /// 0 for an output, 1 and 2 for what feeds one directly or over one node; others are not in it. Goes along each link
    /// once, since files from strangers have as many as they like.
    fn distances(&self, outputs: &HashSet<usize>) -> HashMap<usize, u8> {
        let feeding = |these: &HashSet<usize>| these.iter().flat_map(|at| self.sources(*at)).collect::<HashSet<_>>();
        let direct = feeding(outputs);
        let over_one = feeding(&direct);
        let mut distances: HashMap<usize, u8> = over_one.into_iter().map(|at| (at, 2)).collect();
        distances.extend(direct.into_iter().map(|at| (at, 1)));
        distances.extend(outputs.iter().map(|at| (*at, 0)));
        distances
    }

    fn sources(&self, at: usize) -> impl Iterator<Item = usize> {
        let links = self.nodes.get_index(at).into_iter().flat_map(|(_, node)| node.links());
        links.filter_map(|id| self.nodes.get_index_of(&NodeId::from(id)))
    }
}

impl Node {
    fn from_value(id: &str, value: Value) -> Result<Self, GraphError> {
        let Value::Object(mut fields) = value else {
            return Err(GraphError::NotAGraph(format!("\"{}\" is not a node", brief(id))));
        };
        let class_type = match fields.get("class_type") {
            Some(Value::String(class)) => class.clone(),
            Some(_) => {
                return Err(GraphError::NotAGraph(format!("the class_type of node {} is not a text", brief(id))));
            }
            None => return Err(GraphError::NotAGraph(format!("node {} has no class_type", brief(id)))),
        };
        // PHP writes an empty list for an empty object. ComfyUI takes any of these, if only on a node that will not run, and
        // its worker ends when it meets it then (`get_ordered_ancestry_internal` in `comfy_execution/caching.py`, v0.3.75):
        // nothing runs on that box any more.
        let is_none = |inputs: &Value| inputs.is_null() || inputs.as_array().is_some_and(Vec::is_empty);
        if fields.get("inputs").is_none_or(is_none) {
            fields.insert("inputs".to_owned(), Value::Object(Map::new()));
        }
        if fields.get("inputs").is_some_and(Value::is_object) {
            Ok(Self { class_type, fields })
        } else {
            Err(GraphError::NotAGraph(format!("the inputs of node {} are not an object", brief(id))))
        }
    }

    /// The class, such as `KSampler`.
    pub fn class_type(&self) -> &str {
        &self.class_type
    }

    /// The title that its author gave it.
    pub fn title(&self) -> Option<&str> {
        self.fields.get("_meta")?.get("title")?.as_str()
    }

    /// Its inputs: literals, and links as `[node id, output index]`.
    pub fn inputs(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.fields.get("inputs").and_then(Value::as_object).into_iter().flatten()
    }

    /// The value or link of an input.
    pub fn input(&self, name: &str) -> Option<&Value> {
        self.fields.get("inputs")?.get(name)
    }

    pub(super) fn inputs_mut(&mut self) -> impl Iterator<Item = (&String, &mut Value)> {
        self.fields.get_mut("inputs").and_then(Value::as_object_mut).into_iter().flatten()
    }

    /// The ids of the nodes that its inputs link to; such a node may be missing.
    fn links(&self) -> impl Iterator<Item = &str> {
        self.inputs().filter_map(|(_, value)| match value.as_array()?.as_slice() {
            [Value::String(source), _] => Some(source.as_str()),
            _ => None,
        })
    }
}

/// A node id as a message may repeat it.
fn brief(id: &str) -> String {
    id.chars().take(80).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::workflow::Document;

    fn graph(text: &str) -> Graph {
        Graph::parse(text.as_bytes()).unwrap()
    }

    fn ids(order: &[NodeId]) -> Vec<&str> {
        order.iter().map(NodeId::as_str).collect()
    }

    fn refusal(text: &str) -> String {
        Document::parse(text.as_bytes()).unwrap_err().to_string()
    }

    /// Everybody's work grows with the links, not with the ways along them: a hub with thousands on either side has
    /// millions of those.
    #[test]
    fn a_hub_with_thousands_on_either_side_is_put_in_order() {
        let count = 4000;
        let mut text = String::from("{");
        let mut node =
            |id: String, inputs: String| text += &format!("\"{id}\":{{\"class_type\":\"A\",\"inputs\":{{{inputs}}}}},");
        let links = |prefix: &str| {
            let links: Vec<String> = (0..count).map(|at| format!("\"i{at}\":[\"{prefix}{at}\",0]")).collect();
            links.join(",")
        };
        for at in 0..count {
            node(format!("s{at}"), String::new());
            node(format!("m{at}"), "\"i\":[\"hub\",0]".into());
        }
        node("hub".into(), links("s"));
        node("end".into(), links("m"));
        let graph = graph(&(text.trim_end_matches(',').to_owned() + "}"));
        let order = graph.order_of_all();
        assert_eq!((order.len(), order.last().map(NodeId::as_str)), (2 * count + 2, Some("end")));
        assert!(graph.nodes_in_cycles().is_empty());
    }

    #[test]
    fn what_is_not_a_graph_is_told_apart() {
        assert_eq!(refusal("  \n"), "is empty");
        assert!(refusal("{\"1\": ").starts_with("is not JSON: "));
        assert_eq!(refusal("[]"), "is not a workflow graph: the file does not hold a JSON object");
        assert_eq!(refusal("{}"), "is not a workflow graph: it has no nodes");
        assert_eq!(refusal(r#"{"a": 1}"#), "is not a workflow graph: \"a\" is not a node");
        assert_eq!(refusal(r#"{"1": {"inputs": {}}}"#), "is not a workflow graph: node 1 has no class_type");
        let odd = refusal(r#"{"1": {"class_type": 5}}"#);
        assert_eq!(odd, "is not a workflow graph: the class_type of node 1 is not a text");
        assert_eq!(
            refusal(r#"{"1": {"class_type": "A", "inputs": [1]}}"#),
            "is not a workflow graph: the inputs of node 1 are not an object"
        );
    }

    #[test]
    fn what_would_be_kept_without_end_is_not_taken() {
        let of = |count: usize, id: &str| {
            let node = |n: usize| (format!("{id}{n}"), serde_json::json!({ "class_type": "A" }));
            Graph::from_object((0..count).map(node).collect())
                .unwrap()
                .check_bounds()
                .map_err(|error| error.to_string())
        };
        assert_eq!(of(MAX_NODES, ""), Ok(()));
        assert_eq!(of(MAX_NODES + 1, ""), Err("is too large: more than 20000 nodes".to_owned()));
        let long = Err("has a node whose id or class_type is longer than 1024 bytes".to_owned());
        assert_eq!(of(1, &"x".repeat(1024)), long);
        let class = graph(&format!(r#"{{"1": {{"class_type": "{}"}}}}"#, "x".repeat(1025)));
        assert_eq!(class.check_bounds().map_err(|error| error.to_string()), long);
    }

    #[test]
    fn an_envelope_is_unwrapped_and_a_graph_survives_the_round_trip() {
        let inner = r#"{"b":{"class_type":"A","inputs":{"seed":18446744073709551615,"cfg":7.10},"_meta":{"title":"T"}},"a":{"class_type":"B","inputs":{}}}"#;
        let graph = graph(&format!(r#"{{"prompt": {inner}, "client_id": "x"}}"#));
        assert_eq!(graph.to_value().to_string(), inner);
        assert_eq!(graph.node(&"b".into()).and_then(Node::title), Some("T"));
    }

    #[test]
    fn a_node_without_inputs_has_none() {
        for inputs in ["", r#","inputs":[]"#, r#","inputs":null"#, r#","inputs":{}"#] {
            let graph = graph(&format!(r#"{{"1":{{"class_type":"A"{inputs}}}}}"#));
            assert_eq!(graph.to_value().to_string(), r#"{"1":{"class_type":"A","inputs":{}}}"#);
        }
    }

    #[test]
    fn only_what_an_output_needs_is_planned_and_outputs_go_first() {
        let graph = graph(
            r#"{
              "1": {"class_type": "EmptyImage", "inputs": {}},
              "2": {"class_type": "Slow", "inputs": {"image": ["1", 0]}},
              "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
              "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
              "5": {"class_type": "Unused", "inputs": {"image": ["1", 0]}}
            }"#,
        );
        let is_output = |_: &NodeId, node: &Node| matches!(node.class_type(), "SaveImage" | "PreviewImage");
        assert_eq!(ids(&graph.order_from(is_output)), ["1", "4", "2", "3"]);
        assert_eq!(ids(&graph.order_of_all()), ["1", "4", "5", "2", "3"]);
    }

    #[test]
    fn cycles_dangling_links_and_long_chains_end() {
        let cyclic = graph(
            r#"{"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}, "2": {"class_type": "B", "inputs": {"x": ["1", 0]}},
                "3": {"class_type": "C", "inputs": {"x": ["99", 0], "y": ["3", 0]}}}"#,
        );
        assert_eq!(cyclic.order_of_all().len(), 3);
        assert_eq!(ids(&cyclic.nodes_in_cycles()), ["1", "2", "3"]);
        let chain: Map<String, Value> = (0..20_000)
            .map(|n| {
                let inputs = serde_json::json!({ "x": [(n + 1).to_string(), 0] });
                (n.to_string(), serde_json::json!({ "class_type": "A", "inputs": inputs }))
            })
            .collect();
        let chain = Graph::parse(Value::Object(chain).to_string().as_bytes()).unwrap();
        assert_eq!(ids(&chain.order_of_all())[0], "19999");
    }
}
