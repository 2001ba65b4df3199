//! Group nodes, which subgraphs have replaced: nodes of the type `workflow>name`, whose content stands once in the file.
//! Each becomes a subgraph of its own, as the front end makes of them on loading.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{
    ConvertError, MAX_NODES,
    definition::{InputKind, NodeDefinitions},
    finding::{Code, Finding, Severity},
    room::Room,
    ui::{Graph, Link, Node, Origin, Port, Slot, Workflow, whole},
    widgets::Layout,
};

/// What stands before the name of a group in the type of its nodes, today and before.
const PREFIXES: [&str; 2] = ["workflow>", "workflow/"];

/// Makes subgraphs of all group nodes in the root.
///
/// # Errors
/// When a group holds what can't be told apart from outside: other groups, primitives, or reroutes at its edge.
pub(super) fn into_subgraphs(
    workflow: &mut Workflow,
    definitions: &NodeDefinitions,
    room: &mut Room,
) -> Result<(), ConvertError> {
    let name = |class: &str| PREFIXES.iter().find_map(|prefix| class.strip_prefix(prefix)).map(str::to_owned);
    let groups: Vec<(String, String)> =
        workflow.root.nodes.values().filter_map(|node| Some((node.id.clone(), name(&node.class)?))).collect();
    let mut next = workflow.root.largest_id().max(workflow.last_node_id);
    let (mut new_ids, mut nodes) = (HashMap::new(), 0);
    for (id, name) in groups {
        let Some(raw) = workflow.group_nodes.get(&name) else { continue };
        let Some(node) = workflow.root.nodes.get_mut(&id) else { continue };
        room.take_copy(raw)?;
        let group = Group::read(raw);
        if let Some(class) = group.unsupported() {
            return Err(refusal(node, class));
        }
        nodes += group.nodes.len();
        if nodes > MAX_NODES {
            return Err(ConvertError::TooLarge);
        }
        let graph = group.graph_for(node, definitions, &mut next);
        next = next.saturating_add(1);
        node.class = format!("group node {id}");
        node.values = None;
        node.inputs.retain(|input| !input.is_widget || input.link.is_some());
        workflow.subgraphs.insert(node.class.clone(), graph);
        new_ids.insert(id, next.to_string());
    }
    workflow.root.rename(&new_ids);
    Ok(())
}

fn refusal(node: &Node, class: &str) -> ConvertError {
    let message = format!("is a group node with a {class} in it, which is not supported");
    let finding = Finding {
        node_id: node.id.clone(),
        node_type: node.class.clone(),
        title: node.title.clone().unwrap_or_else(|| node.class.clone()),
        ..Finding::of_all(Severity::Error, Code::UnsupportedNode, message)
    };
    ConvertError::Refused(vec![finding.with_hint("convert the group to a subgraph in ComfyUI and save again")])
}

/// What a file tells about a group.
struct Group<'a> {
    nodes: Vec<Node>,
    /// From node and output to node and input.
    links: Vec<[usize; 4]>,
    /// Outputs that are linked inside and can be seen outside nevertheless.
    external: HashSet<(usize, usize)>,
    /// What its author has hidden, by node.
    config: Option<&'a Value>,
}

impl<'a> Group<'a> {
    fn read(raw: &'a Value) -> Self {
        let list = |key: &str| raw.get(key).and_then(Value::as_array).into_iter().flatten();
        let number = |item: &Value, at: usize| usize::try_from(item.get(at).and_then(whole)?).ok();
        let link = |item: &Value| Some([number(item, 0)?, number(item, 1)?, number(item, 2)?, number(item, 3)?]);
        Self {
            nodes: list("nodes").filter_map(Node::read).collect(),
            links: list("links").filter_map(link).collect(),
            external: list("external").filter_map(|item| Some((number(item, 0)?, number(item, 1)?))).collect(),
            config: raw.get("config"),
        }
    }

    fn unsupported(&self) -> Option<&str> {
        let at_edge = |at: usize| {
            let linked = |end: usize| self.links.iter().any(|link| link[end] == at);
            !(linked(0) && linked(2)) || self.external.contains(&(at, 0))
        };
        let classes = self.nodes.iter().map(|node| node.class.as_str()).enumerate();
        let mut unsupported = classes.filter(|(at, class)| match *class {
            "PrimitiveNode" => true,
            "Reroute" => at_edge(*at),
            class => PREFIXES.iter().any(|prefix| class.starts_with(prefix)),
        });
        unsupported.next().map(|(_, class)| class)
    }

    /// Whether its author has hidden an input or an output.
    fn hidden(&self, node: usize, side: &str, name: &str) -> bool {
        let entry = self.config.and_then(|config| config.get(node.to_string())?.get(side)?.get(name)?.get("visible"));
        entry == Some(&Value::Bool(false))
    }

    /// The subgraph for one node of this group. Its nodes are numbered on from `next`.
    fn graph_for(mut self, node: &Node, definitions: &NodeDefinitions, next: &mut i64) -> Graph {
        self.take_values(node, definitions);
        let mut graph = Graph::default();
        self.add_inner_links(&mut graph, *next);
        let mut inputs = Vec::new();
        for at in 0..self.nodes.len() {
            for (name, link_type) in self.open_inputs(at, definitions) {
                let inner = &mut self.nodes[at];
                let slot = inner.inputs.iter().position(|input| input.name == name).unwrap_or_else(|| {
                    let slot = Slot { name: name.clone(), link_type: link_type.clone(), link: None, is_widget: false };
                    inner.inputs.push(slot);
                    inner.inputs.len() - 1
                });
                let link = Link { id: None, order: usize::MAX, from: Origin::GraphInput, slot: inputs.len() };
                graph.into_nodes.insert((number(*next, at), slot), link);
                inputs.push((at, name, link_type));
            }
        }
        graph.inputs = self.named(inputs, node);
        self.add_outputs(&mut graph, *next, definitions);
        for (at, mut inner) in self.nodes.into_iter().enumerate() {
            inner.id = number(*next, at);
            inner.inputs.iter_mut().for_each(|input| input.link = None);
            graph.nodes.insert(inner.id.clone(), inner);
        }
        *next = next.saturating_add(i64::try_from(graph.nodes.len()).unwrap_or_default());
        graph
    }

