//! The file as ComfyUI's "Save" writes it, in any of the forms that it has had: links as lists or as objects, ids as
//! numbers or as text, fields that are absent or null. What is of no use is skipped rather than refused.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::{Map, Value};

/// The id by which links inside a subgraph name its inputs.
const GRAPH_INPUTS: &str = "-10";
/// The id by which they name its outputs.
const GRAPH_OUTPUTS: &str = "-20";

/// Does not run, and nothing comes through.
const MUTED: i64 = 2;
/// Does not run; what comes in goes on.
const BYPASSED: i64 = 4;

/// A whole file.
#[derive(Debug, Clone)]
pub(super) struct Workflow {
    /// The graph that one sees first.
    pub(super) root: Graph,
    /// The definitions of subgraphs, by the id that their instances have for a type.
    pub(super) subgraphs: IndexMap<String, Graph>,
    /// The largest id that the editor says to have given.
    pub(super) last_node_id: i64,
    /// Group nodes of old, by name, as they stand in the file.
    pub(super) group_nodes: Map<String, Value>,
}

/// One graph: the root, or what a subgraph holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph {
    /// In file order, by id.
    pub(super) nodes: IndexMap<String, Node>,
    /// Where each input's link comes from, by target node and slot.
    pub(super) into_nodes: HashMap<(String, usize), Link>,
    /// Where what leaves a subgraph comes from, by output slot.
    pub(super) into_outputs: HashMap<usize, Link>,
    /// By the link's own id: target node and origin.
    by_id: HashMap<i64, (String, Link)>,
    /// A subgraph's inputs.
    pub(super) inputs: Vec<Port>,
    /// A subgraph's outputs.
    pub(super) outputs: Vec<Port>,
    /// The links that Use Everywhere has written down.
    pub(super) broadcasts: Option<Vec<Value>>,
    /// Ids that more than one node has.
    pub(super) doubled: Vec<String>,
}

/// A subgraph's input or output.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) link_type: String,
}

/// Where a link begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    pub(super) id: Option<i64>,
    /// Its place in the table of links.
    pub(super) order: usize,
    pub(super) from: Origin,
    pub(super) slot: usize,
}

/// What a link begins at.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Origin {
    /// A node of the same graph.
    Node(String),
    /// The surrounding subgraph's input.
    GraphInput,
}

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Active,
    Muted,
    Bypassed,
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) class: String,
    pub(super) title: Option<String>,
    pub(super) mode: Mode,
    pub(super) inputs: Vec<Slot>,
    /// The types of its outputs.
    pub(super) outputs: Vec<Port>,
    pub(super) values: Option<Value>,
    pub(super) properties: Map<String, Value>,
}

/// An input as the file lists it.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) link_type: String,
    pub(super) link: Option<i64>,
    /// Whether it belongs to a widget.
    pub(super) is_widget: bool,
}

impl Workflow {
    /// Reads a file. `None` when it has no list of nodes.
    pub(super) fn read(file: &Value) -> Option<Self> {
        file.get("nodes")?.as_array()?;
        let listed = file.get("definitions").and_then(|definitions| definitions.get("subgraphs"));
        let subgraphs =
            items(listed).filter_map(|raw| Some((text_or_number(raw.get("id")?)?, Graph::read(raw)))).collect();
        let group_nodes = file.get("extra").and_then(|extra| extra.get("groupNodes")).and_then(Value::as_object);
        let last = file.get("last_node_id").or_else(|| file.get("state").and_then(|state| state.get("lastNodeId")));
        Some(Self {
            root: Graph::read(file),
            subgraphs,
            last_node_id: last.and_then(whole).unwrap_or_default(),
            group_nodes: group_nodes.cloned().unwrap_or_default(),
        })
    }
}

impl Workflow {
    /// How many nodes stand in the file.
    pub(super) fn count_nodes(&self) -> usize {
        self.root.nodes.len() + self.subgraphs.values().map(|graph| graph.nodes.len()).sum::<usize>()
    }
}

impl Graph {
    fn read(raw: &Value) -> Self {
        let ports = |key| items(raw.get(key)).map(Port::read).collect();
        let broadcasts = raw.get("extra").and_then(|extra| extra.get("ue_links")).and_then(Value::as_array).cloned();
        let mut graph = Self { inputs: ports("inputs"), outputs: ports("outputs"), broadcasts, ..Self::default() };
        for node in items(raw.get("nodes")).filter_map(Node::read) {
            if let Some(before) = graph.nodes.insert(node.id.clone(), node) {
                graph.doubled.push(before.id);
            }
        }
        for (order, link) in items(raw.get("links")).enumerate() {
            graph.add_link(order, link);
        }
        graph
    }

