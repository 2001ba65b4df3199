//! Changes to a graph that its user asks for with the run: values for some inputs, new seeds.

use indexmap::{IndexMap, map::Entry};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{definition::NodeDefinitions, graph::Graph, id::NodeId};
use crate::text::clip_to;

/// ComfyUI's front end draws seeds below this, so that JavaScript has all their digits.
const SEED_END: u64 = 1 << 50;

/// As many ids, titles or inputs are named in a message.
const NAMED: usize = 10;

/// Longest name in a message, in characters.
const SHOWN: usize = 80;

/// What is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Edits {
    /// Values by `<node id>.<input>` or `<node title>.<input>`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Whether seeds get new values, as by the front end's control.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub randomize_seeds: bool,
}

/// Where a parameter leads: a node, and the name of an input, which the node may not have yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The input.
    pub input: String,
}

/// Inputs that get the same new value.
pub type Seed = Vec<Place>;

/// Why a parameter leads nowhere. Each reads well after the parameter's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// Neither an id nor a title.
    #[error("names no node: {0}")]
    NoNode(String),
    /// A title that several nodes have.
    #[error("names several nodes, all called \"{title}\"; use one of their ids instead: {ids}")]
    Ambiguous {
        /// The title.
        title: String,
        /// Their ids.
        ids: String,
    },
    /// An input that another parameter sets to another value.
    #[error("sets input {} of node {}, which another parameter sets to another value", clip_to(&.0.input, SHOWN), clip_to(.0.node.as_str(), SHOWN))]
    Twice(Place),
}

impl Edits {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && !self.randomize_seeds
    }

    /// Where each parameter leads in a graph, in order.
    ///
    /// # Errors
    /// Those that lead nowhere, or where another one leads with another value, each with its name in front.
    pub fn places(&self, graph: &Graph) -> Result<Vec<(Place, &Value)>, String> {
        let (mut places, mut problems) = (IndexMap::new(), Vec::new());
        for (name, value) in &self.parameters {
            let problem = match find(name, graph) {
                Err(error) => error,
                Ok(place) => match places.entry(place) {
                    Entry::Occupied(taken) if *taken.get() != value => ParameterError::Twice(taken.key().clone()),
                    free => {
                        free.insert_entry(value);
                        continue;
                    }
                },
            };
            problems.push(format!("Parameter {} {problem}", clip_to(name, SHOWN)));
        }
        let more = problems.len().saturating_sub(NAMED);
        problems.truncate(NAMED);
        problems.extend((more > 0).then(|| format!("{more} more")));
        if problems.is_empty() { Ok(places.into_iter().collect()) } else { Err(problems.join("; ")) }
    }

    /// Makes the changes. `seeds` are the inputs that get new values where that is asked for, one for each list; a seed
    /// that is a parameter too keeps the parameter's. They lie within what `known` allows.
    ///
    /// # Errors
    /// As [`places`](Self::places); then the graph is as it was.
    pub fn apply(
        &self,
        graph: &mut Graph,
        seeds: &[Seed],
        known: &NodeDefinitions,
        mut random: impl FnMut() -> u64,
    ) -> Result<(), String> {
        let places: Vec<(Place, Value)> =
            self.places(graph)?.into_iter().map(|(place, value)| (place, literal(value))).collect();
        if self.randomize_seeds {
            for places in seeds {
                let (least, end) = range(places, graph, known);
                let seed = least + random() % (end - least);
                places.iter().for_each(|place| graph.set_input(place, json!(seed)));
            }
        }
        for (place, value) in places {
            graph.set_input(&place, value);
        }
        Ok(())
    }
}

/// From where to where a seed may go that all these inputs take; the end is not part of it.
fn range(places: &[Place], graph: &Graph, known: &NodeDefinitions) -> (u64, u64) {
    let bound = |place: &Place, key: &str| {
        let input = known.class(graph.node(&place.node)?.class_type())?.input(&place.input)?;
        let bound = input.option(key)?;
        bound.as_u64().or_else(|| whole(bound))
    };
    let least = places.iter().filter_map(|place| bound(place, "min")).max().unwrap_or(0).min(SEED_END - 1);
    let most = places.iter().filter_map(|place| bound(place, "max")).min().unwrap_or(u64::MAX);
    (least, most.saturating_add(1).clamp(least + 1, SEED_END))
}

