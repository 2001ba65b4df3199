//! Every use of a subgraph is an instance with values of its own: the tree of instances, and the values that are set from
//! outside. A value that is set further out wins.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    ConvertError, MAX_DEPTH, MAX_NODES,
    finding::{Code, Severity},
    loaded::{Graph, Kind, Node, Source},
    ui::Mode,
    widgets::Form,
};

/// One use of a graph; the root is the first.
#[derive(Debug, Default)]
pub(super) struct Instance {
    /// The place of its graph.
    pub(super) graph: usize,
    /// What stands before the ids of its nodes, such as `57:`.
    pub(super) path: String,
    /// The instance around it, and the place of the node there that it belongs to.
    pub(super) parent: Option<(usize, usize)>,
    /// The instances in it, by the place of their node.
    pub(super) children: HashMap<usize, usize>,
    /// What its node has set for inputs of the graph.
    pub(super) inputs: HashMap<usize, Value>,
    /// What those inputs of the graph have that its node has set nothing for.
    pub(super) defaults: HashMap<usize, Value>,
    /// The widgets of its nodes that the instance's node shows, by place and name, with what is set there.
    pub(super) widgets: HashMap<(usize, String), Option<Value>>,
}

/// What a value of a subgraph's node is for.
enum Promoted {
    Input(usize),
    Widget(usize, String),
    Nothing,
}

/// Makes all instances.
///
/// # Errors
/// When a subgraph holds itself, or there are more levels or nodes than anybody draws.
pub(super) fn expand(graphs: &[Graph]) -> Result<Vec<Instance>, ConvertError> {
    let fed = inputs_with_widgets(graphs);
    let mut instances = vec![Instance::default()];
    let (mut at, mut nodes) = (0, 0);
    while at < instances.len() {
        let graph = &graphs[instances[at].graph];
        nodes += graph.nodes.len();
        if nodes > MAX_NODES {
            return Err(ConvertError::TooManyNodes);
        }
        for (place, node) in graph.nodes.iter().enumerate() {
            let Kind::Subgraph(inner) = node.kind else { continue };
            // In the root it disappears with all that it holds; deeper only links go around it.
            if at == 0 && node.mode != Mode::Active {
                continue;
            }
            refuse_circles(&instances, at, node, inner)?;
            let child = instance(graphs, &fed, &instances[at], (at, place), inner);
            let number = instances.len();
            instances[at].children.insert(place, number);
            instances.push(child);
        }
        at += 1;
    }
    Ok(instances)
}

fn instance(
    graphs: &[Graph],
    fed: &[Vec<bool>],
    outer: &Instance,
    (at, place): (usize, usize),
    inner: usize,
) -> Instance {
    let node = &graphs[outer.graph].nodes[place];
    let mut made = Instance {
        graph: inner,
        path: format!("{}{}:", outer.path, node.id),
        parent: Some((at, place)),
        ..Instance::default()
    };
    for (position, (name, promoted)) in promoted(node, &graphs[inner], &fed[inner]).into_iter().enumerate() {
        let set_outside = outer.widgets.get(&(place, name)).and_then(Option::as_ref);
        let value = set_outside.or_else(|| node.values.get(position)).cloned();
        match promoted {
            Promoted::Input(input) => {
                let Some((form, default)) = first_fed(graphs, fed, inner, input) else { continue };
                let values = if value.is_some() { &mut made.inputs } else { &mut made.defaults };
                values.extend(value.or(default).map(|value| (input, form.typed(value))));
            }
            Promoted::Widget(node, widget) => _ = made.widgets.insert((node, widget), value),
            Promoted::Nothing => {}
        }
    }
    made
}

