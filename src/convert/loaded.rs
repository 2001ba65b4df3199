//! The workflow as the front end has it in memory once the file is open: every node with all inputs that its definition
//! gives it, in their order there, and every input with what is linked to it. Later steps need no look into the file.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{
    ConvertError, MAX_FINDINGS, added,
    definition::{InputDefinition, InputKind, NodeDefinition, NodeDefinitions},
    finding::{Code, Finding, Severity},
    room::Room,
    ui::{self, Link, Mode, Origin, Port, Workflow},
    virtual_nodes::{Virtual, use_everywhere},
    widgets::{Layout, Widget},
};

/// What an input takes, in values.
const SLOT_VALUES: usize = 2;

/// One graph with its nodes loaded. The root is the first of all.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// The place of each node in `nodes`.
    pub(super) places: HashMap<String, usize>,
    pub(super) inputs: Vec<Port>,
    /// What leaves a subgraph, by output.
    pub(super) outputs: HashMap<usize, Source>,
    /// What there is to say about its nodes, for every use of the graph; the ids around them are not known here.
    pub(super) findings: Vec<Finding>,
}

/// One node, loaded.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) class: String,
    /// What people see above it.
    pub(super) title: String,
    pub(super) mode: Mode,
    pub(super) kind: Kind,
    pub(super) slots: Vec<Slot>,
    pub(super) widgets: Vec<Widget>,
    pub(super) outputs: Vec<String>,
    /// The saved values in order, for nodes that no definition describes.
    pub(super) values: Vec<Value>,
    /// The name by which texts of other nodes refer to it.
    pub(super) reference_name: String,
    /// A subgraph's widgets that were brought out one by one: inner node and widget.
    pub(super) proxies: Vec<(String, String)>,
    pub(super) properties: Map<String, Value>,
    pub(super) unknown_choice: Option<(String, Value)>,
    pub(super) missing_values: usize,
    /// How many saved values that say something are left over, on nodes of packs.
    pub(super) extra_values: usize,
}

impl Node {
    /// Something about this node, whose surrounding subgraphs have the ids in `path`.
    pub(super) fn finding(&self, severity: Severity, code: Code, path: &str, message: impl Into<String>) -> Finding {
        Finding {
            node_id: format!("{path}{}", self.id),
            node_type: self.class.clone(),
            title: self.title.clone(),
            ..Finding::of_all(severity, code, message)
        }
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// It is in the prompt.
    Class,
    /// What the graph at this place holds is in the prompt.
    Subgraph(usize),
    /// It lives in the browser only.
    Virtual(Virtual),
    /// Nobody knows the class.
    Unknown,
}

/// An input of a loaded node.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) link_type: String,
    pub(super) source: Option<Source>,
    /// The place of its widget.
    pub(super) widget: Option<usize>,
}

/// Where a link comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// Another node of the same graph, by its place.
    Node {
        /// Its place.
        node: usize,
        /// The output.
        slot: usize,
    },
    /// An input of the surrounding subgraph.
    Input {
        /// Which one.
        input: usize,
        /// The link's place among all links of the graph.
        order: usize,
    },
    /// A node that is not in the file.
    Missing(String),
}

/// Loads the root and all subgraphs, each with what is wrong with it.
///
/// # Errors
/// When the nodes have more inputs than anybody draws.
pub(super) fn load(
    workflow: &Workflow,
    definitions: &NodeDefinitions,
    room: &mut Room,
) -> Result<Vec<Graph>, ConvertError> {
    let subgraphs: HashMap<&str, usize> =
        workflow.subgraphs.keys().enumerate().map(|(at, id)| (id.as_str(), at + 1)).collect();
    let graphs = std::iter::once(&workflow.root).chain(workflow.subgraphs.values());
    graphs
        .map(|graph| {
            let loader = Loader { workflow, graph, definitions, subgraphs: &subgraphs };
            let mut loaded = Graph {
                nodes: graph.nodes.values().map(|node| loader.node(node, room)).collect::<Result<_, _>>()?,
                places: graph.nodes.keys().enumerate().map(|(at, id)| (id.clone(), at)).collect(),
                inputs: graph.inputs.clone(),
                outputs: graph.into_outputs.iter().map(|(slot, link)| (*slot, loader.source(link))).collect(),
                findings: Vec::new(),
            };
            let doubled = graph.doubled.iter().filter_map(|id| loaded.nodes.get(*loaded.places.get(id)?));
            for node in doubled.take(MAX_FINDINGS) {
                let found =
                    node.finding(Severity::Error, Code::DoubledId, "", "has the id of another node in the file");
                loaded.findings.push(found.with_hint("open the workflow in ComfyUI and save it again"));
            }
            use_everywhere::link(&mut loaded, graph);
            Ok(loaded)
        })
        .collect()
}

