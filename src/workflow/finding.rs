//! What is found in a workflow before it runs: what stops it, and what its author should know.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{graph::Node, id::NodeId};
use crate::text::one_line;

/// More findings about one workflow are not kept.
pub(crate) const MAX_FINDINGS: usize = 200;

/// Whether a finding stops the workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is no prompt that would be right, or the box would refuse it.
    Error,
    /// It can run; its author may not expect what comes of it, or the box has the last word.
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
    /// The box puts another class in the place of one that is gone.
    ReplacedNodeType,
    /// No node ends the graph.
    PromptNoOutputs,
    /// An input that must be given is not.
    RequiredInputMissing,
    /// A list that is no link, or a link to an output that the node does not have.
    BadLinkedInput,
    /// A link between things of different types.
    ReturnTypeMismatch,
    /// A value that can't be made what the input takes.
    InvalidInputType,
    /// A number below the least that is allowed.
    ValueSmallerThanMin,
    /// A number above the most that is allowed.
    ValueBiggerThanMax,
    /// A value that is not among the choices, such as a model that the box lacks.
    ValueNotInList,
    /// A value where only a link makes sense.
    ValueForLink,
    /// A file that is neither given nor on the box.
    MissingInputFile,
    /// A given file that no node names.
    UnusedInputFile,
    /// A parameter that fits no input.
    UnknownParameter,
    /// A disk has too little room.
    DiskFull,
    /// The box's node definitions can't be had, so little could be checked.
    NoDefinitions,
    /// The node itself refuses its values.
    CustomValidationFailed,
    /// ComfyUI refuses it for a reason of another kind.
    RefusedByBox,
}

impl Code {
    /// The code of a fault that ComfyUI calls so.
    pub fn of_refusal(kind: &str) -> Self {
        serde_json::from_value(kind.into()).unwrap_or(Self::RefusedByBox)
    }

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
            Self::ReplacedNodeType => "replaced_node_type",
            Self::PromptNoOutputs => "prompt_no_outputs",
            Self::RequiredInputMissing => "required_input_missing",
            Self::BadLinkedInput => "bad_linked_input",
            Self::ReturnTypeMismatch => "return_type_mismatch",
            Self::InvalidInputType => "invalid_input_type",
            Self::ValueSmallerThanMin => "value_smaller_than_min",
            Self::ValueBiggerThanMax => "value_bigger_than_max",
            Self::ValueNotInList => "value_not_in_list",
            Self::ValueForLink => "value_for_link",
            Self::MissingInputFile => "missing_input_file",
            Self::UnusedInputFile => "unused_input_file",
            Self::UnknownParameter => "unknown_parameter",
            Self::DiskFull => "disk_full",
            Self::NoDefinitions => "no_definitions",
            Self::CustomValidationFailed => "custom_validation_failed",
            Self::RefusedByBox => "refused_by_box",
        }
    }
}

/// One thing found, on one node or about the workflow as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it stops the workflow.
    pub severity: Severity,
    /// Its kind.
    pub code: Code,
    /// The node's id, with the ids of the subgraphs around it, such as `57:8`; empty, as the next two, when it is
    /// about no single node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_id: String,
    /// Its class.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_type: String,
    /// Its title, as the author sees it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// The input that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// What is wrong, on one line, without control characters.
    pub message: String,
    /// What to try, likewise.
    pub hint: String,
}

impl Finding {
    /// Something about a node of a graph.
    pub(crate) fn of_node(
        severity: Severity,
        code: Code,
        id: &NodeId,
        node: &Node,
        message: impl Into<String>,
    ) -> Self {
        let class = node.class_type();
        Self {
            node_id: id.to_string(),
            node_type: class.to_owned(),
            title: node.title().unwrap_or(class).to_owned(),
            ..Self::of_all(severity, code, message)
        }
    }

    /// Something about the workflow as a whole.
    pub(crate) fn of_all(severity: Severity, code: Code, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            node_id: String::new(),
            node_type: String::new(),
            title: String::new(),
            input: None,
            message: one_line(&message.into()),
            hint: String::new(),
        }
    }

    /// The same, about one of the node's inputs.
    pub(crate) fn on_input(mut self, input: &str) -> Self {
        self.input = Some(input.to_owned()).filter(|input| !input.is_empty());
        self
    }

    /// The same, in subgraphs whose ids are in `path`, such as `57:`.
    pub(crate) fn below(mut self, path: &str) -> Self {
        self.node_id.insert_str(0, path);
        self
    }

    /// The same, with what to try.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = one_line(&hint.into());
        self
    }
}

/// On one line, without control characters, whatever the node is called.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node_id.is_empty() {
            write!(f, "node {} ({}", one_line(&self.node_id), one_line(&self.title))?;
            if self.title != self.node_type {
                write!(f, ", {}", one_line(&self.node_type))?;
            }
            write!(f, "): ")?;
        }
        write!(f, "{}", self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// Leaves as many findings as are kept, in their order: all errors before any warning.
pub(crate) fn cut(findings: &mut Vec<Finding>) {
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    let errors = findings.iter().filter(|finding| is_error(finding)).count();
    let mut warnings_left = MAX_FINDINGS.saturating_sub(errors);
    findings.retain(|finding| {
        let kept = is_error(finding) || warnings_left > 0;
        warnings_left -= usize::from(kept && !is_error(finding));
        kept
    });
    findings.truncate(MAX_FINDINGS);
}

/// The first error among findings in a sentence, and how many more there are.
#[derive(Debug)]
pub(crate) struct Several<'a>(pub(crate) &'a [Finding]);

impl fmt::Display for Several<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors = self.0.iter().filter(|finding| finding.severity == Severity::Error);
        if let Some(first) = errors.next() {
            write!(f, "{first}")?;
        }
        match errors.count() {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_before_warnings_and_all_stay_in_order() {
        let of = |severity, at: usize| Finding::of_all(severity, Code::DiskFull, at.to_string());
        let cut = |count: usize, is_error: fn(usize) -> bool| {
            let severity = |at| if is_error(at) { Severity::Error } else { Severity::Warning };
            let mut findings: Vec<Finding> = (0..count).map(|at| of(severity(at), at)).collect();
            super::cut(&mut findings);
            findings.into_iter().map(|finding| finding.message.parse().unwrap_or(0)).collect::<Vec<usize>>()
        };
        assert_eq!(cut(MAX_FINDINGS, |_| false), (0..MAX_FINDINGS).collect::<Vec<_>>());
        assert_eq!(cut(MAX_FINDINGS + 9, |at| at == 205), (0..MAX_FINDINGS - 1).chain([205]).collect::<Vec<_>>());
        assert_eq!(cut(2 * MAX_FINDINGS + 9, |at| at > 3), (4..MAX_FINDINGS + 4).collect::<Vec<_>>());
    }
}