/// Packs write bounds as real numbers, too.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it goes to the nearest that there is")]
fn whole(bound: &Value) -> Option<u64> {
    bound.as_f64().map(|bound| bound as u64)
}

/// A list would be taken for a link.
fn literal(value: &Value) -> Value {
    if value.is_array() { json!({"__value__": value}) } else { value.clone() }
}

/// The id counts first, then the longest title.
fn find(name: &str, graph: &Graph) -> Result<Place, ParameterError> {
    let input_after = |start: &str| name.strip_prefix(start)?.strip_prefix('.').filter(|input| !input.is_empty());
    let ids = graph.nodes().filter_map(|(id, _)| Some((id, input_after(id.as_str())?)));
    if let Some((node, input)) = ids.max_by_key(|(id, _)| id.as_str().len()) {
        return Ok(Place { node: node.clone(), input: input.to_owned() });
    }
    let titled = graph.nodes().filter_map(|(id, node)| {
        let title = node.title().unwrap_or(node.class_type());
        Some((title, id, input_after(title)?))
    });
    let titled: Vec<_> = titled.collect();
    let longest = titled.iter().map(|(title, ..)| title.len()).max().unwrap_or_default();
    let found: Vec<_> = titled.iter().filter(|(title, ..)| title.len() == longest).collect();
    match found.as_slice() {
        [] => Err(ParameterError::NoNode(what_there_is(graph))),
        [(_, node, input)] => Ok(Place { node: (*node).clone(), input: (*input).to_owned() }),
        [(title, ..), ..] => {
            let ids: Vec<&str> = found.iter().take(NAMED).map(|(_, id, _)| id.as_str()).collect();
            Err(ParameterError::Ambiguous { title: clip_to(title, SHOWN), ids: ids.join(", ") })
        }
    }
}

fn what_there_is(graph: &Graph) -> String {
    let title = |(id, node): (&NodeId, &super::graph::Node)| {
        format!("{} ({})", clip_to(id.as_str(), SHOWN), clip_to(node.title().unwrap_or(node.class_type()), SHOWN))
    };
    let shown: Vec<String> = graph.nodes().take(NAMED).map(title).collect();
    let more = graph.nodes().count() - shown.len();
    let and = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("write it as <node id>.<input> or <node title>.<input>; there are {}{and}", shown.join(", "))
}