    fn add_inner_links(&self, graph: &mut Graph, next: i64) {
        for (order, [from, slot, to, to_slot]) in self.links.iter().copied().enumerate() {
            if from < self.nodes.len() && to < self.nodes.len() {
                let link = Link { id: None, order, from: Origin::Node(number(next, from)), slot };
                graph.into_nodes.insert((number(next, to), to_slot), link);
            }
        }
    }

    /// The inputs of an inner node that can be linked from outside: sockets, then widgets that were made inputs.
    fn open_inputs(&self, at: usize, definitions: &NodeDefinitions) -> Vec<(String, String)> {
        let node = &self.nodes[at];
        let Some(definition) = definitions.class(&node.class) else { return Vec::new() };
        let listed = |name: &str| node.inputs.iter().position(|input| input.name == name);
        let linked =
            |name: &str| listed(name).is_some_and(|slot| self.links.iter().any(|link| link[2..] == [at, slot]));
        let is_socket = |kind: &InputKind| matches!(kind, InputKind::Socket | InputKind::Growing);
        let sockets = definition.inputs.iter().filter(|input| is_socket(&input.kind));
        let widgets = definition.inputs.iter().filter(|input| !is_socket(&input.kind) && listed(&input.name).is_some());
        sockets
            .chain(widgets)
            .filter(|input| !linked(&input.name) && !self.hidden(at, "input", &input.name))
            .map(|input| (input.name.clone(), input.link_type().to_owned()))
            .collect()
    }

    /// The names of the group's inputs: the first of a name keeps it, others have their node's title before it. What the
    /// file lists counts, if it is as many.
    fn named(&self, inputs: Vec<(usize, String, String)>, node: &Node) -> Vec<Port> {
        let listed: Vec<&Slot> = node.inputs.iter().filter(|input| !input.is_widget).collect();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let count = inputs.len();
        let mut ports = Vec::new();
        for (position, (at, name, link_type)) in inputs.into_iter().enumerate() {
            let inner = &self.nodes[at];
            let title = inner.title.as_ref().unwrap_or(&inner.class);
            let mut own = name.clone();
            if seen.contains_key(&name) {
                own = format!("{title} {name}");
            }
            let times = seen.entry(own.clone()).or_default();
            *times += 1;
            if *times > 1 {
                own = format!("{title} {times} {name}");
            }
            let name = if listed.len() == count { listed[position].name.clone() } else { own };
            ports.push(Port { name, link_type });
        }
        ports
    }

    fn add_outputs(&self, graph: &mut Graph, next: i64, definitions: &NodeDefinitions) {
        for (at, node) in self.nodes.iter().enumerate() {
            let definition = definitions.class(&node.class);
            let types: Vec<String> = match definition {
                Some(definition) => definition.outputs.clone(),
                None => node.outputs.iter().map(|port| port.link_type.clone()).collect(),
            };
            for (slot, link_type) in types.into_iter().enumerate() {
                let used = self.links.iter().any(|link| link[..2] == [at, slot]);
                let visible = !used || self.external.contains(&(at, slot));
                if visible && !self.hidden(at, "output", &slot.to_string()) {
                    let link = Link { id: None, order: 0, from: Origin::Node(number(next, at)), slot };
                    graph.into_outputs.insert(graph.outputs.len(), link);
                    graph.outputs.push(Port { name: String::new(), link_type });
                }
            }
        }
    }

    /// Gives the inner nodes the values that the group's node has: theirs one after the other, each with its control.
    fn take_values(&mut self, node: &Node, definitions: &NodeDefinitions) {
        let mut values = node.listed_values().iter();
        let lists: Vec<Vec<String>> = self
            .nodes
            .iter()
            .map(|inner| definitions.class(&inner.class).map(|definition| Layout::read(inner, definition).saved))
            .map(Option::unwrap_or_default)
            .collect();
        // Today every widget is listed among the inputs; before, only those that were made inputs, which have no value.
        let made_inputs = lists.iter().map(Vec::len).sum::<usize>() != values.len();
        for (at, names) in lists.iter().enumerate() {
            let hidden: Vec<bool> = names.iter().map(|name| self.hidden(at, "input", name)).collect();
            let inner = &mut self.nodes[at];
            let mut own = inner.listed_values().to_vec();
            for (position, name) in names.iter().enumerate() {
                let made_input = made_inputs && inner.inputs.iter().any(|input| input.is_widget && input.name == *name);
                if made_input || hidden[position] {
                    continue;
                }
                let Some(value) = values.next() else { break };
                if own.len() <= position {
                    own.resize(position + 1, Value::Null);
                }
                own[position].clone_from(value);
            }
            inner.values = Some(Value::Array(own));
        }
    }
}

/// The id of an inner node.
fn number(next: i64, at: usize) -> String {
    let offset = i64::try_from(at).unwrap_or_default().saturating_add(1);
    next.saturating_add(offset).to_string()
}
