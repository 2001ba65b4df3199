//! What is found in a graph beforehand, held against what a real ComfyUI's `/prompt` says to it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    far_end::{FarEnd, Kind},
    support::service::Service,
};

/// A sound graph; each row of the table changes something in it.
fn sound() -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
        "2": {"class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": "bilinear", "width": 32, "height": 32, "crop": "disabled"}},
        "3": {"class_type": "ImageBlur", "inputs": {"image": ["2", 0], "blur_radius": 1, "sigma": 1.0}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "table/x"}},
    })
}

/// What ComfyUI must say, so that no row passes for another reason than the one meant.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    /// Takes it.
    Fine,
    /// Refuses it, and what is found beforehand is an error.
    Refused,
    /// Refuses it for what a node of a pack allows or not: found as a warning.
    RefusedAsWarned,
    /// Refuses it for what nothing but the node itself knows.
    RefusedUnforeseen,
}

use Says::{Fine, Refused, RefusedAsWarned, RefusedUnforeseen};

/// Name, changes by JSON pointer (null removes), and what ComfyUI says.
type Row = (&'static str, Vec<(&'static str, Value)>, Says);

fn values() -> Vec<Row> {
    let set = |path, value| vec![(path, value)];
    vec![
        ("sound", vec![], Fine),
        ("whole number in a text", set("/1/inputs/width", json!(" 16 ")), Fine),
        ("whole number as a real one", set("/1/inputs/width", json!(16.9)), Fine),
        ("yes for a number", set("/1/inputs/batch_size", json!(true)), Fine),
        ("number with underscore", set("/1/inputs/width", json!("1_6")), Fine),
        ("no number", set("/1/inputs/width", json!("wide")), Refused),
        ("real number in a text", set("/1/inputs/width", json!("16.5")), Refused),
        ("exponent in a text", set("/1/inputs/width", json!("1e2")), Refused),
        ("object for a number", set("/1/inputs/width", json!({"a": 1})), Refused),
        ("wrapped number", set("/1/inputs/width", json!({"__value__": 16})), Fine),
        ("wrapped list for a number", set("/1/inputs/width", json!({"__value__": [16]})), Refused),
        ("empty text for a number", set("/1/inputs/width", json!("")), Refused),
        ("number too small", set("/1/inputs/width", json!(0)), Refused),
        ("number far too small", set("/1/inputs/width", json!(-100_000)), Refused),
        ("number too big", set("/1/inputs/width", json!(1_000_000)), Refused),
        ("number that is too small once it is whole", set("/1/inputs/width", json!(0.9)), Refused),
        ("real number at its most", set("/3/inputs/sigma", json!(10)), Fine),
        ("real number too big", set("/3/inputs/sigma", json!(10.5)), Refused),
        ("real number in a text too big", set("/3/inputs/sigma", json!("1e9")), Refused),
        ("infinity in a text", set("/3/inputs/sigma", json!("inf")), Refused),
        ("comma in a number", set("/3/inputs/sigma", json!("1,5")), Refused),
        ("no choice", set("/2/inputs/upscale_method", json!("bilinear ")), Refused),
        ("choice in capitals", set("/2/inputs/upscale_method", json!("Bilinear")), Refused),
        ("number for a choice", set("/2/inputs/upscale_method", json!(1)), Refused),
        ("object for a choice", set("/2/inputs/upscale_method", json!({"a": 1})), Refused),
        ("number for a text", set("/4/inputs/filename_prefix", json!(7)), Fine),
        ("object for a text", set("/4/inputs/filename_prefix", json!({"a": 1})), Fine),
        ("unknown input", set("/2/inputs/nothing", json!("x")), Fine),
        ("value missing", set("/1/inputs/width", Value::Null), Refused),
        ("choice missing", set("/2/inputs/crop", Value::Null), Refused),
        ("nothing given", set("/1/inputs", json!({})), Refused),
        ("no inputs at all", set("/1/inputs", Value::Null), Refused),
        ("no inputs at all on an output", set("/4/inputs", Value::Null), Refused),
    ]
}

