//! Following a link to the node that the server will see at its other end: out of and into subgraphs, around nodes that
//! are bypassed, through nodes that live in the browser only.

use std::cell::Cell;

use serde_json::Value;

use super::{
    expand::Instance,
    loaded::{Graph, Kind, Node, Source},
    ui::Mode,
    virtual_nodes::Virtual,
};

/// How many steps one link may lead over. Nobody draws as many; a circle has more.
const MAX_HOPS: usize = 10_000;

/// How many steps all links together may lead over.
const MAX_STEPS: usize = 20_000_000;

/// What is at the other end of a link.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// The output of a node in the prompt, by the node's instance and place.
    Output(usize, usize, usize),
    /// A value that a subgraph's node has for an input of the subgraph.
    Value(Value),
    /// The value that such an input has for itself, since its node has none: that of the first widget that it feeds.
    Default {
        /// That value.
        value: Value,
        /// Whether nothing but inputs of subgraphs was on the way. Then a widget keeps its own value.
        direct: bool,
    },
    /// Nothing: the input is as if it were not linked.
    Nothing,
}

/// Why a link can't be followed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Broken {
    /// It never ends.
    Circle,
    /// It starts at a node that is not in the file.
    Missing(String),
    /// It comes from a node that is reported for itself.
    Reported,
    /// It is taken up by a name that nobody gives.
    Name(String),
}

/// Where the search has come to.
enum At<'a> {
    /// The input of a node, and what the search is for if that is known already.
    Input(usize, usize, usize, Option<&'a str>),
    /// The output of a node, and what its consumer takes.
    Output(usize, usize, usize, &'a str),
}

/// All that is needed to follow links.
pub(super) struct Links<'a> {
    pub(super) graphs: &'a [Graph],
    pub(super) instances: &'a [Instance],
    steps: Cell<usize>,
}

impl<'a> Links<'a> {
    pub(super) fn new(graphs: &'a [Graph], instances: &'a [Instance]) -> Self {
        Self { graphs, instances, steps: Cell::new(0) }
    }

