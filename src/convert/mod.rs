//! From the file that ComfyUI's "Save" writes to the prompt that its front end would send for it.
//!
//! The story of a conversion: `ui` reads the file, `group_node` and `renumber` bring old and clashing things into
//! today's form, `loaded` gives every node the inputs that its definition has (with `widgets` for the values),
//! `expand` makes an instance of each use of a subgraph, and `emit` writes the nodes while `links` finds out what
//! is at the other end of each link.
//!
//! Pure: no I/O, no clock, no chance. Whatever the file holds, it ends, and nothing of it is taken for granted. A
//! construct whose meaning can't be known is refused with the node and the reason; there is no prompt then.

mod added;
mod emit;
mod expand;
pub mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod group_node;
mod links;
mod loaded;
mod promoted;
mod renumber;
mod room;
mod text;
mod ui;
mod virtual_nodes;
mod widgets;

use std::collections::BTreeSet;

use chrono::NaiveDateTime;
use serde_json::{Map, Value};
use thiserror::Error;

pub use crate::workflow::{
    definition::{Editor, InputDefinition, InputKind, NodeDefinition, NodeDefinitions},
    finding::{Code, Finding, Severity},
};

use crate::workflow::{
    definition,
    edits::Seed,
    finding::{self, MAX_FINDINGS},
};

/// How many nodes there may be, with all instances of all subgraphs.
pub const MAX_NODES: usize = 20_000;

/// How deep subgraphs may stand in one another.
pub const MAX_DEPTH: usize = 32;

/// What the front end knows besides the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The local time, for file names that ask for it.
    pub now: Option<NaiveDateTime>,
    /// Decides among `{several|texts}` in prompts.
    pub seed: u64,
}

/// A workflow as `/prompt` takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversion {
    /// The nodes by id, each with `inputs`, `class_type` and its title under `_meta`.
    ///
    /// Every link leads to the id of a node that is in it. Empty when the workflow has no node that runs.
    pub prompt: Map<String, Value>,
    /// Inputs whose control says that they get a new value with each run; the front end draws one for each list.
    pub seeds: Vec<Seed>,
    /// What its author should know; warnings only.
    pub findings: Vec<Finding>,
}

/// Why there is no conversion. Reads well after the file's name.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// It is something else.
    #[error("is not a workflow in ComfyUI's UI format: it has no list of nodes")]
    NotUi,
    /// Larger than anybody draws, most likely by subgraphs in subgraphs.
    #[error("is too large: more than {MAX_NODES} nodes or 128 MiB of values, with all that its subgraphs hold")]
    TooLarge,
    /// Constructs that can't be converted, with warnings among them.
    #[error("cannot be converted: {}", finding::Several(.0))]
    Refused(Vec<Finding>),
}

/// The classes whose definitions a conversion asks for, and perhaps a few more: whatever is named as the type of a node,
/// in subgraphs and group nodes too.
pub fn classes(ui: &Value) -> BTreeSet<String> {
    let (mut classes, mut left) = (BTreeSet::new(), vec![ui]);
    while let Some(value) = left.pop() {
        let nodes = value.get("nodes").and_then(Value::as_array);
        classes.extend(nodes.into_iter().flatten().filter_map(|node| node.get("type")?.as_str()).map(str::to_owned));
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => left.extend(fields.values()),
            _ => {}
        }
    }
    classes
}

/// Converts a workflow in UI format for a box with these node definitions.
///
/// # Errors
/// When it is not in UI format, is too large, or holds something that can't be converted.
pub fn convert(ui: &Value, definitions: &NodeDefinitions, options: &Options) -> Result<Conversion, ConvertError> {
    let mut workflow = ui::Workflow::read(ui).ok_or(ConvertError::NotUi)?;
    if workflow.count_nodes() > MAX_NODES {
        return Err(ConvertError::TooLarge);
    }
    renumber::renumber(&mut workflow);
    let mut room = room::Room::new();
    group_node::into_subgraphs(&mut workflow, definitions, &mut room)?;
    let graphs = loaded::load(&workflow, definitions, &mut room)?;
    let instances = expand::expand(&graphs, &mut room)?;
    let conversion = emit::emit(&links::Links::new(&graphs, &instances), options, &mut room)?;
    if conversion.findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(ConvertError::Refused(conversion.findings));
    }
    Ok(conversion)
}