fn links() -> Vec<Row> {
    let set = |path, value| vec![(path, value)];
    let mask = json!({"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 16, "height": 16}});
    vec![
        ("link missing", set("/2/inputs/image", Value::Null), Refused),
        ("output's link missing", set("/4/inputs/images", Value::Null), Refused),
        ("link to nowhere", set("/2/inputs/image", json!(["99", 0])), Refused),
        ("output's link to nowhere", set("/4/inputs/images", json!(["99", 0])), Refused),
        ("id as a number", set("/2/inputs/image", json!([1, 0])), Refused),
        ("output that is not there", set("/2/inputs/image", json!(["1", 1])), Refused),
        ("output counted from the end", set("/2/inputs/image", json!(["1", -1])), Fine),
        ("output beyond the beginning", set("/2/inputs/image", json!(["1", -2])), Refused),
        ("output as a text", set("/2/inputs/image", json!(["1", "0"])), Refused),
        ("output as a fraction", set("/2/inputs/image", json!(["1", 0.0])), Refused),
        ("link too short", set("/2/inputs/image", json!(["1"])), Refused),
        ("link too long", set("/2/inputs/image", json!(["1", 0, 0])), Refused),
        ("empty link", set("/2/inputs/image", json!([])), Refused),
        ("mask for an image", vec![("/5", mask.clone()), ("/2/inputs/image", json!(["5", 0]))], Refused),
        ("mask for a number", vec![("/5", mask.clone()), ("/2/inputs/width", json!(["5", 0]))], Refused),
        ("image for a choice", set("/2/inputs/crop", json!(["1", 0])), Refused),
        ("to itself", set("/2/inputs/image", json!(["2", 0])), Refused),
        ("in a circle", set("/2/inputs/image", json!(["3", 0])), Refused),
        (
            "a number by link",
            vec![
                ("/5", json!({"class_type": "PrimitiveInt", "inputs": {"value": 16}})),
                ("/2/inputs/width", json!(["5", 0])),
            ],
            Fine,
        ),
        (
            "a number by link for a real one",
            vec![
                ("/5", json!({"class_type": "PrimitiveInt", "inputs": {"value": 16}})),
                ("/3/inputs/sigma", json!(["5", 0])),
            ],
            Refused,
        ),
    ]
}

fn nodes() -> Vec<Row> {
    let set = |path, value| vec![(path, value)];
    let wrong = json!({"class_type": "ImageScale", "inputs": {"image": ["99", 0], "width": "x"}});
    let bad_save = json!({"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}});
    let load = |name: &str| vec![("/1", json!({"class_type": "LoadImage", "inputs": {"image": name}}))];
    vec![
        ("unknown class", set("/3/class_type", json!("ImageBlurr")), Refused),
        ("unknown class on a node that will not run", set("/9", json!({"class_type": "Nope", "inputs": {}})), Refused),
        ("all wrong on a node that will not run", set("/9", wrong), Fine),
        ("no output", set("/4/class_type", json!("ImageInvert")), Refused),
        ("a second output without its link", set("/9", bad_save), Refused),
        (
            "a model that is not there",
            set("/9", json!({"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}})),
            Fine,
        ),
        ("a picture that is not there", load("not there.png"), Refused),
        ("a picture in no folder", load("nowhere/a.png"), Refused),
        ("a picture in a folder", load("table_sub/deep.png"), Fine),
        ("a picture among the outputs that is not there", load("nothing.png [output]"), Refused),
        (
            "three faults at once",
            vec![("/1/inputs/width", json!(0)), ("/2/inputs/crop", json!("x")), ("/3/inputs/sigma", Value::Null)],
            Refused,
        ),
    ]
}

/// Nodes of a pack, of which only they themselves know what they allow.
fn packs() -> Vec<Row> {
    let itself = |number: i64, choice: &str, other: &str| {
        let inputs = json!({"image": ["2", 0], "number": number, "choice": choice, "other": other});
        vec![("/3", json!({"class_type": "RigLooksItself", "inputs": inputs}))]
    };
    let all = json!({"class_type": "RigLooksAtAll", "inputs": {"image": ["2", 0], "number": -5, "choice": "z"}});
    let mask = json!({"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 16, "height": 16}});
    let anything = json!({"class_type": "RigTakesAnything", "inputs": {"image": ["5", 0]}});
    let steps = json!({"class_type": "RigSlowSteps", "inputs": {"image": ["2", 0], "steps": 0, "step_ms": 0}});
    let mut without_image = steps.clone();
    without_image["inputs"] = json!({"steps": 1, "step_ms": 0});
    let mut no_number = steps.clone();
    no_number["inputs"]["steps"] = json!("many");
    let loads = |image| vec![("/1", json!({"class_type": "LoadImage", "inputs": {"image": image}}))];
    vec![
        ("a number that the node allows itself", itself(500, "a", "a"), Fine),
        ("a choice that the node allows itself", itself(1, "z", "b"), Fine),
        ("a number that the node refuses itself", itself(5_000, "a", "a"), RefusedAsWarned),
        ("a choice that it does not look at", itself(1, "a", "z"), RefusedAsWarned),
        ("values of a node that looks at all", vec![("/3", all)], Fine),
        ("a link that the node allows itself", vec![("/5", mask), ("/6", anything)], Fine),
        ("a number of a pack's node too small", vec![("/3", steps)], RefusedAsWarned),
        ("a pack's node without its link", vec![("/3", without_image)], Refused),
        ("no number for a pack's node", vec![("/3", no_number)], Refused),
        ("a folder for a picture", loads("table_sub"), Fine),
        ("a folder with a dot for a picture", loads("table_sub/frames.v2"), Fine),
        ("nothing but a mark for a picture", loads("[output]"), Fine),
        ("a mark that takes a letter with it", loads("table_sub/deep.pngX[input]"), Fine),
        ("a mark without a blank", loads("table_sub/deep.png[input]"), RefusedAsWarned),
        ("a folder anywhere for a picture", loads("/usr"), Fine),
        ("a number between odd blanks", vec![("/1/inputs/width", json!("\u{1c}16\u{1f}"))], Refused),
        (
            "a picture that is none",
            vec![("/1", json!({"class_type": "LoadImage", "inputs": {"image": 7}}))],
            RefusedUnforeseen,
        ),
    ]
}

#[tokio::test]
async fn findings_are_what_a_real_comfyui_refuses() {
    let Some(far) = FarEnd::start(Kind::ComfyUi).await else { return };
    let folder = far.input_dir().join("table_sub");
    std::fs::create_dir_all(folder.join("frames.v2")).unwrap();
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), folder.join("deep.png")).unwrap();
    let (service, files) = (Service::start(&[]), tempfile::tempdir().unwrap());
    let rows: Vec<Row> = [values(), links(), nodes(), packs()].concat();
    assert!(rows.len() >= 60, "{}", rows.len());
    let mut wrong = Vec::new();
    for (name, changes, says) in &rows {
        let graph = changed(changes);
        let answer = submit(&far, &graph).await;
        let mut request = far.request(files.path(), &graph);
        request["dry_run"] = json!(true);
        let (status, plan) = service.client().execute(&request).await;
        assert_eq!(status, 200, "{name}: {plan:#}");
        let problems = compare(&answer, &plan, *says);
        if !problems.is_empty() {
            wrong.push(format!("{name}: {problems:?}\n  ComfyUI: {answer}\n  findings: {}", plan["findings"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn changed(changes: &[(&str, Value)]) -> Value {
    let mut graph = sound();
    for (path, value) in changes {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = graph.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => drop(parent.shift_remove(key)),
            value => drop(parent.insert(key.to_owned(), value.clone())),
        }
    }
    graph
}

/// ComfyUI's answer. What it takes runs: it is nothing but small pictures.
async fn submit(far: &FarEnd, graph: &Value) -> Value {
    let url = format!("http://127.0.0.1:{}/prompt", far.port());
    let body = json!({"prompt": graph, "client_id": "table"});
    let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap().text().await.unwrap();
    // Some faults make it stumble: then the answer is a status 500 and a text.
    serde_json::from_str(&answer).unwrap_or_else(|_| json!({"error": answer}))
}

fn compare(answer: &Value, plan: &Value, says: Says) -> Vec<String> {
    let mut problems = Vec::new();
    let node_errors = answer["node_errors"].as_object().cloned().unwrap_or_default();
    let refused = answer.get("error").is_some() || !node_errors.is_empty();
    let valid = plan["valid"] == true;
    if refused != (says != Fine) {
        problems.push("ComfyUI does not say what the table says".to_owned());
    }
    if valid != (says != Refused) {
        problems.push(format!("found to be {}", if valid { "fine" } else { "wrong" }));
    }
    let findings = plan["findings"].as_array().unwrap();
    let found = |node: &str, code: &str, input: &Value| {
        findings.iter().any(|finding| {
            let same_input = input.is_null() || finding["input"] == *input;
            finding["node_id"] == node && finding["code"] == code && same_input
        })
    };
    let knowable = |kind: &str| {
        matches!(
            kind,
            "required_input_missing"
                | "bad_linked_input"
                | "return_type_mismatch"
                | "invalid_input_type"
                | "value_smaller_than_min"
                | "value_bigger_than_max"
                | "value_not_in_list"
        )
    };
    for (node, errors) in &node_errors {
        for error in errors["errors"].as_array().unwrap() {
            let kind = error["type"].as_str().unwrap();
            if knowable(kind) && !found(node, kind, &error["extra_info"]["input_name"]) {
                problems.push(format!("{kind} on node {node} is not among the findings"));
            }
        }
    }
    // Each error is on a node that ComfyUI blames, unless it blames the whole, or fails on the way there.
    let stumbled = node_errors.values().any(|node| node.to_string().contains("exception_during"));
    let blamed: BTreeSet<&str> = node_errors.keys().map(String::as_str).collect();
    for finding in findings.iter().filter(|finding| finding["severity"] == "error") {
        let node = finding["node_id"].as_str().unwrap_or_default();
        if !blamed.is_empty() && !stumbled && !blamed.contains(node) {
            problems.push(format!("an error on node {node}, which ComfyUI does not blame"));
        }
    }
    problems
}
