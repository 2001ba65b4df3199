//! Which nodes ComfyUI looks at: those that an output needs. And circles among them.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::Value;

use super::inputs::is_static;
use crate::workflow::{Graph, Node, NodeDefinitions, NodeId, definition::is_truthy};

/// How sure it is that ComfyUI looks at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Over inputs that every version looks at.
    Certainly,
    /// Over an input that is not in the definition, or grows: which of these are followed depends on version and node.
    Perhaps,
}

#[derive(Debug)]
pub(super) struct Reach {
    /// Outputs first, then what they need.
    pub(super) nodes: IndexMap<NodeId, Reached>,
    /// Each a list of nodes, of which every one needs the next and the last the first.
    pub(super) circles: Vec<Vec<NodeId>>,
}

impl Reach {
    pub(super) fn of(graph: &Graph, definitions: &NodeDefinitions) -> Self {
        let definition = |node: &Node| definitions.class(node.class_type());
        let outputs: Vec<&NodeId> = graph
            .nodes()
            .filter(|(_, node)| definition(node).is_some_and(|definition| definition.output_node))
            .map(|(id, _)| id)
            .collect();
        let followed = followed(graph, definitions);
        let certain = |node: &Node| {
            let followed = followed.get(node.class_type());
            let is_followed = |name: &str| followed.is_some_and(|followed| followed.contains(name));
            node.inputs().filter(|(name, _)| is_followed(name)).filter_map(source).collect()
        };
        let mut walk = Walk { graph, sources: certain, seen: HashMap::new(), circles: Vec::new() };
        let mut nodes: IndexMap<NodeId, Reached> = IndexMap::new();
        for output in &outputs {
            walk.from(output, |id| _ = nodes.insert(id.clone(), Reached::Certainly));
        }
        let mut circles = walk.circles;
        if graph.nodes().any(|(_, node)| rewrites(node)) {
            nodes.values_mut().for_each(|reached| *reached = Reached::Perhaps);
            circles.clear();
        }
        let all = |node: &Node| node.inputs().filter_map(source).collect();
        let mut walk = Walk { graph, sources: all, seen: HashMap::new(), circles: Vec::new() };
        for output in &outputs {
            walk.from(output, |id| _ = nodes.entry(id.clone()).or_insert(Reached::Perhaps));
        }
        Self { nodes, circles }
    }
}

/// Switches of the Impact pack cut links out of the prompt before ComfyUI looks at it (`onprompt_for_switch` in
/// `impact_server.py`; older versions without asking for `sel_mode`).
fn rewrites(node: &Node) -> bool {
    let by_mode = || node.inputs().any(|(name, value)| name == "sel_mode" && is_truthy(value));
    match node.class_type() {
        "ImpactInversedSwitch" => true,
        "ImpactSwitch" | "LatentSwitch" | "SEGSSwitch" | "ImpactMakeImageList" | "ImpactConditionalBranchSelMode" => {
            by_mode()
        }
        _ => false,
    }
}

/// The names of the inputs of each class over which ComfyUI certainly goes on.
fn followed<'a>(graph: &'a Graph, definitions: &'a NodeDefinitions) -> HashMap<&'a str, HashSet<&'a str>> {
    let mut followed = HashMap::new();
    for (_, node) in graph.nodes() {
        let inputs = definitions.class(node.class_type()).into_iter().flat_map(|definition| &definition.inputs);
        let names = || inputs.filter(|input| is_static(input)).map(|input| input.name.as_str()).collect();
        followed.entry(node.class_type()).or_insert_with(names);
    }
    followed
}

/// The node at the other end of a link.
fn source((_, value): (&String, &Value)) -> Option<NodeId> {
    match value.as_array()?.as_slice() {
        [Value::String(id), _] => Some(NodeId::from(id.as_str())),
        _ => None,
    }
}

/// Depth first, with a stack of its own: no graph is too deep.
struct Walk<'a, S> {
    graph: &'a Graph,
    sources: S,
    /// Whether all that a node needs has been seen.
    seen: HashMap<NodeId, bool>,
    circles: Vec<Vec<NodeId>>,
}

impl<S: Fn(&Node) -> Vec<NodeId>> Walk<'_, S> {
    fn from(&mut self, root: &NodeId, mut found: impl FnMut(&NodeId)) {
        let mut path: Vec<(NodeId, std::vec::IntoIter<NodeId>)> = Vec::new();
        let mut next = Some(root.clone());
        loop {
            if let Some(id) = next.take()
                && let Some(node) = self.graph.node(&id)
            {
                match self.seen.get(&id) {
                    Some(true) => {}
                    Some(false) => self.circle(&id, &path),
                    None => {
                        found(&id);
                        self.seen.insert(id.clone(), false);
                        path.push((id, distinct((self.sources)(node)).into_iter()));
                    }
                }
            }
            let Some((id, sources)) = path.last_mut() else { return };
            next = sources.next();
            if next.is_none() {
                self.seen.insert(id.clone(), true);
                path.pop();
            }
        }
    }

    /// A few are enough for anybody to see what is wrong.
    fn circle(&mut self, id: &NodeId, path: &[(NodeId, std::vec::IntoIter<NodeId>)]) {
        if self.circles.len() < 10 {
            let around = path.iter().map(|(id, _)| id).skip_while(|other| *other != id);
            self.circles.push(around.cloned().collect());
        }
    }
}

fn distinct(ids: Vec<NodeId>) -> Vec<NodeId> {
    let mut seen = HashSet::new();
    ids.into_iter().filter(|id| seen.insert(id.clone())).collect()
}
