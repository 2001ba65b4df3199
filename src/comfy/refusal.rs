//! Why ComfyUI refuses a graph, or a part of it, read from the answer to `POST /prompt`. Pure.
//!
//! Every field but the faults themselves may be missing, and custom nodes put anything into them. What the answer
//! lacks (class, title) is taken from the graph that was sent.

use std::fmt;

use serde_json::Value;

use super::{client::text_of, queue::id_of};
use crate::{text::clip_to, workflow::NodeId};

/// Most findings that are kept.
const MAX_FINDINGS: usize = 1000;

/// How many findings a message spells out.
const SPELLED_OUT: usize = 10;

/// Longest part of a finding, in characters.
const MAX_CHARS: usize = 300;

/// The kinds of error for an unknown or missing class: of v0.12 and newer, and of older servers.
const CLASS_KINDS: [&str; 2] = ["missing_node_type", "invalid_prompt"];

/// The refusal of a whole graph. Its text is for the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// ComfyUI's word for it, such as `prompt_outputs_failed_validation`.
    pub kind: String,
    /// What is wrong with which node; empty when no node is named.
    pub findings: Findings,
    message: String,
}

/// Faults of nodes. Its text names the first ten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

/// One fault of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The node at fault.
    pub node_id: NodeId,
    /// Its class.
    pub class_type: Option<String>,
    /// Its title, where it has one of its own.
    pub title: Option<String>,
    /// ComfyUI's word for the fault, such as `required_input_missing`.
    pub kind: String,
    /// What is wrong, in ComfyUI's words.
    pub message: String,
    /// On which thing.
    pub details: String,
    /// The input at fault.
    pub input: Option<String>,
}

impl Refusal {
    /// Reads the body of a refusal. `graph` is what was sent.
    pub(super) fn read(answer: &Value, graph: &Value) -> Self {
        let error = answer.get("error").unwrap_or(&Value::Null);
        let field = |key| text_of(error, key).map(|text| clip_to(&text, MAX_CHARS)).unwrap_or_default();
        let mut findings = Findings::read(answer.get("node_errors").unwrap_or(&Value::Null), graph);
        findings.0.extend(class_finding(error, graph));
        let message = match error {
            Value::String(text) => clip_to(text, MAX_CHARS),
            _ => with_details(&field("message"), &field("details")),
        };
        Self { kind: field("type"), findings, message }
    }

    /// A refusal of which only a sentence is known.
    pub(super) fn from_sentence(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ComfyUI refused the workflow: ")?;
        if !self.findings.is_empty() {
            return self.findings.fmt(f);
        }
        match self.kind.as_str() {
            "prompt_no_outputs" => f.write_str("it has no node that saves or shows a result"),
            _ if self.message.is_empty() => f.write_str("it does not say why"),
            _ => f.write_str(&self.message),
        }
    }
}

