//! Decides what of a prompt can run, as `validate_prompt` in ComfyUI's `execution.py`.
//!
//! Used by `POST /prompt`. Values are converted in place, as there. Each output node is checked with everything it
//! needs; the good ones run, the faults of the others are reported per node. Exceptions that Python would raise are
//! values here ([`Raised`]), and its recursion is a stack of [`Frame`]s, so no graph is too deep or too twisted.
//! What a single literal value must be is in [`values`].

mod values;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::graph::sources;
use super::json::{Object, python_repr, python_str};
use super::nodes::{Class, Input, find};
use super::{Folders, Version};
use values::{check_value, convert};

/// Python gives up at about this depth.
const MAX_DEPTH: usize = 900;

/// What can run.
pub(super) struct Verdict {
    pub(super) outputs: Vec<String>,
    pub(super) node_errors: Value,
}

/// Why nothing can run.
pub(super) enum Refusal {
    /// 400 with this answer: the overall error and the faults of nodes.
    Invalid(Value),
    /// Python fails in the middle: 500.
    Crash,
}

impl Refusal {
    fn invalid(kind: &str, message: impl Into<String>, details: impl Into<String>, extra_info: Value) -> Self {
        Self::Invalid(json!({"error": fault(kind, message, details, extra_info), "node_errors": {}}))
    }
}

/// Checks `prompt`, which may be anything; `targets` limits the output nodes.
pub(super) fn validate(
    prompt: &mut Value,
    targets: Option<&Value>,
    version: Version,
    folders: &Folders,
) -> Result<Verdict, Refusal> {
    let no_outputs = || Refusal::invalid("prompt_no_outputs", "Prompt has no outputs", "", json!({}));
    let prompt = match prompt {
        Value::Object(prompt) => prompt,
        Value::Array(items) if items.is_empty() => return Err(no_outputs()),
        _ => return Err(Refusal::Crash),
    };
    let outputs = output_nodes(prompt, targets, version)?;
    if outputs.is_empty() {
        return Err(no_outputs());
    }
    if version.has_new_validation()
        && let Some(refusal) = cycle(prompt, &outputs)
    {
        return Err(refusal);
    }
    Validation { prompt, folders, done: IndexMap::new() }.judge(outputs)
}

/// The output nodes of the prompt. All nodes must name a class that exists, needed or not.
fn output_nodes(prompt: &Object, targets: Option<&Value>, version: Version) -> Result<Vec<String>, Refusal> {
    let mut outputs = vec![];
    for (id, node) in prompt {
        let class_type = match node {
            Value::Object(node) => node.get("class_type"),
            Value::Array(_) => None,
            _ => return Err(Refusal::Crash),
        };
        let Some(class_type) = class_type else { return Err(no_class(id, node, None, version)) };
        if class_type.is_array() || class_type.is_object() {
            return Err(Refusal::Crash);
        }
        let Some(class) = class_type.as_str().and_then(find) else {
            return Err(no_class(id, node, Some(class_type), version));
        };
        let wanted = match targets {
            Some(Value::Array(targets)) => targets.iter().any(|target| target.as_str() == Some(id)),
            Some(Value::Null) | None => true,
            Some(_) => return Err(Refusal::Crash),
        };
        if class.is_output && wanted {
            outputs.push(id.clone());
        }
    }
    Ok(outputs)
}

fn no_class(id: &str, node: &Value, class_type: Option<&Value>, version: Version) -> Refusal {
    let message = match class_type {
        Some(name) => format!("Cannot execute because node {} does not exist.", python_str(name)),
        None => "Cannot execute because a node is missing the class_type property.".to_owned(),
    };
    let details = format!("Node ID '#{id}'");
    if version.has_new_validation() {
        let title = node.get("_meta").and_then(|meta| meta.get("title"));
        let info = json!({"node_id": id, "class_type": class_type, "node_title": title});
        Refusal::invalid("missing_node_type", message, details, info)
    } else {
        Refusal::invalid("invalid_prompt", message, details, json!({}))
    }
}