    /// Takes a link in, as `[id, from, slot, to, slot, type]` or as an object.
    fn add_link(&mut self, order: usize, raw: &Value) {
        let field = |at: usize, name: &str| if raw.is_array() { raw.get(at) } else { raw.get(name) };
        let slot = |at, name| field(at, name).and_then(whole).and_then(|slot| usize::try_from(slot).ok());
        let node = |at, name| field(at, name).and_then(text_or_number);
        let Some(((from, from_slot), (to, to_slot))) =
            node(1, "origin_id").zip(slot(2, "origin_slot")).zip(node(3, "target_id").zip(slot(4, "target_slot")))
        else {
            return;
        };
        let from = if from == GRAPH_INPUTS { Origin::GraphInput } else { Origin::Node(from) };
        let id = field(0, "id").and_then(whole);
        let link = Link { id, order, from, slot: from_slot };
        if to == GRAPH_OUTPUTS {
            self.into_outputs.insert(to_slot, link);
            return;
        }
        if let Some(id) = id {
            self.by_id.insert(id, (to.clone(), link.clone()));
        }
        self.into_nodes.insert((to, to_slot), link);
    }

    /// What is linked to the input that the file lists at `slot`: the link that the input names, if the table has it for
    /// this node, though for a slot that it had before; else the link that the table has for this slot.
    pub(super) fn link_into(&self, node: &Node, slot: usize) -> Option<&Link> {
        let named = |id: &i64| self.by_id.get(id).filter(|(target, _)| *target == node.id).map(|(_, link)| link);
        node.inputs.get(slot)?.link.as_ref().and_then(named).or_else(|| {
            let listed = self.into_nodes.get(&(node.id.clone(), slot))?;
            let taken = listed.id.is_some() && node.inputs.iter().any(|input| input.link == listed.id);
            (!taken || node.inputs[slot].link == listed.id).then_some(listed)
        })
    }

    /// The largest id that is a number.
    pub(super) fn largest_id(&self) -> i64 {
        self.nodes.keys().filter_map(|id| id.parse().ok()).max().unwrap_or_default()
    }

    /// Gives nodes new ids; links follow.
    pub(super) fn rename(&mut self, new_ids: &HashMap<String, String>) {
        let renamed = |id: &String| new_ids.get(id).unwrap_or(id).clone();
        let follow = |link: &mut Link| {
            if let Origin::Node(id) = &mut link.from {
                *id = renamed(id);
            }
        };
        let nodes = std::mem::take(&mut self.nodes);
        self.nodes = nodes
            .into_iter()
            .map(|(id, mut node)| {
                node.id = renamed(&id);
                (node.id.clone(), node)
            })
            .collect();
        let into_nodes = std::mem::take(&mut self.into_nodes);
        self.into_nodes = into_nodes.into_iter().map(|((to, slot), link)| ((renamed(&to), slot), link)).collect();
        self.into_nodes.values_mut().chain(self.into_outputs.values_mut()).for_each(follow);
        for (to, link) in self.by_id.values_mut() {
            *to = renamed(to);
            follow(link);
        }
    }
}

impl Node {
    /// Reads a node; `None` without an id and a type.
    pub(super) fn read(raw: &Value) -> Option<Self> {
        let mode = match raw.get("mode").and_then(whole) {
            Some(MUTED) => Mode::Muted,
            Some(BYPASSED) => Mode::Bypassed,
            _ => Mode::Active,
        };
        Some(Self {
            id: text_or_number(raw.get("id")?)?,
            class: raw.get("type")?.as_str()?.to_owned(),
            title: raw.get("title").and_then(Value::as_str).filter(|title| !title.is_empty()).map(str::to_owned),
            mode,
            inputs: items(raw.get("inputs")).map(Slot::read).collect(),
            outputs: items(raw.get("outputs")).map(Port::read).collect(),
            values: raw.get("widgets_values").filter(|values| !values.is_null()).cloned(),
            properties: raw.get("properties").and_then(Value::as_object).cloned().unwrap_or_default(),
        })
    }

    /// The saved values in order; none where they are not a list.
    pub(super) fn listed_values(&self) -> &[Value] {
        self.values.as_ref().and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// A property that is text.
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name)?.as_str()
    }
}

impl Slot {
    pub(super) fn read(raw: &Value) -> Self {
        let Port { name, link_type } = Port::read(raw);
        let is_widget = raw.get("widget").is_some_and(Value::is_object);
        Self { name, link_type, link: raw.get("link").and_then(whole), is_widget }
    }
}

impl Port {
    fn read(raw: &Value) -> Self {
        let name = raw.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { name, link_type: link_type(raw.get("type")) }
    }
}

/// A link's type as text. Old files have lists of choices there, and numbers for "anything".
fn link_type(declared: Option<&Value>) -> String {
    match declared {
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(_)) => "COMBO".to_owned(),
        _ => "*".to_owned(),
    }
}

fn items(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}

/// A whole number, also one written with a fraction of zero or as text.
pub(super) fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let number = number.as_f64()?;
            #[expect(clippy::cast_possible_truncation, reason = "checked on the same line")]
            (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A node's id, which is a number in most files and text in others.
pub(super) fn text_or_number(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        _ => whole(value).map(|number| number.to_string()),
    }
}
