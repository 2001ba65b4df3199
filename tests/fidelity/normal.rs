//! Takes out of what servers said whatever may differ between two runs, so that the rest can be compared for equality.
//!
//! Replaced: ids, timestamps, queue numbers, counters and random letters in file names, tracebacks, the text of
//! tensors. Sorted: lists that Python makes from sets. Everything else must be equal, the spelling of numbers included.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Replacements for ids that differ between runs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Names(Vec<(String, String)>);

impl Names {
    pub(crate) fn add(&mut self, id: &str, kind: &str) {
        // The empty id is legal, and stays empty.
        if !id.is_empty() && !self.0.iter().any(|(known, _)| known == id) {
            let count = self.0.iter().filter(|(_, name)| name.starts_with(&format!("<{kind}"))).count();
            self.0.push((id.to_owned(), format!("<{kind} {}>", count + 1)));
        }
    }

    /// Replaces a text by a fixed one.
    pub(crate) fn alias(&mut self, text: &str, name: &str) {
        self.0.push((text.to_owned(), name.to_owned()));
    }

    fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (id, name) in &self.0 {
            // Short ids such as "123" only count when they stand alone.
            if text == *id || id.len() >= 8 {
                text = text.replace(id.as_str(), name);
            }
        }
        text
    }
}

/// All that was said in one run.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) streams: BTreeMap<String, Vec<Value>>,
    pub(crate) answers: Vec<Value>,
    pub(crate) names: Names,
}

impl Recording {
    /// The comparable form.
    pub(crate) fn normal(&self) -> (BTreeMap<String, Vec<Value>>, Vec<Value>) {
        let list = |values: &[Value]| values.iter().map(|value| normal(value, &self.names)).collect::<Vec<_>>();
        let streams = self.streams.iter().map(|(source, stream)| (source.clone(), list(stream))).collect();
        (streams, list(&self.answers))
    }

    pub(crate) fn each_message(&mut self, change: impl Fn(&mut Value)) {
        self.streams.values_mut().flatten().for_each(change);
    }

    pub(crate) fn drop_messages(&mut self, unwanted: impl Fn(&Value) -> bool) {
        for stream in self.streams.values_mut() {
            stream.retain(|message| !unwanted(message));
        }
    }
}

impl Recording {
    /// Whether more than one node reported a result. ComfyUI keeps the outputs to run in a set, whose order differs
    /// from one start of the server to the next.
    pub(crate) fn has_several_outputs(&self) -> bool {
        let executed = self.streams.values().flatten().filter(|message| message["type"] == "executed");
        let nodes: std::collections::BTreeSet<String> =
            executed.map(|message| message["data"]["node"].to_string()).collect();
        nodes.len() > 1
    }

    /// Keeps which messages came, but not in which order; the snapshots in between depend on it and go.
    pub(crate) fn forget_order(&mut self) {
        self.drop_messages(|message| message["type"] == "progress_state");
        for stream in self.streams.values_mut() {
            stream.sort_by_key(Value::to_string);
        }
    }
}

pub(crate) fn normal(value: &Value, names: &Names) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (names.apply(key), field(key, value, names))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| normal(item, names)).collect()),
        Value::String(text) => names.apply(text).into(),
        other => other.clone(),
    }
}

fn field(key: &str, value: &Value, names: &Names) -> Value {
    match (key, value) {
        ("timestamp" | "create_time", Value::Number(_)) => json!("<time>"),
        ("number", Value::Number(number)) if number.is_i64() => json!("<number>"),
        ("filename", Value::String(name)) => file_name(name).into(),
        ("traceback", Value::Array(frames)) => {
            assert!(frames.iter().all(Value::is_string), "a traceback is a list of texts: {value}");
            json!("<traceback>")
        }
        ("executed" | "current_outputs", Value::Array(items)) => sorted(items.clone()),
        ("errors", Value::Array(items)) => sorted(items.iter().map(|item| normal(item, names)).collect()),
        ("current_inputs", Value::Object(inputs)) => {
            inputs.iter().map(|(k, v)| (k.clone(), tensors(v))).collect::<Map<_, _>>().into()
        }
        ("prompt", Value::Array(item)) => queue_item(item, names),
        ("queue_running" | "queue_pending", Value::Array(items)) => items
            .iter()
            .map(|item| item.as_array().map_or_else(|| item.clone(), |item| queue_item(item, names)))
            .collect(),
        (_, other) => normal(other, names),
    }
}

