//! The inputs of a node: what must be there and is not, and where its links lead.

use std::{borrow::Cow, collections::HashSet};

use serde_json::Value;

use super::{
    Checker, Place,
    types::{is_mismatch, may_validate},
    values::shown,
};
use crate::workflow::{Finding, FindingCode, InputDefinition, InputKind, NodeId, Severity};

/// Whether every version of ComfyUI looks at an input under the name that the definition has for it.
pub(super) fn is_static(input: &InputDefinition) -> bool {
    matches!(input.kind, InputKind::Socket | InputKind::Widget(_)) && !input.type_name.starts_with("COMFY_DYNAMIC")
}

impl<'a> Place<'a> {
    pub(super) fn check(&self, checker: &mut Checker<'a>) {
        self.section(checker, &self.definition.inputs, "");
        for (name, value) in self.node.inputs() {
            if let Value::Array(link) = value {
                self.undeclared_link(checker, name, link);
            }
        }
    }

    /// ComfyUI does not look at it before the run, and its worker ends when it meets it then (`ExecutionList.add_node` in
    /// `comfy_execution/graph.py`, v0.3.75): nothing runs on that box any more.
    fn undeclared_link(&self, checker: &mut Checker<'a>, name: &str, link: &[Value]) {
        let [Value::String(source), _] = link else { return };
        let is_nowhere = checker.graph.node(&NodeId::from(source.as_str())).is_none();
        if is_nowhere && checker.may_spend(self.definition.inputs.len()) && !self.definition.may_have(name) {
            let message =
                format!("{name}, an input that it does not have, is linked to node {source}, which is not there");
            let finding = self.finding(Severity::Warning, FindingCode::MissingLinkSource, name, message);
            checker.report(finding.with_hint("take it out: ComfyUI takes the workflow and may then hang"));
        }
    }

    fn section(&self, checker: &mut Checker<'a>, section: &'a [InputDefinition], prefix: &str) {
        for input in section {
            if !checker.may_spend(1) {
                return;
            }
            let name = format!("{prefix}{}", input.name);
            let given = self.node.input(&name);
            match (&input.kind, given) {
                (InputKind::Growing, _) => self.growing(checker, &name, input),
                (_, None) if input.required => self.missing(checker, &name, input),
                (_, None) => {}
                (InputKind::Choice(options), Some(value)) => self.brought(checker, &name, options, value),
                (_, Some(Value::Array(link))) => self.link(checker, &name, input, link),
                (_, Some(value)) => self.value(checker, &name, input, value),
            }
        }
    }

    fn missing(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition) {
        let message = match input.kind {
            InputKind::Socket => format!("{name} must be linked to a node that gives {}", input.link_type()),
            _ => format!("{name} must have a value"),
        };
        // A choice that is not made brings nothing, not even itself (`_expand_schema_for_dynamic` in `_io.py`).
        let severity = if is_static(input) { self.severity() } else { Severity::Warning };
        if !checker.takes(severity) || !checker.may_spend(self.node.inputs().count() + self.definition.inputs.len()) {
            return;
        }
        let declared: HashSet<&str> = self.definition.inputs.iter().map(|input| input.name.as_str()).collect();
        let unknown: Vec<&String> =
            self.node.inputs().map(|(key, _)| key).filter(|key| !declared.contains(key.as_str())).collect();
        let hint = checker.suggestions.of(name, unknown.iter().copied().map(Cow::from), unknown.len());
        let hint = if hint.starts_with("did you") { hint } else { String::new() };
        checker.report(self.finding(severity, FindingCode::RequiredInputMissing, name, message).with_hint(hint));
    }

    /// What a choice brings with it. How a value without an entry is taken depends on the version.
    fn brought(
        &self,
        checker: &mut Checker<'a>,
        name: &str,
        options: &'a [(String, Vec<InputDefinition>)],
        value: &Value,
    ) {
        if !checker.may_spend(options.len()) {
            return;
        }
        let key = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // No text equals a number, so that brings nothing.
        match options.iter().find(|(option, _)| value.is_string() && *option == key) {
            Some((_, brought)) => self.section(checker, brought, &format!("{name}.")),
            None if value.is_array() || !checker.takes(Severity::Warning) => {}
            None => {
                let message = format!("{name} is {}, which the box does not have among its choices", shown(value));
                let finding = self.finding(Severity::Warning, FindingCode::ValueNotInList, name, message);
                let there = options.iter().map(|(option, _)| Cow::from(option));
                let hint = checker.suggestions.of(&key, there, options.len());
                checker.report(finding.with_hint(hint));
            }
        }
    }

