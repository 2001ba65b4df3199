//! Every use of a subgraph is an instance with values of its own: the tree of instances, and the values that are set from
//! outside. A value that is set further out wins.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    ConvertError, MAX_DEPTH, MAX_NODES,
    finding::{Code, Severity},
    loaded::{Graph, Kind, Node},
    promoted::{Promoted, Shown},
    room::Room,
    ui::Mode,
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

/// Makes all instances.
///
/// # Errors
/// When a subgraph holds itself, or there are more levels, nodes or values than anybody draws.
pub(super) fn expand(graphs: &[Graph], room: &mut Room) -> Result<Vec<Instance>, ConvertError> {
    let shown = Shown::of(graphs, room)?;
    let weights: Vec<usize> = graphs.iter().map(weight).collect();
    let mut instances = vec![Instance::default()];
    let (mut at, mut nodes) = (0, 0);
    while at < instances.len() {
        let graph = &graphs[instances[at].graph];
        nodes += graph.nodes.len();
        if nodes > MAX_NODES {
            return Err(ConvertError::TooLarge);
        }
        room.take_values(weights[instances[at].graph])?;
        for (place, node) in graph.nodes.iter().enumerate() {
            let Kind::Subgraph(inner) = node.kind else { continue };
            // In the root it disappears with all that it holds; deeper only links go around it.
            if at == 0 && node.mode != Mode::Active {
                continue;
            }
            refuse_circles(&instances, at, node, inner)?;
            let child = instance(&shown, node, &instances[at], (at, place), inner, room)?;
            let number = instances.len();
            instances[at].children.insert(place, number);
            instances.push(child);
        }
        at += 1;
    }
    Ok(instances)
}

/// How many things there are to look at in a graph.
fn weight(graph: &Graph) -> usize {
    graph.nodes.iter().map(|node| 1 + node.slots.len() + node.widgets.len()).sum()
}

fn instance(
    shown: &Shown<'_>,
    node: &Node,
    outer: &Instance,
    (at, place): (usize, usize),
    inner: usize,
    room: &mut Room,
) -> Result<Instance, ConvertError> {
    let mut made = Instance {
        graph: inner,
        path: format!("{}{}:", outer.path, node.id),
        parent: Some((at, place)),
        ..Instance::default()
    };
    for (position, (name, promoted)) in shown.list(outer.graph, place).iter().enumerate() {
        let set_outside = outer.widgets.get(&(place, name.clone())).and_then(Option::as_ref);
        let value = set_outside.or_else(|| node.values.get(position));
        room.take_copy(value.unwrap_or(&Value::Null))?;
        match promoted {
            Promoted::Input(input) => {
                let Some((form, default)) = shown.widget(inner, *input) else { continue };
                room.take_copy(default.unwrap_or(&Value::Null))?;
                let values = if value.is_some() { &mut made.inputs } else { &mut made.defaults };
                values.extend(value.or(default).map(|value| (*input, form.typed(value.clone()))));
            }
            Promoted::Widget(node, widget) => _ = made.widgets.insert((*node, widget.clone()), value.cloned()),
            Promoted::Nothing => {}
        }
    }
    Ok(made)
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