struct Loader<'a> {
    workflow: &'a Workflow,
    graph: &'a ui::Graph,
    definitions: &'a NodeDefinitions,
    subgraphs: &'a HashMap<&'a str, usize>,
}

/// The inputs that the file lists for a node and that have not found their place yet, by name.
type Listed<'a> = IndexMap<&'a str, Slot>;

impl Loader<'_> {
    fn node(&self, node: &ui::Node, room: &mut Room) -> Result<Node, ConvertError> {
        let definition = self.definitions.class(&node.class);
        let kind = self.kind(node, definition);
        let display_name = definition.and_then(|definition| definition.display_name.clone());
        let mut loaded = Node {
            id: node.id.clone(),
            class: node.class.clone(),
            title: node.title.clone().or(display_name).unwrap_or_else(|| node.class.clone()),
            mode: node.mode,
            slots: Vec::new(),
            widgets: Vec::new(),
            outputs: node.outputs.iter().map(|port| port.link_type.clone()).collect(),
            values: node.listed_values().to_vec(),
            reference_name: node.property("Node name for S&R").unwrap_or(&node.class).to_owned(),
            proxies: proxies(node),
            properties: node.properties.clone(),
            unknown_choice: None,
            missing_values: 0,
            extra_values: 0,
            kind,
        };
        let mut listed = self.listed(node);
        match (&loaded.kind, definition) {
            (Kind::Class, Some(definition)) => class_slots(&mut loaded, node, definition, &mut listed),
            (Kind::Subgraph(at), _) => {
                if let Some((_, subgraph)) = self.workflow.subgraphs.get_index(at - 1) {
                    room.take_values(SLOT_VALUES * (subgraph.inputs.len() + subgraph.outputs.len()))?;
                    subgraph_slots(&mut loaded, subgraph, &mut listed);
                }
            }
            _ => loaded.slots.extend(listed.drain(..).map(|(_, slot)| slot)),
        }
        room.take_values(SLOT_VALUES * (loaded.slots.len() + loaded.widgets.len()))?;
        Ok(loaded)
    }

    fn kind(&self, node: &ui::Node, definition: Option<&NodeDefinition>) -> Kind {
        if let Some(at) = self.subgraphs.get(node.class.as_str()) {
            return Kind::Subgraph(*at);
        }
        match (definition, Virtual::of(node)) {
            (Some(_), _) => Kind::Class,
            (None, Some(kind)) => Kind::Virtual(kind),
            (None, None) => Kind::Unknown,
        }
    }

    /// What the file lists as inputs, by name; of several with one name, the last that is linked.
    fn listed<'n>(&self, node: &'n ui::Node) -> Listed<'n> {
        let mut listed = Listed::new();
        for (at, input) in node.inputs.iter().enumerate() {
            let source = self.graph.link_into(node, at).map(|link| self.source(link));
            let slot = Slot { name: input.name.clone(), link_type: input.link_type.clone(), source, widget: None };
            if slot.source.is_some() || !listed.contains_key(input.name.as_str()) {
                listed.insert(&input.name, slot);
            }
        }
        listed
    }

    fn source(&self, link: &Link) -> Source {
        match &link.from {
            Origin::GraphInput => Source::Input { input: link.slot, order: link.order },
            Origin::Node(id) => match self.graph.nodes.get_index_of(id) {
                Some(node) => Source::Node { node, slot: link.slot },
                None => Source::Missing(id.clone()),
            },
        }
    }
}