/// Since 0.20 a graph that needs itself is refused as such.
fn cycle(prompt: &Object, outputs: &[String]) -> Option<Refusal> {
    let mut finished: IndexMap<&str, bool> = IndexMap::new();
    for output in outputs {
        let mut path = vec![(output.as_str(), sources(prompt, output))];
        finished.entry(output).or_insert(false);
        while let Some((id, rest)) = path.last_mut() {
            let Some(next) = rest.next() else {
                finished.insert(id, true);
                path.pop();
                continue;
            };
            match finished.get(next) {
                Some(true) => {}
                Some(false) => {
                    let nodes: Vec<&str> = path.iter().map(|(id, _)| *id).skip_while(|id| *id != next).collect();
                    let info = json!({"node_id": next, "cycle_nodes": nodes});
                    return Some(Refusal::invalid("dependency_cycle", "Dependency cycle detected", next, info));
                }
                None => {
                    finished.insert(next, false);
                    path.push((next, sources(prompt, next)));
                }
            }
        }
    }
    None
}

/// A Python exception.
#[derive(Debug, Clone)]
struct Raised {
    kind: &'static str,
    message: String,
}

impl Raised {
    fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn key(key: &str) -> Self {
        Self::new("KeyError", python_repr(&key.into()))
    }

    fn recursion() -> Self {
        Self::new("RecursionError", "maximum recursion depth exceeded")
    }
}

/// The result for one node: valid, and what is wrong with the node itself.
type Result1 = (bool, Vec<Value>);

struct Validation<'a> {
    prompt: &'a mut Object,
    folders: &'a Folders,
    /// Results in the order they were found.
    done: IndexMap<String, Result1>,
}

/// A node whose check is under way.
struct Frame {
    id: String,
    class: &'static Class,
    inputs: Vec<Input>,
    next: usize,
    valid: bool,
    errors: Vec<Value>,
}

enum Progress {
    /// Look at the next input.
    Next,
    /// Another node has to be checked first.
    Needs(String),
}