/// The widget that an input of a graph is shown as: that to which it was linked first. Gives its form and its value.
fn first_fed(graphs: &[Graph], fed: &[Vec<bool>], mut graph: usize, mut input: usize) -> Option<(Form, Option<Value>)> {
    let mut set = None;
    for _ in 0..MAX_DEPTH {
        let slots =
            graphs[graph].nodes.iter().flat_map(|node| node.slots.iter().enumerate().map(move |slot| (node, slot)));
        let fed_by_input = slots.filter_map(|(node, (position, slot))| match &slot.source {
            Some(Source::Input { input: from, order }) if *from == input => Some((*order, node, position)),
            _ => None,
        });
        let is_fed = |node: &Node, position: usize| match node.kind {
            Kind::Subgraph(inner) => fed[inner].get(position) == Some(&true),
            _ => node.slots[position].widget.is_some(),
        };
        let first = fed_by_input.filter(|(_, node, at)| is_fed(node, *at)).min_by_key(|(order, ..)| *order);
        let (_, node, position) = first?;
        let Kind::Subgraph(inner) = node.kind else {
            let widget = node.widgets.get(node.slots[position].widget?)?;
            return Some((widget.form, set.or_else(|| widget.value.clone())));
        };
        let of_position = |promoted: &Promoted| matches!(promoted, Promoted::Input(input) if *input == position);
        let at = promoted(node, &graphs[inner], &fed[inner]).iter().position(|(_, promoted)| of_position(promoted));
        set = set.or_else(|| at.and_then(|at| node.values.get(at)).cloned());
        (graph, input) = (inner, position);
    }
    None
}

/// The widgets of a subgraph's node, in the order of its values: those that it lists, then the inputs of the graph that
/// feed a widget and are not among them.
fn promoted(node: &Node, graph: &Graph, fed: &[bool]) -> Vec<(String, Promoted)> {
    let mut inputs: Vec<usize> = (0..graph.inputs.len()).filter(|input| fed[*input]).collect();
    let mut promoted = Vec::new();
    for (id, widget) in &node.proxies {
        let place = graph.places.get(id).copied();
        let fed_by = |place: usize| graph.nodes[place].slots.iter().find(|slot| slot.name == *widget)?.source.as_ref();
        let input = match (id.as_str(), place.and_then(fed_by)) {
            ("-1", _) => inputs.iter().position(|input| graph.inputs[*input].name == *widget),
            (_, Some(Source::Input { input, .. })) => inputs.iter().position(|fed| fed == input),
            _ => None,
        };
        let target = match (input, place) {
            (Some(at), _) => Promoted::Input(inputs.remove(at)),
            (None, Some(place)) => Promoted::Widget(place, widget.clone()),
            (None, None) => Promoted::Nothing,
        };
        promoted.push((widget.clone(), target));
    }
    promoted.extend(inputs.into_iter().map(|input| (graph.inputs[input].name.clone(), Promoted::Input(input))));
    promoted
}

/// For each graph, which of its inputs feed a widget, be it over several levels.
fn inputs_with_widgets(graphs: &[Graph]) -> Vec<Vec<bool>> {
    let mut fed: Vec<Vec<bool>> = graphs.iter().map(|graph| vec![false; graph.inputs.len()]).collect();
    loop {
        let mut news = false;
        for (at, graph) in graphs.iter().enumerate() {
            for node in &graph.nodes {
                for (position, slot) in node.slots.iter().enumerate() {
                    let Some(Source::Input { input, .. }) = slot.source else { continue };
                    let inner = |graph: usize| fed[graph].get(position).copied().unwrap_or_default();
                    let feeds = slot.widget.is_some() || matches!(node.kind, Kind::Subgraph(graph) if inner(graph));
                    if feeds && fed[at].get(input) == Some(&false) {
                        fed[at][input] = true;
                        news = true;
                    }
                }
            }
        }
        if !news {
            return fed;
        }
    }
}

fn refuse_circles(instances: &[Instance], at: usize, node: &Node, inner: usize) -> Result<(), ConvertError> {
    let (mut around, mut depth) = (Some(at), 0);
    while let Some(instance) = around {
        depth += 1;
        let (message, hint) = if instances[instance].graph == inner {
            ("is a subgraph that holds itself", "remove the inner one in ComfyUI and save again")
        } else if depth > MAX_DEPTH {
            ("stands in too many subgraphs, one in the other", "unpack some of those around it in ComfyUI")
        } else {
            around = instances[instance].parent.map(|(parent, _)| parent);
            continue;
        };
        let found = node.finding(Severity::Error, Code::SubgraphCycle, &instances[at].path, message);
        return Err(ConvertError::Refused(vec![found.with_hint(hint)]));
    }
    Ok(())
}
