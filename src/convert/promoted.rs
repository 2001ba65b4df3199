//! The widgets that a subgraph's node shows: those of its inputs that feed a widget inside, and those that it lists.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{
    ConvertError, MAX_DEPTH,
    loaded::{Graph, Kind, Node, Source},
    room::Room,
    widgets::Form,
};

/// What a value of a subgraph's node is for.
#[derive(Debug, Clone)]
pub(super) enum Promoted {
    /// An input of the subgraph.
    Input(usize),
    /// A widget of the inner node at that place.
    Widget(usize, String),
    /// Nothing that is there; it has a place among the values all the same.
    Nothing,
}

/// What is known about all subgraphs of a file.
pub(super) struct Shown<'a> {
    graphs: &'a [Graph],
    /// By graph: what each input feeds first, of the things that make it a widget.
    first: Vec<HashMap<usize, Fed>>,
    /// By graph and place: the widgets of a subgraph's node in the order of its values, each with its name.
    lists: Vec<HashMap<usize, Vec<(String, Promoted)>>>,
}

/// An inner input, by its node's place and its own.
#[derive(Debug, Clone, Copy)]
struct Fed {
    node: usize,
    slot: usize,
}

impl<'a> Shown<'a> {
    /// Looks through all graphs.
    ///
    /// # Errors
    /// When there are too many widgets.
    pub(super) fn of(graphs: &'a [Graph], room: &mut Room) -> Result<Self, ConvertError> {
        let inner_inputs: Vec<Vec<(usize, Fed)>> = graphs.iter().map(linked_to_inputs).collect();
        let mut shown = Self { graphs, first: first_fed(graphs, &inner_inputs), lists: Vec::new() };
        let by_name: Vec<HashMap<(usize, &str), usize>> =
            graphs.iter().zip(&inner_inputs).map(|(graph, linked)| by_name(graph, linked)).collect();
        for graph in graphs {
            let mut lists = HashMap::new();
            for (place, node) in graph.nodes.iter().enumerate() {
                let Kind::Subgraph(inner) = node.kind else { continue };
                room.take_values(node.proxies.len() + shown.first[inner].len())?;
                lists.insert(place, shown.list_for(node, inner, &by_name[inner]));
            }
            shown.lists.push(lists);
        }
        Ok(shown)
    }

    /// The widgets of a subgraph's node, in the order of its values.
    pub(super) fn list(&self, graph: usize, place: usize) -> &[(String, Promoted)] {
        self.lists[graph].get(&place).map_or(&[], Vec::as_slice)
    }

    /// The widget that an input of a graph is shown as: its form, and the value that it has when none is set outside.
    pub(super) fn widget(&self, mut graph: usize, mut input: usize) -> Option<(Form, Option<&'a Value>)> {
        let mut set = None;
        for _ in 0..MAX_DEPTH {
            let fed = self.first[graph].get(&input)?;
            let node = &self.graphs[graph].nodes[fed.node];
            let Kind::Subgraph(inner) = node.kind else {
                let widget = node.widgets.get(node.slots[fed.slot].widget?)?;
                return Some((widget.form, set.or(widget.value.as_ref())));
            };
            let of_slot =
                |(_, promoted): &(String, Promoted)| matches!(promoted, Promoted::Input(at) if *at == fed.slot);
            let at = self.list(graph, fed.node).iter().position(of_slot);
            set = set.or_else(|| node.values.get(at?));
            (graph, input) = (inner, fed.slot);
        }
        None
    }

    /// Those that the node lists, then the inputs of the subgraph that are widgets and not among them.
    fn list_for(&self, node: &Node, inner: usize, by_name: &HashMap<(usize, &str), usize>) -> Vec<(String, Promoted)> {
        let graph = &self.graphs[inner];
        let mut left: HashSet<usize> = self.first[inner].keys().copied().collect();
        let inputs: HashMap<&str, usize> =
            graph.inputs.iter().enumerate().rev().map(|(at, port)| (port.name.as_str(), at)).collect();
        let mut list = Vec::new();
        for (id, widget) in &node.proxies {
            let place = graph.places.get(id).copied();
            let input = match (id.as_str(), place) {
                ("-1", _) => inputs.get(widget.as_str()),
                (_, Some(place)) => by_name.get(&(place, widget.as_str())),
                (_, None) => None,
            };
            let target = match (input, place) {
                (Some(input), _) if left.remove(input) => Promoted::Input(*input),
                (None, Some(place)) => Promoted::Widget(place, widget.clone()),
                _ => Promoted::Nothing,
            };
            list.push((widget.clone(), target));
        }
        let rest = (0..graph.inputs.len()).filter(|input| left.contains(input));
        list.extend(rest.map(|input| (graph.inputs[input].name.clone(), Promoted::Input(input))));
        list
    }
}

/// What the inputs of a graph are linked to, in the order of the links.
fn linked_to_inputs(graph: &Graph) -> Vec<(usize, Fed)> {
    let mut linked = Vec::new();
    for (node, slots) in graph.nodes.iter().map(|node| &node.slots).enumerate() {
        for (slot, source) in slots.iter().map(|slot| &slot.source).enumerate() {
            if let Some(Source::Input { input, order }) = source {
                linked.push((*order, (*input, Fed { node, slot })));
            }
        }
    }
    linked.sort_by_key(|(order, _)| *order);
    linked.into_iter().map(|(_, linked)| linked).collect()
}

/// The input that feeds a widget, by the place of its node and its name.
fn by_name<'a>(graph: &'a Graph, linked: &[(usize, Fed)]) -> HashMap<(usize, &'a str), usize> {
    let name = |fed: &Fed| graph.nodes[fed.node].slots[fed.slot].name.as_str();
    linked.iter().map(|(input, fed)| ((fed.node, name(fed)), *input)).collect()
}

/// For each graph, what its inputs feed first that is a widget, be it one of a subgraph inside.
fn first_fed(graphs: &[Graph], linked: &[Vec<(usize, Fed)>]) -> Vec<HashMap<usize, Fed>> {
    let mut first: Vec<HashMap<usize, Fed>> = vec![HashMap::new(); graphs.len()];
    // Each round reaches one level further out; more levels are refused.
    for _ in 0..=MAX_DEPTH {
        let before = first.clone();
        for (at, graph) in graphs.iter().enumerate() {
            for (input, fed) in linked[at].iter().filter(|(input, _)| *input < graph.inputs.len()) {
                let node = &graph.nodes[fed.node];
                let is_widget = match node.kind {
                    Kind::Subgraph(inner) => before[inner].contains_key(&fed.slot),
                    _ => node.slots[fed.slot].widget.is_some(),
                };
                if is_widget && !before[at].contains_key(input) {
                    first[at].entry(*input).or_insert(*fed);
                }
            }
        }
        if first.iter().map(HashMap::len).eq(before.iter().map(HashMap::len)) {
            break;
        }
    }
    first
}