impl Validation<'_> {
    fn judge(mut self, outputs: Vec<String>) -> Result<Verdict, Refusal> {
        let (mut good, mut reasons, mut node_errors) = (vec![], vec![], Map::new());
        for output in outputs {
            let (valid, errors) = match self.check(&output) {
                Ok(result) => result,
                Err(raised) => {
                    let result = (false, vec![exception_report("exception_during_validation", None, &raised)]);
                    self.done.insert(output.clone(), result.clone());
                    result
                }
            };
            if valid {
                good.push(output);
                continue;
            }
            reasons.extend(errors.iter().map(reason));
            self.report(&output, &mut node_errors);
        }
        if good.is_empty() {
            let details = reasons.join("\n");
            let error =
                fault("prompt_outputs_failed_validation", "Prompt outputs failed validation", details, json!({}));
            return Err(Refusal::Invalid(json!({"error": error, "node_errors": node_errors})));
        }
        Ok(Verdict { outputs: good, node_errors: node_errors.into() })
    }

    /// Adds every node known to be at fault so far; nodes that merely depend on one are left out.
    fn report(&self, output: &str, node_errors: &mut Object) {
        for (id, (valid, errors)) in &self.done {
            if *valid || errors.is_empty() {
                continue;
            }
            let class_type = self.prompt.get(id).and_then(|node| node.get("class_type")).cloned();
            let entry = node_errors.entry(id.clone()).or_insert_with(
                || json!({"errors": errors, "dependent_outputs": [], "class_type": class_type.unwrap_or_default()}),
            );
            if let Some(dependents) = entry.get_mut("dependent_outputs").and_then(Value::as_array_mut) {
                dependents.push(output.into());
            }
        }
    }

    /// Checks one node and all it needs.
    fn check(&mut self, root: &str) -> Result<Result1, Raised> {
        if let Some(result) = self.done.get(root) {
            return Ok(result.clone());
        }
        let mut stack = vec![self.frame(root)?];
        loop {
            let Some(mut frame) = stack.pop() else { return Ok((true, vec![])) };
            let outcome = self.advance(&mut frame);
            let raised = match outcome {
                Ok(Some(child)) => match self.descend(&child, &stack) {
                    Ok(child_frame) => {
                        stack.push(frame);
                        stack.push(child_frame);
                        continue;
                    }
                    // The child fails before its first input; this node notes it and goes on.
                    Err(raised) => {
                        self.blame(&frame, &child, &raised);
                        frame.valid = false;
                        frame.next += 1;
                        stack.push(frame);
                        continue;
                    }
                },
                Ok(None) => None,
                Err(raised) => Some(raised),
            };
            match (raised, stack.last_mut()) {
                (None, parent) => {
                    let result = (frame.valid && frame.errors.is_empty(), frame.errors);
                    self.done.insert(frame.id, result.clone());
                    if parent.is_none() {
                        return Ok(result);
                    }
                }
                (Some(raised), Some(parent)) => {
                    parent.valid = false;
                    parent.next += 1;
                    let parent = stack.pop();
                    if let Some(parent) = parent {
                        // `next` already points beyond the input that led here.
                        self.blame_input(&parent, parent.next - 1, &frame.id, &raised);
                        stack.push(parent);
                    }
                }
                (Some(raised), None) => return Err(raised),
            }
        }
    }

    fn descend(&self, child: &str, stack: &[Frame]) -> Result<Frame, Raised> {
        if stack.len() >= MAX_DEPTH || stack.iter().any(|frame| frame.id == child) {
            return Err(Raised::recursion());
        }
        self.frame(child)
    }

    fn frame(&self, id: &str) -> Result<Frame, Raised> {
        let node = self.prompt.get(id).ok_or_else(|| Raised::key(id))?;
        node.get("inputs").ok_or_else(|| Raised::key("inputs"))?;
        let class = node.get("class_type").and_then(Value::as_str).and_then(find);
        let class = class.ok_or_else(|| Raised::key("class_type"))?;
        let inputs = class.inputs(self.folders);
        Ok(Frame { id: id.to_owned(), class, inputs, next: 0, valid: true, errors: vec![] })
    }

    /// Goes through the inputs until another node is needed (`Some`) or all are done (`None`).
    fn advance(&mut self, frame: &mut Frame) -> Result<Option<String>, Raised> {
        while let Some(input) = frame.inputs.get(frame.next) {
            let mut errors = vec![];
            let progress = self.check_input(&frame.id, frame.class, input, &mut errors, &mut frame.valid)?;
            frame.errors.append(&mut errors);
            match progress {
                Progress::Needs(child) => return Ok(Some(child)),
                Progress::Next => frame.next += 1,
            }
        }
        let inputs = self.prompt.get(&frame.id).and_then(|node| node.get("inputs")).and_then(Value::as_object);
        for (input, text) in frame.class.refuse(inputs.unwrap_or(&Map::new()), self.folders) {
            frame.errors.push(fault(
                "custom_validation_failed",
                "Custom validation failed for node",
                format!("{input} - {text}"),
                json!({"input_name": input}),
            ));
        }
        Ok(None)
    }

    fn check_input(
        &mut self,
        id: &str,
        class: &Class,
        input: &Input,
        errors: &mut Vec<Value>,
        valid: &mut bool,
    ) -> Result<Progress, Raised> {
        let name = input.name;
        let inputs = self.prompt.get_mut(id).and_then(|node| node.get_mut("inputs"));
        let Some(inputs) = inputs.and_then(Value::as_object_mut) else {
            return Err(Raised::new("TypeError", "the inputs of a node are not an object"));
        };
        let Some(value) = inputs.get_mut(name) else {
            if input.required {
                let info = json!({"input_name": name});
                errors.push(fault("required_input_missing", "Required input is missing", name, info));
            }
            return Ok(Progress::Next);
        };
        if let Value::Array(parts) = value {
            let parts = parts.clone();
            return self.check_link(&parts, input, errors, valid);
        }
        match convert(value, input) {
            Err(error) => errors.push(error),
            Ok(()) if class.checks_itself(name) => {}
            Ok(()) => errors.extend(check_value(value, input)),
        }
        Ok(Progress::Next)
    }

    fn check_link(
        &self,
        parts: &[Value],
        input: &Input,
        errors: &mut Vec<Value>,
        valid: &mut bool,
    ) -> Result<Progress, Raised> {
        let (name, config) = (input.name, input.config());
        let [source, output] = parts else {
            errors.push(fault(
                "bad_linked_input",
                "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                name,
                json!({"input_name": name, "input_config": config, "received_value": parts}),
            ));
            return Ok(Progress::Next);
        };
        // A link whose id is not a string never finds a key.
        let missing = || Raised::new("KeyError", python_repr(source));
        let id = source.as_str().ok_or_else(missing)?;
        let node = self.prompt.get(id).ok_or_else(missing)?;
        let class = node.get("class_type").and_then(Value::as_str).and_then(find);
        let received = class.map_or(&[][..], |class| class.outputs);
        let index = output.as_u64().and_then(|index| usize::try_from(index).ok());
        let index = index.ok_or_else(|| Raised::new("TypeError", "tuple indices must be integers or slices"))?;
        let received = received.get(index).ok_or_else(|| Raised::new("IndexError", "tuple index out of range"))?;
        if !input.kind.accepts(received) {
            errors.push(fault(
                "return_type_mismatch",
                "Return type mismatch between linked nodes",
                format!("{name}, received_type({received}) mismatch input_type({})", input.kind.name()),
                json!({"input_name": name, "input_config": config, "received_type": received, "linked_node": parts}),
            ));
            return Ok(Progress::Next);
        }
        match self.done.get(id) {
            Some((ok, _)) => {
                *valid &= ok;
                Ok(Progress::Next)
            }
            None => Ok(Progress::Needs(id.to_owned())),
        }
    }

    fn blame(&mut self, frame: &Frame, child: &str, raised: &Raised) {
        self.blame_input(frame, frame.next, child, raised);
    }

    /// An exception inside the check of `child`, reached through an input of `frame`, is a fault of `child`.
    fn blame_input(&mut self, frame: &Frame, input: usize, child: &str, raised: &Raised) {
        let Some(input) = frame.inputs.get(input) else { return };
        let link = self.prompt.get(&frame.id).and_then(|node| node.get("inputs")?.get(input.name));
        let report = exception_report("exception_during_inner_validation", Some((input, link)), raised);
        self.done.insert(child.to_owned(), (false, vec![report]));
    }
}

/// One entry of an `errors` list, or the overall error.
fn fault(kind: &str, message: impl Into<String>, details: impl Into<String>, extra_info: Value) -> Value {
    json!({"type": kind, "message": message.into(), "details": details.into(), "extra_info": extra_info})
}

/// A line of the overall details.
fn reason(error: &Value) -> String {
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    format!("{}: {}", text("message"), text("details"))
}

fn exception_report(kind: &str, reached: Option<(&Input, Option<&Value>)>, raised: &Raised) -> Value {
    let traceback = json!(["  File \"/srv/ComfyUI/execution.py\", line 788, in validate_inputs\n"]);
    match reached {
        None => fault(
            kind,
            "Exception when validating node",
            &raised.message,
            json!({"exception_type": raised.kind, "traceback": traceback}),
        ),
        Some((input, link)) => fault(
            kind,
            "Exception when validating inner node",
            &raised.message,
            json!({
                "input_name": input.name,
                "input_config": input.config(),
                "exception_message": raised.message,
                "exception_type": raised.kind,
                "traceback": traceback,
                "linked_node": link,
            }),
        ),
    }
}