/// `[number, id, graph, extra_data, outputs]`.
fn queue_item(item: &[Value], names: &Names) -> Value {
    let mut item: Vec<Value> = item.iter().map(|part| normal(part, names)).collect();
    if let Some(number @ Value::Number(_)) = item.first_mut()
        && number.is_i64()
    {
        *number = json!("<number>");
    }
    if let Some(graph) = item.get_mut(2)
        && graph.as_object().is_some_and(|nodes| nodes.len() == 100)
    {
        *graph = json!(crate::replay::CHAIN);
    }
    if let Some(Value::Array(outputs)) = item.get_mut(4) {
        let list = std::mem::take(outputs);
        item[4] = sorted(list);
    }
    item.into()
}

fn sorted(mut items: Vec<Value>) -> Value {
    items.sort_by_key(Value::to_string);
    items.into()
}

fn tensors(value: &Value) -> Value {
    let tensor = |item: &Value| item.as_str().is_some_and(|text| text.starts_with("tensor("));
    match value {
        Value::Array(items) => {
            items.iter().map(|item| if tensor(item) { json!("<tensor>") } else { item.clone() }).collect()
        }
        other => other.clone(),
    }
}

/// `rig_00012_.png` and `ComfyUI_temp_abcde_00001_.png`.
fn file_name(name: &str) -> String {
    let Some(stem) = name.strip_suffix("_.png") else { return name.to_owned() };
    let Some((prefix, counter)) = stem.rsplit_once('_') else { return name.to_owned() };
    if counter.len() != 5 || !counter.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.to_owned();
    }
    match prefix.strip_prefix("ComfyUI_temp_") {
        Some(letters) if letters.len() == 5 && letters.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            "ComfyUI_temp_<random>_<counter>_.png".to_owned()
        }
        _ => format!("{prefix}_<counter>_.png"),
    }
}

/// Panics with the first difference.
pub(crate) fn assert_same(what: &str, expected: &Recording, got: &Recording) {
    let ((expected_streams, expected_answers), (got_streams, got_answers)) = (expected.normal(), got.normal());
    assert_lists(&format!("{what}: HTTP answers"), &expected_answers, &got_answers);
    for (source, expected) in &expected_streams {
        let got = got_streams.get(source).unwrap_or_else(|| panic!("{what}: no socket {source}"));
        assert_lists(&format!("{what}: socket {source}"), expected, got);
    }
}

fn assert_lists(what: &str, expected: &[Value], got: &[Value]) {
    for (index, (expected, got)) in expected.iter().zip(got).enumerate() {
        assert!(
            expected == got,
            "{what}, item {index}\nexpected {expected}\ngot      {got}\n{}",
            difference("", expected, got)
        );
    }
    let (missing, extra) = (expected.get(got.len()), got.get(expected.len()));
    assert!(
        expected.len() == got.len(),
        "{what}: {} instead of {} items\nmissing {missing:?}\nextra {extra:?}",
        got.len(),
        expected.len()
    );
}

/// Where two values differ first.
fn difference(path: &str, expected: &Value, got: &Value) -> String {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            let keys = expected.keys().chain(got.keys());
            let differs = |key: &&String| expected.get(*key) != got.get(*key);
            keys.into_iter().find(differs).map_or_else(String::new, |key| {
                let value = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_else(|| json!("<absent>"));
                difference(&format!("{path}.{key}"), &value(expected), &value(got))
            })
        }
        (Value::Array(expected), Value::Array(got)) if expected.len() == got.len() => {
            let position = expected.iter().zip(got).position(|(expected, got)| expected != got);
            position.map_or_else(String::new, |at| difference(&format!("{path}[{at}]"), &expected[at], &got[at]))
        }
        _ => format!("at {path}: expected {expected}, got {got}"),
    }
}
