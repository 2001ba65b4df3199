//! The recorded cases, and when a prompt is the same as the recorded one.

use std::{fs::File, io::Read, path::Path};

use comfy_remote::convert::NodeDefinitions;
use flate2::read::GzDecoder;
use serde_json::{Map, Value};

/// A workflow and the prompt that the front end made of it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) ui: Value,
    pub(crate) api: Value,
}

/// All cases of a set.
pub(crate) fn cases(set: &str) -> Vec<Case> {
    let text = unpacked(&format!("{set}.jsonl.gz"));
    text.lines()
        .map(|line| {
            let mut case: Map<String, Value> = serde_json::from_str(line).unwrap();
            let name = case["name"].as_str().unwrap().to_owned();
            let mut take = |key: &str| case.remove(key).unwrap();
            Case { name, ui: take("ui"), api: take("api") }
        })
        .collect()
}

/// The node definitions that a version of the front end had.
pub(crate) fn definitions(version: &str) -> NodeDefinitions {
    NodeDefinitions::read(&serde_json::from_str(&unpacked(&format!("object_info.{version}.json.gz"))).unwrap())
}

fn unpacked(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conversion").join(name);
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

/// Where a prompt differs from the recorded one: ids, classes and inputs count, titles do not.
pub(crate) fn differences(wanted: &Value, got: &Map<String, Value>) -> Vec<String> {
    let wanted = wanted.as_object().unwrap();
    let mut found: Vec<String> =
        got.keys().filter(|id| !wanted.contains_key(*id)).map(|id| format!("{id} is too much")).collect();
    for (id, node) in wanted {
        let Some(other) = got.get(id) else {
            found.push(format!("{id} is missing"));
            continue;
        };
        if node["class_type"] != other["class_type"] {
            found.push(format!("{id} is a {}, not a {}", other["class_type"], node["class_type"]));
        }
        let (inputs, others) = (node["inputs"].as_object().unwrap(), other["inputs"].as_object().unwrap());
        found.extend(
            others.keys().filter(|key| !inputs.contains_key(*key)).map(|key| format!("{id}.{key} is too much")),
        );
        for (key, value) in inputs {
            match others.get(key) {
                None => found.push(format!("{id}.{key} is missing")),
                Some(other) if !same(value, other) => found.push(format!("{id}.{key} is {other}, not {value}")),
                Some(_) => {}
            }
        }
    }
    found
}

/// Equal as JSON, with numbers as doubles: those that went through a browser are.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}