    /// A node by its instance and place.
    pub(super) fn node(&self, instance: usize, place: usize) -> &'a Node {
        &self.graphs[self.instances[instance].graph].nodes[place]
    }

    /// What is at the other end of what is linked to an input.
    ///
    /// # Errors
    /// When there is no end, or it can't be known.
    pub(super) fn resolve(&self, instance: usize, place: usize, slot: usize) -> Result<End, Broken> {
        let mut at = At::Input(instance, place, slot, None);
        let mut direct = true;
        for _ in 0..MAX_HOPS {
            self.steps.set(self.steps.get() + 1);
            if self.steps.get() > MAX_STEPS {
                break;
            }
            let next = match at {
                At::Input(instance, place, slot, wanted) => self.at_input(instance, place, slot, wanted),
                At::Output(instance, place, slot, wanted) => {
                    direct = false;
                    self.at_output(instance, place, slot, wanted)
                }
            };
            match next? {
                Step::To(next) => at = next,
                Step::Default(value) => return Ok(End::Default { value, direct }),
                Step::End(end) => return Ok(end),
            }
        }
        Err(Broken::Circle)
    }

    fn at_input(
        &self,
        instance: usize,
        place: usize,
        slot: usize,
        wanted: Option<&'a str>,
    ) -> Result<Step<'a>, Broken> {
        let Some(slot) = self.node(instance, place).slots.get(slot) else { return Ok(NOTHING) };
        match &slot.source {
            None => Ok(NOTHING),
            Some(Source::Missing(id)) => Err(Broken::Missing(id.clone())),
            Some(Source::Node { node, slot: output }) => {
                Ok(Step::To(At::Output(instance, *node, *output, wanted.unwrap_or(&slot.link_type))))
            }
            Some(Source::Input { input, .. }) => Ok(self.outside_subgraph(instance, *input, wanted)),
        }
    }

    /// Goes on at the input of a subgraph's node, or takes the value that it has for that input.
    fn outside_subgraph(&self, instance: usize, input: usize, wanted: Option<&'a str>) -> Step<'a> {
        let Some((outer, place)) = self.instances[instance].parent else { return NOTHING };
        let linked = self.node(outer, place).slots.get(input).is_some_and(|slot| slot.source.is_some());
        if linked {
            return Step::To(At::Input(outer, place, input, wanted));
        }
        let instance = &self.instances[instance];
        if let Some(value) = instance.inputs.get(&input) {
            return Step::End(End::Value(value.clone()));
        }
        instance.defaults.get(&input).cloned().map_or(NOTHING, Step::Default)
    }

    fn at_output(&self, instance: usize, place: usize, slot: usize, wanted: &'a str) -> Result<Step<'a>, Broken> {
        let node = self.node(instance, place);
        match (node.mode, &node.kind) {
            (Mode::Muted, _) => Ok(NOTHING),
            (Mode::Bypassed, _) => {
                self.steps.set(self.steps.get().saturating_add(node.slots.len()));
                let input = bypass(node, slot, wanted);
                Ok(input.map_or(NOTHING, |input| Step::To(At::Input(instance, place, input, Some(wanted)))))
            }
            (_, Kind::Class) => Ok(Step::End(End::Output(instance, place, slot))),
            (_, Kind::Subgraph(_)) => self.inside_subgraph(instance, place, slot, wanted),
            (_, Kind::Virtual(Virtual::Reroute | Virtual::Set(_))) => {
                Ok(Step::To(At::Input(instance, place, 0, Some(wanted))))
            }
            (_, Kind::Virtual(Virtual::Get(name))) => {
                let (instance, setter) = self.setter(instance, name).ok_or_else(|| Broken::Name(name.clone()))?;
                Ok(Step::To(At::Input(instance, setter, 0, Some(wanted))))
            }
            (_, Kind::Virtual(Virtual::Decoration | Virtual::Primitive)) => Ok(NOTHING),
            (_, Kind::Virtual(Virtual::Unsupported) | Kind::Unknown) => Err(Broken::Reported),
        }
    }

    /// The node that gives a link a name, in the same graph or one around it, whatever its mode.
    fn setter(&self, mut instance: usize, name: &str) -> Option<(usize, usize)> {
        loop {
            let nodes = &self.graphs[self.instances[instance].graph].nodes;
            self.steps.set(self.steps.get().saturating_add(nodes.len()));
            let gives = |node: &Node| matches!(&node.kind, Kind::Virtual(Virtual::Set(given)) if given == name);
            if let Some(place) = nodes.iter().position(gives) {
                return Some((instance, place));
            }
            (instance, _) = self.instances[instance].parent?;
        }
    }

    /// Goes on at what leaves the subgraph by that output.
    fn inside_subgraph(&self, instance: usize, place: usize, slot: usize, wanted: &'a str) -> Result<Step<'a>, Broken> {
        let Some(&inner) = self.instances[instance].children.get(&place) else { return Ok(NOTHING) };
        match self.graphs[self.instances[inner].graph].outputs.get(&slot) {
            None => Ok(NOTHING),
            Some(Source::Missing(id)) => Err(Broken::Missing(id.clone())),
            Some(Source::Input { input, .. }) => Ok(self.outside_subgraph(inner, *input, Some(wanted))),
            Some(Source::Node { node, slot, .. }) => Ok(Step::To(At::Output(inner, *node, *slot, wanted))),
        }
    }
}

/// One step of a search.
enum Step<'a> {
    To(At<'a>),
    Default(Value),
    End(End),
}

const NOTHING: Step<'static> = Step::End(End::Nothing);

/// The input that a bypassed node hands on at an output: the one at the same place if it fits, else the first of the
/// very type that is wanted, else the first that fits. By type alone, whether something is linked there or not.
fn bypass(node: &Node, output: usize, wanted: &str) -> Option<usize> {
    if is_any(wanted) {
        return Some(if output < node.slots.len() { output } else { 0 });
    }
    let given = node.outputs.get(output).map_or("*", String::as_str);
    let fits = |slot: usize| {
        let link_type = node.slots[slot].link_type.as_str();
        types_fit(link_type, given) && types_fit(link_type, wanted)
    };
    let mut all = 0..node.slots.len();
    if all.contains(&output) && fits(output) {
        return Some(output);
    }
    all.clone().find(|slot| node.slots[*slot].link_type == wanted).or_else(|| all.find(|slot| fits(*slot)))
}

/// Whether two types can be linked: equal, or one of them anything, or lists with a common member.
pub(super) fn types_fit(left: &str, right: &str) -> bool {
    if is_any(left) || is_any(right) || left.eq_ignore_ascii_case(right) {
        return true;
    }
    let member = |name: &str| right.split(',').any(|other| is_any(other) || other.eq_ignore_ascii_case(name));
    (left.contains(',') || right.contains(',')) && left.split(',').any(|name| is_any(name) || member(name))
}

fn is_any(link_type: &str) -> bool {
    matches!(link_type, "" | "*")
}