impl Graph {
    /// The inputs called `seed` or `noise_seed` that hold a value: what stands for a control that says "randomize" in a
    /// graph, which knows no controls.
    pub fn seeds(&self) -> Vec<Seed> {
        let mut seeds = Vec::new();
        for (id, node) in self.nodes() {
            let own = node.inputs().filter(|(name, value)| {
                matches!(name.as_str(), "seed" | "noise_seed") && !value.is_array() && !value.is_object()
            });
            seeds.extend(own.map(|(name, _)| vec![Place { node: id.clone(), input: name.clone() }]));
        }
        seeds
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let graph = json!({
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}, "_meta": {"title": "Prompt"}},
            "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}, "_meta": {"title": "Prompt.negative"}},
            "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "model": ["4", 0]}},
            "57:3": {"class_type": "KSampler", "inputs": {"noise_seed": 2, "seed": ["9", 0]}, "_meta": {"title": "7"}},
            "8": {"class_type": "Save", "_meta": {"title": "Twin"}},
            "9": {"class_type": "Save", "_meta": {"title": "Twin"}},
        });
        Graph::parse(graph.to_string().as_bytes()).unwrap()
    }

    fn set(name: &str, value: Value) -> Result<Value, String> {
        let edits = Edits { parameters: Map::from_iter([(name.to_owned(), value)]), randomize_seeds: false };
        let mut graph = graph();
        edits.apply(&mut graph, &[], &NodeDefinitions::default(), || 0).map(|()| graph.to_value())
    }

    #[test]
    fn a_parameter_leads_to_an_id_first_and_then_to_the_longest_title() {
        for (name, path) in [
            ("6.text", "/6/inputs/text"),
            ("Prompt.text", "/6/inputs/text"),
            ("Prompt.negative.text", "/7/inputs/text"),
            ("57:3.noise_seed", "/57:3/inputs/noise_seed"),
            ("7.text", "/7/inputs/text"),
            ("KSampler.seed", "/3/inputs/seed"),
            ("6.new.one", "/6/inputs/new.one"),
            ("8.images", "/8/inputs/images"),
        ] {
            assert_eq!(set(name, json!("x")).unwrap().pointer(path), Some(&json!("x")), "{name}");
        }
        assert_eq!(set("3.model", json!([1, 2])).unwrap()["3"]["inputs"]["model"], json!({"__value__": [1, 2]}));
    }

    #[test]
    fn a_parameter_that_leads_nowhere_says_what_there_is() {
        assert_eq!(
            set("Twin.images", json!(1)).unwrap_err(),
            "Parameter Twin.images names several nodes, all called \"Twin\"; use one of their ids instead: 8, 9"
        );
        for name in ["prompt.text", "6", "6.", "99.text", ""] {
            let message = set(name, json!(1)).unwrap_err();
            assert!(message.starts_with(&format!("Parameter {name} names no node: ")), "{message}");
            assert!(message.contains("6 (Prompt), 7 (Prompt.negative), 3 (KSampler)"), "{message}");
        }
    }

    #[test]
    fn everything_that_is_wrong_with_parameters_is_told() {
        let parameters = |names: &[(&str, Value)]| {
            let parameters = names.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            Edits { parameters, randomize_seeds: false }
        };
        let graph = graph();
        let wrong =
            parameters(&[("99.a", json!(1)), ("3.seed", json!(1)), ("KSampler.seed", json!(2)), ("b", json!(3))]);
        let message = wrong.places(&graph).unwrap_err();
        for part in ["Parameter 99.a names no node", "Parameter b names no node"] {
            assert!(message.contains(part), "{message}");
        }
        let twice = "Parameter KSampler.seed sets input seed of node 3, which another parameter sets to another value";
        assert!(message.contains(twice), "{message}");
        let same = parameters(&[("3.seed", json!(1)), ("KSampler.seed", json!(1))]);
        assert_eq!(same.places(&graph).unwrap().len(), 1);
    }

    #[test]
    fn seeds_get_new_values_where_they_hold_any_and_no_parameter_says_otherwise() {
        let mut graph = graph();
        let seeds = graph.seeds();
        let parameters = Map::from_iter([("3.seed".to_owned(), json!(42))]);
        let mut next = u64::MAX;
        let random = || {
            next -= 1;
            next
        };
        Edits { parameters, randomize_seeds: true }
            .apply(&mut graph, &seeds, &NodeDefinitions::default(), random)
            .unwrap();
        let value = graph.to_value();
        assert_eq!(value["3"]["inputs"]["seed"], 42);
        assert_eq!(value["57:3"]["inputs"]["noise_seed"], (1_u64 << 50) - 3);
        assert_eq!(value["57:3"]["inputs"]["seed"], json!(["9", 0]));
    }

    /// Many nodes of paid services and of packs take no more than 31 or 32 bits.
    #[test]
    fn new_seeds_are_no_larger_than_the_node_takes() {
        let definition =
            |bounds: Value| json!({"input": {"required": {"seed": ["INT", bounds]}}, "output_node": false});
        for (bounds, seed) in [
            (json!({"min": 0, "max": 9}), 5),
            (json!({"min": 3, "max": 9}), 3 + u64::MAX % 7),
            (json!({"min": -1, "max": 9.0}), 5),
            (json!({"min": 7, "max": 7}), 7),
            (json!({"min": 7, "max": 2}), 7),
            (json!({"max": u64::MAX}), SEED_END - 1),
            (json!({"min": u64::MAX}), SEED_END - 1),
            (json!({}), SEED_END - 1),
        ] {
            let known = NodeDefinitions::read(&json!({"KSampler": definition(bounds.clone())}));
            let (mut graph, seeds) = (graph(), vec![vec![Place { node: "3".into(), input: "seed".into() }]]);
            let edits = Edits { randomize_seeds: true, ..Edits::default() };
            edits.apply(&mut graph, &seeds, &known, || u64::MAX).unwrap();
            assert_eq!(graph.to_value()["3"]["inputs"]["seed"], seed, "{bounds}");
        }
    }
}
