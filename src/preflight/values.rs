//! What stands in an input as a value: can it be converted, is it in range, is it among the choices?

use std::borrow::Cow;

use serde_json::Value;

use super::{
    Checker, Place,
    choices::in_words,
    python::{self, Converted},
    types::may_validate,
};
use crate::{
    text::clip_to,
    workflow::{Editor, FindingCode, InputDefinition, InputKind, Severity},
};

/// Longest excerpt of a value in a message, in characters.
const SHOWN: usize = 80;

/// From this version on ComfyUI compares the choices of V3 nodes (pull request 11345 of December 2025).
const COMPARES_V3: (u32, u32) = (0, 7);

impl<'a> Place<'a> {
    /// A value that is no link, on an input of this name.
    pub(super) fn value(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition, value: &Value) {
        // How a list is told from a link.
        let value = value.get("__value__").unwrap_or(value);
        if input.is_upload {
            self.file(checker, name, input, value);
            return;
        }
        let converted = match input.type_name.as_str() {
            "INT" => python::int(value),
            "FLOAT" => python::float(value),
            _ => Converted::Unknown,
        };
        if converted == Converted::Fails {
            let wanted = if input.type_name == "INT" { "a whole number" } else { "a number" };
            let message = format!("{name} must be {wanted}, and is {}", shown(value));
            checker.report(self.finding(self.severity(), FindingCode::InvalidInputType, name, message));
            return;
        }
        match &input.kind {
            InputKind::Widget(Editor::Combo) => self.choice(checker, name, input, value),
            InputKind::Widget(_) => self.range(checker, name, input, &converted),
            InputKind::Socket if !matches!(input.type_name.as_str(), "INT" | "FLOAT" | "STRING" | "BOOLEAN" | "*") => {
                let message = format!(
                    "{name} takes a link from a node that gives {}, and has the value {}",
                    input.type_name,
                    shown(value)
                );
                checker.report(self.finding(Severity::Warning, FindingCode::ValueForLink, name, message));
            }
            _ => {}
        }
    }

    /// How bad a value is that a check of the node's own might let through.
    pub(super) fn severity_of_values(&self) -> Severity {
        if may_validate(self.node.class_type(), self.definition) { Severity::Warning } else { self.severity() }
    }

    fn range(&self, checker: &mut Checker<'_>, name: &str, input: &InputDefinition, value: &Converted) {
        let bound = |key: &str| match input.option(key)? {
            Value::Number(number) => Some(python::number(number)).filter(|bound| bound.as_f64().is_some()),
            _ => None,
        };
        let (least, most) = (bound("min"), bound("max"));
        let (code, word, bound) = match (&least, &most) {
            (Some(least), _) if value.is_less(least) => (FindingCode::ValueSmallerThanMin, "at least", least),
            (_, Some(most)) if most.is_less(value) => (FindingCode::ValueBiggerThanMax, "at most", most),
            _ => return,
        };
        let message = format!("{name} must be {word} {}, and is {}", plain(bound), plain(value));
        checker.report(self.finding(self.severity_of_values(), code, name, message));
    }

    fn choice(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition, value: &Value) {
        if !input.is_listed && self.choices_are_elsewhere(input) || checker.lists.has(input, value) {
            return;
        }
        let several = value.as_array().filter(|_| input.flag("multiselect"));
        if several.is_some_and(|values| values.iter().all(|value| checker.lists.has(input, value))) {
            return;
        }
        let severity = match several {
            // Versions differ in how they look at several.
            Some(_) => Severity::Warning,
            None if input.is_listed || compares_v3(checker.known.version) => self.severity_of_values(),
            None => Severity::Warning,
        };
        if !checker.takes(severity) {
            return;
        }
        let message = format!("{name} is {}, which the box does not have among its choices", shown(value));
        let finding = self.finding(severity, FindingCode::ValueNotInList, name, message);
        let given = value.as_str().map_or_else(|| value.to_string().into(), Cow::Borrowed);
        let hint = checker.suggestions.of(&given, in_words(&input.choices), input.choices.len());
        checker.report(finding.with_hint(hint));
    }

    /// Lists that only the browser can get, or that the node makes up as it goes.
    fn choices_are_elsewhere(&self, input: &InputDefinition) -> bool {
        input.choices.is_empty() || input.flag("remote") || input.flag("remote_combo")
    }
}

fn compares_v3(version: Option<&str>) -> bool {
    let mut parts = version.unwrap_or_default().split('.').map(|part| part.parse::<u32>().ok());
    matches!((parts.next(), parts.next()), (Some(Some(major)), Some(Some(minor))) if (major, minor) >= COMPARES_V3)
}

fn plain(value: &Converted) -> String {
    match value {
        Converted::Whole(whole) => whole.to_string(),
        Converted::Real(real) => real.to_string(),
        Converted::Fails | Converted::Unknown => String::new(),
    }
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", clip_to(text, SHOWN)),
        other => clip_to(&other.to_string(), SHOWN),
    }
}
