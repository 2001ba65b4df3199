//! What a box's `/prompt` would say to a graph, found out before anything is uploaded or paid for.
//!
//! The rules are those of `validate_prompt` and `validate_inputs` in ComfyUI's `execution.py` (v0.3.75, and the
//! development version of autumn 2026), but for one difference: ComfyUI stops at the first fault of a kind, here all
//! come at once.
//!
//! An error is only what ComfyUI certainly refuses. `/object_info` does not tell whether a node checks its values itself,
//! which widens what is allowed; whatever such a node could decide otherwise is a warning, and the box has the last word.
//!
//! Pure: what is on the box is an argument, and what has to be looked up there is part of the answer.

mod choices;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inputs;
mod near;
mod python;
mod reach;
mod types;
mod values;

use std::collections::{BTreeSet, HashSet};

pub use self::{
    files::{Annotated, FileReference, annotated},
    near::suggest_classes,
};

use self::{
    choices::Lists,
    near::Suggestions,
    reach::{Reach, Reached},
};
use crate::workflow::{
    Finding, FindingCode, Graph, Node, NodeDefinition, NodeDefinitions, NodeId, Severity, finding::MAX_FINDINGS,
};

/// What is known about the box.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The definitions of the graph's classes; what is not among them, the box lacks.
    pub definitions: &'a NodeDefinitions,
    /// Classes that the box lacks and puts others in place of.
    pub replaced: &'a BTreeSet<String>,
    /// ComfyUI's version, where it tells one, such as `0.3.75`.
    pub version: Option<&'a str>,
    /// Names of the input files that come with the workflow.
    pub given: &'a [String],
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// In the graph's order; the errors are what `/prompt` refuses.
    pub findings: Vec<Finding>,
    /// Files that nodes name and that are neither given nor among the choices: they may be on the box all the same, in a
    /// folder that the choices do not cover.
    pub files: Vec<FileReference>,
}

/// Inputs that are looked at, and the like: far more than any workflow has, and few enough not to take minutes where
/// definitions and workflow are made for that.
const MAX_WORK: usize = 5_000_000;

/// Checks a graph against a box. Ends early, with whatever has been found, once `is_over` says that nobody waits for it.
pub fn check(graph: &Graph, known: &Known<'_>, is_over: &dyn Fn() -> bool) -> Report {
    let mut checker = Checker {
        graph,
        known,
        given: known.given.iter().map(String::as_str).collect(),
        report: Report::default(),
        lists: Lists::default(),
        suggestions: Suggestions::default(),
        work_left: MAX_WORK,
    };
    let unknown = checker.classes();
    let reach = Reach::of(graph, known.definitions);
    if !unknown && reach.nodes.is_empty() {
        let message = "the workflow has no node that saves or shows a result, so nothing would run";
        let hint = "add a node such as Save Image or Preview Image";
        checker.report(Finding::of_all(Severity::Error, FindingCode::PromptNoOutputs, message).with_hint(hint));
    }
    for (id, reached) in reach.nodes.iter().take_while(|_| !is_over()) {
        let (Some(node), Some(definition)) = (graph.node(id), checker.definition(id)) else { continue };
        Place { id, node, definition, reached: *reached }.check(&mut checker);
    }
    if checker.work_left == 0 {
        let message = "the workflow and its node definitions are so large that not all was checked";
        let finding = Finding::of_all(Severity::Warning, FindingCode::NoDefinitions, message);
        checker.report(finding.with_hint("ComfyUI itself will say what else is wrong"));
    }
    for circle in &reach.circles {
        checker.circle(circle);
    }
    checker.unused_files();
    checker.report
}

struct Checker<'a> {
    graph: &'a Graph,
    known: &'a Known<'a>,
    given: HashSet<&'a str>,
    report: Report,
    lists: Lists<'a>,
    suggestions: Suggestions,
    work_left: usize,
}

/// One node under the eye.
#[derive(Clone, Copy)]
struct Place<'a> {
    id: &'a NodeId,
    node: &'a Node,
    definition: &'a NodeDefinition,
    reached: Reached,
}

impl<'a> Checker<'a> {
    fn definition(&self, id: &NodeId) -> Option<&'a NodeDefinition> {
        self.known.definitions.class(self.graph.node(id)?.class_type()).filter(|definition| definition.is_whole)
    }

    /// ComfyUI looks for the classes of all nodes, whether or not they will run. Says whether it is unknown of one what it
    /// is.
    fn classes(&mut self) -> bool {
        let is_whole =
            |node: &Node| self.known.definitions.class(node.class_type()).is_some_and(|definition| definition.is_whole);
        let unknown = !self.graph.nodes().all(|(_, node)| is_whole(node));
        let unnamed = self.graph.nodes().filter(|(_, node)| self.known.definitions.class(node.class_type()).is_none());
        for (id, node) in unnamed.collect::<Vec<_>>() {
            let class = node.class_type();
            self.report(if self.known.replaced.contains(class) {
                let message = format!("the class {class} is gone from the box, which puts another in its place");
                Finding::of_node(Severity::Warning, FindingCode::ReplacedNodeType, id, node, message)
            } else {
                let message = format!("the class {class} is not on the box");
                Finding::of_node(Severity::Error, FindingCode::MissingNodeType, id, node, message)
                    .with_hint("install the pack that brings it there, or take the node out")
            });
        }
        unknown
    }

    /// Before v0.20 ComfyUI answers with a recursion error, after it with `dependency_cycle`.
    fn circle(&mut self, circle: &[NodeId]) {
        let Some((first, node)) = circle.first().and_then(|id| Some((id, self.graph.node(id)?))) else { return };
        let path: Vec<&str> = circle.iter().chain([first]).take(8).map(NodeId::as_str).collect();
        let message = format!("is linked to itself in a circle: {}", path.join(" ← "));
        let finding = Finding::of_node(Severity::Error, FindingCode::LinkCycle, first, node, message);
        self.report(finding.with_hint("cut one of these links"));
    }

    /// Whether there is as much work left to be spent, which it then is; once there is not, nothing is left.
    fn may_spend(&mut self, work: usize) -> bool {
        self.work_left = self.work_left.saturating_sub(work);
        self.work_left > 0
    }

    /// Whether a finding would be kept.
    fn takes(&self, severity: Severity) -> bool {
        let findings = &self.report.findings;
        let may_replace = || findings.iter().any(|kept| kept.severity == Severity::Warning);
        findings.len() < MAX_FINDINGS || severity == Severity::Error && may_replace()
    }

    fn report(&mut self, finding: Finding) {
        let findings = &mut self.report.findings;
        if findings.len() >= MAX_FINDINGS && finding.severity == Severity::Error {
            let warning = findings.iter().rposition(|kept| kept.severity == Severity::Warning);
            warning.map(|at| findings.remove(at));
        }
        if findings.len() < MAX_FINDINGS {
            findings.push(finding);
        }
    }
}

impl Place<'_> {
    /// How bad something is that no node can decide otherwise.
    fn severity(&self) -> Severity {
        match self.reached {
            Reached::Certainly => Severity::Error,
            Reached::Perhaps => Severity::Warning,
        }
    }

    fn finding(&self, severity: Severity, code: FindingCode, input: &str, message: impl Into<String>) -> Finding {
        Finding::of_node(severity, code, self.id, self.node, message).on_input(input)
    }
}

#[cfg(test)]
mod tests;