/// Sockets in the order of the definition, then widgets with what choices bring, then what only the file knows.
fn class_slots(loaded: &mut Node, node: &ui::Node, definition: &NodeDefinition, listed: &mut Listed<'_>) {
    let layout = Layout::read(node, definition);
    for (name, input) in &layout.sockets {
        place(loaded, listed, name, input, None);
    }
    for (name, input, widget) in &layout.behind {
        place(loaded, listed, name, input, *widget);
    }
    let gone = |name: &str| {
        let of_choice = |choice: &String| name.strip_prefix(choice.as_str()).is_some_and(|rest| rest.starts_with('.'));
        layout.choices.iter().any(of_choice)
    };
    listed.retain(|name, _| !gone(name));
    loaded.slots.extend(listed.drain(..).map(|(_, slot)| slot));
    loaded.widgets = layout.widgets;
    loaded.unknown_choice = layout.unknown_choice;
    loaded.missing_values = if node.values.is_some() { layout.missing_values } else { 0 };
    let left_over = node.listed_values().iter().skip(layout.saved.len());
    let says_something = |value: &&Value| !matches!(value, Value::Null) && value.as_str() != Some("");
    loaded.extra_values = if definition.is_core { 0 } else { left_over.filter(says_something).count() };
    for (at, output) in definition.outputs.iter().enumerate() {
        match loaded.outputs.get_mut(at) {
            // What it gives depends on what it gets; the file knows what that was.
            Some(saved) if output == "COMFY_MATCHTYPE_V3" => _ = saved,
            Some(saved) => saved.clone_from(output),
            None => loaded.outputs.push(if output == "COMFY_MATCHTYPE_V3" { "*".into() } else { output.clone() }),
        }
    }
    added::add(loaded, definition);
}

/// Puts the input that a definition names at the next place, with the link that the file has for that name.
fn place(loaded: &mut Node, listed: &mut Listed<'_>, name: &str, input: &InputDefinition, widget: Option<usize>) {
    if input.kind == InputKind::Growing {
        let below = format!("{name}.");
        let (grown, rest) =
            std::mem::take(listed).into_iter().partition::<Listed<'_>, _>(|(name, _)| name.starts_with(&below));
        loaded.slots.extend(grown.into_values());
        *listed = rest;
        return;
    }
    let found = listed.shift_remove(name);
    let link_type = match &found {
        Some(found) if input.type_name == "COMFY_MATCHTYPE_V3" => found.link_type.clone(),
        _ => input.link_type().to_owned(),
    };
    let source = found.and_then(|slot| slot.source);
    loaded.slots.push(Slot { name: name.to_owned(), link_type, source, widget });
}

/// The inputs and outputs of the definition, then what only the file knows.
fn subgraph_slots(loaded: &mut Node, subgraph: &ui::Graph, listed: &mut Listed<'_>) {
    for port in &subgraph.inputs {
        let source = listed.shift_remove(port.name.as_str()).and_then(|slot| slot.source);
        loaded.slots.push(Slot { name: port.name.clone(), link_type: port.link_type.clone(), source, widget: None });
    }
    loaded.slots.extend(listed.drain(..).map(|(_, slot)| slot));
    loaded.outputs = subgraph.outputs.iter().map(|port| port.link_type.clone()).collect();
}

fn proxies(node: &ui::Node) -> Vec<(String, String)> {
    let listed = node.properties.get("proxyWidgets").and_then(Value::as_array).into_iter().flatten();
    let pair = |pair: &Value| {
        let id = pair.get(0).and_then(ui::text_or_number).unwrap_or_default();
        (id, pair.get(1).and_then(Value::as_str).unwrap_or_default().to_owned())
    };
    listed.map(pair).collect()
}
