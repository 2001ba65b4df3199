//! What is found in a workflow before it runs: what stops it, and what its author should know.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a finding stops the conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is no prompt that would be right.
    Error,
    /// The prompt is what ComfyUI's front end would send; its author may not expect it.
    Warning,
}

impl Severity {
    /// The word in JSON and in messages to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// What kind of thing was found; the words are the ones in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The class is not among the node definitions.
    MissingNodeType,
    /// A known node whose work is done in the browser, in a way that is not rebuilt here.
    UnsupportedNode,
    /// A value that only the browser can make, such as a camera picture.
    BrowserValue,
    /// A choice with inputs of its own has a value that the definition does not offer.
    UnknownChoice,
    /// A link starts at a node that the file does not have.
    MissingLinkSource,
    /// Following a link never ends.
    LinkCycle,
    /// A subgraph holds itself.
    SubgraphCycle,
    /// A value is to be filled in with the time, which the caller did not give.
    TimeUnknown,
    /// Saved values are fewer than the node's widgets; the rest has defaults.
    MissingValues,
    /// One of several texts was chosen at random.
    RandomChoice,
    /// A node without sockets and without definition was left out.
    LeftOut,
    /// Two nodes of a graph have the same id.
    DoubledId,
    /// A pack's node has more saved values than its definition tells of.
    ExtraValues,
    /// A name by which a link is taken up, that no node gives.
    UnknownName,
    /// A broadcast reaches an input from several nodes.
    AmbiguousBroadcast,
}

impl Code {
    /// The word in JSON and in messages to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MissingNodeType => "missing_node_type",
            Self::UnsupportedNode => "unsupported_node",
            Self::BrowserValue => "browser_value",
            Self::UnknownChoice => "unknown_choice",
            Self::MissingLinkSource => "missing_link_source",
            Self::LinkCycle => "link_cycle",
            Self::SubgraphCycle => "subgraph_cycle",
            Self::TimeUnknown => "time_unknown",
            Self::MissingValues => "missing_values",
            Self::RandomChoice => "random_choice",
            Self::LeftOut => "left_out",
            Self::DoubledId => "doubled_id",
            Self::ExtraValues => "extra_values",
            Self::UnknownName => "unknown_name",
            Self::AmbiguousBroadcast => "ambiguous_broadcast",
        }
    }
}

/// One thing found, on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it stops the conversion.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// The node's id, with the ids of the subgraphs around it, such as `57:8`.
    pub node_id: String,
    /// Its class.
    pub node_type: String,
    /// Its title, as the author sees it.
    pub title: String,
    /// The input that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to try.
    pub hint: String,
}

impl Finding {
    /// The same, about one of the node's inputs.
    pub(crate) fn on_input(mut self, input: &str) -> Self {
        self.input = Some(input.to_owned());
        self
    }

    /// The same, in subgraphs whose ids are in `path`, such as `57:`.
    pub(crate) fn below(mut self, path: &str) -> Self {
        self.node_id.insert_str(0, path);
        self
    }

    /// The same, with what to try.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({}", self.node_id, self.title)?;
        if self.title != self.node_type {
            write!(f, ", {}", self.node_type)?;
        }
        write!(f, "): {}", self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}