    /// How many an input that grows must have depends on the version, too.
    fn growing(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition) {
        let least = input.option("template").and_then(|template| template.get("min")).and_then(Value::as_u64);
        if !checker.may_spend(self.node.inputs().count()) {
            return;
        }
        let prefix = format!("{name}.");
        let there = self.node.inputs().filter(|(key, _)| key.starts_with(&prefix)).count() as u64;
        if let Some(least) = least.filter(|least| input.required && there < *least) {
            let message = format!("{name} must have at least {least} links, and has {there}");
            checker.report(self.finding(Severity::Warning, FindingCode::RequiredInputMissing, name, message));
        }
        for (key, value) in self.node.inputs().filter(|(key, _)| key.starts_with(&prefix)) {
            if let Value::Array(link) = value {
                let wrong = self.source(checker, key, link, Severity::Warning).err();
                wrong.into_iter().for_each(|finding| checker.report(*finding));
            }
        }
    }

    fn link(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition, link: &[Value]) {
        let received = match self.source(checker, name, link, self.severity()) {
            Ok(Some(received)) => received,
            Ok(None) => return,
            Err(finding) => return checker.report(*finding),
        };
        let work = received.type_name.len() * input.type_name.len() / 64;
        if !checker.may_spend(work) || !is_mismatch(&received.type_name, input) {
            return;
        }
        // Nodes of packs have types that equal any other, and checks of their own.
        let is_sure = received.is_core && !may_validate(self.node.class_type(), self.definition);
        let severity = if is_sure { self.severity() } else { Severity::Warning };
        let (source, wanted) = (&received.id, input.link_type());
        let message = format!("{name} takes {wanted}, and node {source} gives {} there", received.type_name);
        checker.report(self.finding(severity, FindingCode::ReturnTypeMismatch, name, message));
    }

    /// What is at the other end of a link; `None` when it is a class that the box lacks.
    fn source(
        &self,
        checker: &Checker<'a>,
        name: &str,
        link: &[Value],
        severity: Severity,
    ) -> Result<Option<Received>, Box<Finding>> {
        let wrong = |severity, code, message: String| Err(Box::new(self.finding(severity, code, name, message)));
        let [source, slot] = link else {
            let message =
                format!("{name} is a list of {}; a link is a node's id and the number of an output", link.len());
            return wrong(severity, FindingCode::BadLinkedInput, message);
        };
        let found = source.as_str().map(NodeId::from).and_then(|id| Some((id.clone(), checker.graph.node(&id)?)));
        let Some((id, node)) = found else {
            let hint = if source.is_number() { "; ids must stand in quotation marks" } else { "" };
            let message = format!("{name} is linked to node {}, which is not in the workflow{hint}", shown(source));
            return wrong(severity, FindingCode::MissingLinkSource, message);
        };
        let Some(definition) = checker.known.definitions.class(node.class_type()) else { return Ok(None) };
        // Packs have lists of outputs that never end, or that give the same for whatever they are asked.
        let of_slot = if definition.is_surely_core { severity } else { Severity::Warning };
        let Some(slot) = slot.as_i64().or_else(|| slot.as_bool().map(i64::from)) else {
            let message = format!("{name} is linked to output {} of node {id}, which is no whole number", shown(slot));
            return wrong(of_slot, FindingCode::BadLinkedInput, message);
        };
        // Python counts from the end where the number is negative.
        let count = i64::try_from(definition.outputs.len()).unwrap_or(i64::MAX);
        let place = if slot < 0 { slot + count } else { slot };
        match usize::try_from(place).ok().and_then(|place| definition.outputs.get(place)) {
            Some(type_name) => {
                Ok(Some(Received { id, type_name: type_name.clone(), is_core: definition.is_surely_core }))
            }
            None => {
                let message =
                    format!("{name} is linked to output {slot} of node {id}, which has {count}, counted from 0");
                wrong(of_slot, FindingCode::BadLinkedInput, message)
            }
        }
    }
}

/// The other end of a link.
struct Received {
    id: NodeId,
    type_name: String,
    is_core: bool,
}