impl Findings {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The findings in ComfyUI's order, at most 1000.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// Reads `node_errors`.
    pub(super) fn read(node_errors: &Value, graph: &Value) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for (id, node) in node_errors.as_object().into_iter().flatten() {
            for error in node.get("errors").and_then(Value::as_array).into_iter().flatten() {
                let finding = Finding::read(id, node, error, graph);
                // Validators report the same text once for every input that they look at.
                if findings.len() < MAX_FINDINGS && !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
        Self(findings)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().take(SPELLED_OUT).enumerate() {
            write!(f, "{}{finding}", if index == 0 { "" } else { "; " })?;
        }
        match self.0.len().saturating_sub(SPELLED_OUT) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Finding {
    fn read(id: &str, node: &Value, error: &Value, graph: &Value) -> Self {
        let field = |key| text_of(error, key).map(|text| clip_to(&text, MAX_CHARS)).unwrap_or_default();
        let extra = error.get("extra_info").unwrap_or(&Value::Null);
        let mut finding = Self {
            class_type: text_of(node, "class_type").map(|class| clip_to(&class, MAX_CHARS)),
            kind: field("type"),
            message: field("message"),
            details: field("details"),
            input: text_of(extra, "input_name").map(|input| clip_to(&input, MAX_CHARS)),
            ..Self::bare(id, graph)
        };
        finding.class_type = finding.class_type.or_else(|| class_in(graph, id));
        // A link to a node that is not there fails as Python's KeyError with the id in quotes.
        let missing = finding.details.trim_matches('\'').to_owned();
        let is_key_error = text_of(extra, "exception_type").as_deref() == Some("KeyError");
        if is_key_error && !missing.is_empty() && graph.get(&missing).is_none() {
            finding.message = "it is linked to a node that the workflow does not have".into();
            finding.details = missing;
        }
        finding
    }

    /// Only what the graph tells.
    fn bare(id: &str, graph: &Value) -> Self {
        let class_type = class_in(graph, id);
        let title = graph.get(id).and_then(|node| text_of(node.get("_meta")?, "title"));
        let title = title
            .map(|title| clip_to(&title, 80))
            .filter(|title| !title.is_empty() && Some(title) != class_type.as_ref());
        let empty = String::new;
        let node_id = if graph.get(id).is_some() { id.into() } else { clip_to(id, 80).into() };
        Self { node_id, class_type, title, kind: empty(), message: empty(), details: empty(), input: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.node_id;
        if CLASS_KINDS.contains(&self.kind.as_str()) {
            return match &self.class_type {
                Some(class) => write!(f, "node type {class} (node {id}) is not installed on the box"),
                None => write!(f, "node {id} has no class_type"),
            };
        }
        write!(f, "node {id}")?;
        match (&self.class_type, &self.title) {
            (Some(class), Some(title)) => write!(f, " ({class} \"{title}\")")?,
            (Some(name), None) | (None, Some(name)) => write!(f, " ({name})")?,
            (None, None) => {}
        }
        let reason = with_details(&self.message, &self.details);
        let reasons = [reason.as_str(), self.kind.as_str(), "it is not valid"];
        write!(f, ": {}", reasons.into_iter().find(|reason| !reason.is_empty()).unwrap_or_default())
    }
}

/// The node of unknown or missing class that an error names. Newer servers name it in fields, older ones in a text.
fn class_finding(error: &Value, graph: &Value) -> Option<Finding> {
    let kind = text_of(error, "type").filter(|kind| CLASS_KINDS.contains(&kind.as_str()))?;
    let extra = error.get("extra_info").unwrap_or(&Value::Null);
    let details = text_of(error, "details").unwrap_or_default();
    let in_text = || details.split_once("'#")?.1.strip_suffix('\'').map(str::to_owned);
    let id = extra.get("node_id").and_then(id_of).or_else(in_text)?;
    // Of another fault of the prompt, an older server would say invalid_prompt too; its message is kept then.
    let message = text_of(error, "message").unwrap_or_default();
    let is_about_class =
        kind == "missing_node_type" || message.contains("does not exist") || message.contains("class_type");
    let mut finding = Finding::bare(&clip_to(&id, 80), graph);
    finding.class_type = text_of(extra, "class_type").or(finding.class_type).map(|class| clip_to(&class, MAX_CHARS));
    finding.kind = if is_about_class { kind } else { "invalid".into() };
    finding.message = clip_to(&message, MAX_CHARS);
    Some(finding)
}

fn class_in(graph: &Value, id: &str) -> Option<String> {
    text_of(graph.get(id)?, "class_type").map(|class| clip_to(&class, MAX_CHARS))
}

fn with_details(message: &str, details: &str) -> String {
    match (message.trim_end_matches(['.', ':', ' ']), details) {
        ("", details) => details.to_owned(),
        (message, details) if details.is_empty() || message.contains(details) => message.to_owned(),
        (message, details) => format!("{message}: {details}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::comfy::traces;
    use serde_json::json;

    fn recorded(server: &str, situation: &str) -> String {
        let trace = traces::one(server, situation);
        let post = trace.http("POST", "/prompt").next().unwrap();
        Refusal::read(&post["response"], &post["request"]["prompt"]).to_string()
    }

    #[test]
    fn recorded_refusals_are_readable() {
        let prefix = "ComfyUI refused the workflow: ";
        for (situation, expected) in [
            ("d1_missing_input", "node 2 (SaveImage): Required input is missing: images"),
            ("d2_unknown_node", "node type NoSuchNodeAnywhere (node 1) is not installed on the box"),
            ("d3_no_outputs", "it has no node that saves or shows a result"),
            (
                "d4_missing_file",
                "node 1 (LoadImage): Custom validation failed for node: image - Invalid image file: not_there.png",
            ),
            (
                "d5_bad_value",
                "node 1 (EmptyImage): Value -5 smaller than min of 1: width; \
                 node 1 (EmptyImage): Failed to convert an input value to a INT value: height, abc, \
                 invalid literal for int() with base 10: 'abc'",
            ),
            (
                "d6_type_mismatch",
                "node 2 (SaveImage): Return type mismatch between linked nodes: \
                 images, received_type(LATENT) mismatch input_type(IMAGE)",
            ),
            ("d8_dangling_link", "node 2 (SaveImage): it is linked to a node that the workflow does not have: 99"),
            ("d9_no_class_type", "node 1 has no class_type"),
        ] {
            assert_eq!(recorded("comfyui-0.3.64", situation), format!("{prefix}{expected}"), "{situation}");
        }
        let missing = format!("{prefix}node 2 (SaveImage): Required input is missing: images");
        assert_eq!(recorded("comfyui-0.3.75-pypi", "d1_missing_input"), missing);
        assert_eq!(recorded("comfyui-0.10.0-fork", "d1_missing_input"), missing);
        let unknown = format!("{prefix}node type NoSuchNodeAnywhere (node 1) is not installed on the box");
        assert_eq!(recorded("comfyui-0.10.0-fork", "d2_unknown_node"), unknown);
    }

    #[test]
    fn every_recorded_answer_of_400_says_something() {
        let mut seen = 0;
        for trace in traces::all() {
            for post in trace.http("POST", "/prompt").filter(|post| post["status"] == 400) {
                let text = Refusal::read(&post["response"], &post["request"]["prompt"]).to_string();
                assert!(text.len() > 40 && text.len() < 400 && !text.contains('\n'), "{}: {text}", trace.name);
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn newer_servers_name_the_class_in_fields() {
        let error = json!({"type": "missing_node_type", "message": "Node 'x' not found.", "details": "Node ID '#12:3'",
                           "extra_info": {"node_id": "12:3", "class_type": "FooNode", "node_title": "My foo"}});
        let refusal = Refusal::read(&json!({ "error": error }), &json!(null));
        let expected = "ComfyUI refused the workflow: node type FooNode (node 12:3) is not installed on the box";
        assert_eq!(refusal.to_string(), expected);
        let finding = refusal.findings.iter().next().unwrap();
        assert_eq!((finding.node_id.as_str(), finding.class_type.as_deref()), ("12:3", Some("FooNode")));
    }

    #[test]
    fn odd_answers_are_survived() {
        let text = |answer: Value| Refusal::read(&answer, &json!([])).to_string();
        assert_eq!(text(json!({"error": "no"})), "ComfyUI refused the workflow: no");
        assert_eq!(text(json!(3)), "ComfyUI refused the workflow: it does not say why");
        assert_eq!(
            text(json!({"error": {"type": "invalid_prompt", "message": "x", "details": 3}, "node_errors": []})),
            "ComfyUI refused the workflow: x: 3"
        );
        assert_eq!(
            text(json!({"node_errors": {"1": {"errors": [null, {"type": "t"}]}}})),
            "ComfyUI refused the workflow: node 1: it is not valid; node 1: t"
        );
    }

    #[test]
    fn titles_help_and_long_lists_end() {
        let graph = json!({"1": {"class_type": "KSampler", "_meta": {"title": "Main pass"}}});
        let errors: Vec<_> =
            (0..25).map(|i| json!({"message": "Bad", "details": format!("{i}{}", "x".repeat(9000))})).collect();
        let findings = Findings::read(&json!({"1": {"errors": errors}}), &graph);
        let text = findings.to_string();
        assert!(
            text.starts_with("node 1 (KSampler \"Main pass\"): Bad: 0xxx") && text.ends_with("; and 15 more"),
            "{text}"
        );
        assert!(text.len() < 5000, "{}", text.len());
        let twice = json!({"1": {"errors": [{"message": "same"}, {"message": "same"}]}});
        assert_eq!(Findings::read(&twice, &graph).iter().count(), 1);
    }
}
