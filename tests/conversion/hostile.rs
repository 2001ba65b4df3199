//! Files that were made to do harm, or were just broken on the way: a conversion ends, and what it gives can be sent.

use std::sync::LazyLock;

use comfy_remote::convert::{Code, ConvertError, NodeDefinitions, Options, convert, extract::extract};
use proptest::{prelude::*, sample::Index};
use serde_json::{Map, Value, json};

use crate::{
    cases::{cases, definitions},
    graphs::Drawing,
};

static DEFINITIONS: LazyLock<NodeDefinitions> = LazyLock::new(|| definitions("1.58"));

/// Every graph of one feature, and some templates.
static FILES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let templates = cases("templates").into_iter().step_by(20);
    cases("handmade").into_iter().chain(templates).map(|case| case.ui).collect()
});

/// One change to a file: where, and what is put there.
#[derive(Debug, Clone)]
enum Change {
    Put(Index, Value),
    Remove(Index),
    /// What stands at the first place is put at the second too.
    Copy(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-25_i64..150).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        any::<u64>().prop_map(Value::from),
        "[a-zA-Z{}|%/*. ]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!("Reroute")),
        Just(json!("PrimitiveNode")),
        Just(json!([["-1", "text"], [3, "seed"], []])),
    ];
    prop_oneof![
        4 => (any::<Index>(), value).prop_map(|(at, value)| Change::Put(at, value)),
        1 => any::<Index>().prop_map(Change::Remove),
        4 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Copy(from, to)),
    ]
}

/// The places of all values in a file, but for what is only drawn.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        if !matches!(key, "pos" | "size" | "flags" | "groups" | "bounding" | "config") {
            let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            into.push(at.clone());
            places(value, &at, into);
        }
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(key, value)| below(&key.to_string(), value)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| below(key, value)),
        _ => {}
    }
}

fn apply(file: &mut Value, change: &Change) {
    let mut all = Vec::new();
    places(file, "", &mut all);
    if all.is_empty() {
        return;
    }
    match change {
        Change::Put(at, value) => *file.pointer_mut(at.get(&all).as_str()).unwrap() = value.clone(),
        Change::Copy(from, to) => {
            let value = file.pointer(from.get(&all).as_str()).unwrap().clone();
            *file.pointer_mut(to.get(&all).as_str()).unwrap() = value;
        }
        Change::Remove(at) => {
            let (parent, key) = at.get(&all).rsplit_once('/').unwrap();
            match file.pointer_mut(parent).unwrap() {
                Value::Array(items) => _ = items.remove(key.parse().unwrap()),
                Value::Object(fields) => _ = fields.remove(&key.replace("~1", "/").replace("~0", "~")),
                other => panic!("{other} has nothing in it"),
            }
        }
    }
}

/// Whether the server could read it: every node has a class and inputs, every list in them is a link to another node.
fn assert_whole(prompt: &Map<String, Value>) {
    for (id, node) in prompt {
        assert!(node["class_type"].is_string(), "{id} has no class");
        for (input, value) in node["inputs"].as_object().unwrap() {
            let Value::Array(link) = value else { continue };
            let [Value::String(from), slot] = link.as_slice() else { panic!("{id}.{input} is {value}") };
            assert!(prompt.contains_key(from), "{id}.{input} links to {from}, which is not there");
            assert!(slot.is_u64(), "{id}.{input} is {value}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_broken_file_is_refused_or_gives_a_prompt_whose_links_lead_somewhere(
        file in any::<Index>(),
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let mut file = file.get(&FILES).clone();
        for change in &changes {
            apply(&mut file, change);
        }
        match convert(&file, &DEFINITIONS, &Options::default()) {
            Ok(conversion) => assert_whole(&conversion.prompt),
            Err(ConvertError::Refused(findings)) => prop_assert!(!findings.is_empty()),
            Err(_) => {}
        }
    }

    #[test]
    fn any_bytes_behind_the_head_of_a_picture_are_looked_through_without_harm(
        head in prop::sample::select(vec![
            &b"\x89PNG\r\n\x1a\n"[..],
            b"\x89PNG\r\n\x1a\n\0\0\0\x20zTXtworkflow\0\0",
            b"RIFF\x40\0\0\0WEBPEXIF\x30\0\0\0II\x2a\0\x08\0\0\0",
            b"RIFF\x40\0\0\0WEBP",
            b"{\"nodes\": [",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let found = extract(&[head, &rest].concat());
        prop_assert!(found.is_ok() || found.is_err());
    }
}

#[test]
fn reroutes_and_bypassed_nodes_that_lead_back_to_themselves_are_refused() {
    let drawing = Drawing::default()
        .node(1, "Sampler", &[("model", "MODEL")], &[], json!([1, "fixed", 2]))
        .node(2, "Reroute", &[("", "*")], &["*"], Value::Null)
        .node(3, "Power Lora Loader (rgthree)", &[("model", "MODEL")], &["MODEL"], json!([]))
        .with(json!({"mode": 4}))
        .link((2, 0), (3, 0))
        .link((3, 0), (2, 0))
        .link((2, 0), (1, 0));
    let findings = drawing.refusals();
    assert_eq!((findings[0].code, findings[0].input.as_deref()), (Code::LinkCycle, Some("model")));
}

fn subgraph(id: &str, holds: &[&str]) -> Value {
    let nodes: Vec<Value> = holds.iter().enumerate().map(|(at, class)| json!({"id": at + 1, "type": class})).collect();
    json!({"id": id, "nodes": nodes, "links": [], "inputs": [], "outputs": []})
}

fn with_subgraphs(subgraphs: &[Value]) -> Drawing {
    let first = subgraphs[0]["id"].as_str().unwrap().to_owned();
    let definitions = json!({"definitions": {"subgraphs": subgraphs}});
    Drawing::default().node(500, &first, &[], &[], json!([])).file(definitions)
}

#[test]
fn a_subgraph_that_holds_itself_is_refused() {
    for subgraphs in [vec![subgraph("a", &["a"])], vec![subgraph("a", &["b"]), subgraph("b", &["a"])]] {
        let findings = with_subgraphs(&subgraphs).refusals();
        assert_eq!(findings[0].code, Code::SubgraphCycle);
        assert!(findings[0].message.contains("holds itself"));
    }
}

#[test]
fn subgraphs_that_multiply_are_refused_before_they_are_made() {
    let names: Vec<String> = (0..20).map(|level| format!("level {level}")).collect();
    let mut subgraphs: Vec<Value> = names.windows(2).map(|pair| subgraph(&pair[0], &[pair[1].as_str(); 10])).collect();
    subgraphs.push(subgraph(&names[19], &["Loader"]));
    let error = with_subgraphs(&subgraphs).convert().unwrap_err();
    assert!(matches!(error, ConvertError::TooLarge));
}

/// A file in which one subgraph is used ten thousand times.
fn used_often(mut subgraph: Value, values: &Value) -> Value {
    subgraph["id"] = json!("often");
    let nodes: Vec<Value> = (1000..11_000)
        .map(|id| json!({"id": id, "type": "often", "properties": {}, "widgets_values": values}))
        .collect();
    json!({"nodes": nodes, "links": [], "definitions": {"subgraphs": [subgraph]}})
}

#[test]
fn much_that_is_said_once_and_used_often_is_refused() {
    let text = "x".repeat(1 << 20);
    let long_text = json!({"nodes": [{"id": 1, "type": "Text", "widgets_values": [text]}], "inputs": []});
    let names: Vec<Value> = (0..2000).map(|at| json!({"name": format!("in {at}"), "type": "MODEL"})).collect();
    let wide = json!({"nodes": [{"id": 1, "type": "Sampler", "inputs": names}], "inputs": names});
    let links: Vec<Value> = (0..2000).map(|slot| json!([slot, -10, slot, 1, 0, "STRING"])).collect();
    let fed = json!({
        "nodes": [{"id": 1, "type": "Text", "inputs": [{"name": "text", "type": "STRING", "link": 0}]}],
        "links": links, "inputs": names
    });
    for (file, values) in [(long_text, json!([])), (wide, json!([])), (fed, json!(["y".repeat(1 << 10)]))] {
        let file = used_often(file, &values);
        let error = convert(&file, &crate::graphs::few(), &Options::default()).unwrap_err();
        assert!(matches!(error, ConvertError::TooLarge), "{error}");
    }
}

#[test]
fn a_group_node_that_is_used_often_is_refused_too() {
    let group = json!({"nodes": [{"id": -1, "type": "Text", "widgets_values": ["x".repeat(1 << 20)]}], "links": []});
    let nodes: Vec<Value> = (0..300).map(|id| json!({"id": id, "type": "workflow>g"})).collect();
    let file = json!({"nodes": nodes, "links": [], "extra": {"groupNodes": {"g": group}}});
    let error = convert(&file, &crate::graphs::few(), &Options::default()).unwrap_err();
    assert!(matches!(error, ConvertError::TooLarge), "{error}");
}

#[test]
fn subgraphs_that_stand_too_deep_in_one_another_are_refused() {
    let names: Vec<String> = (0..60).map(|level| format!("level {level}")).collect();
    let mut subgraphs: Vec<Value> = names.windows(2).map(|pair| subgraph(&pair[0], &[&pair[1]])).collect();
    subgraphs.push(subgraph(&names[59], &["Loader"]));
    assert_eq!(with_subgraphs(&subgraphs).refusals()[0].code, Code::SubgraphCycle);
}

#[test]
fn long_chains_and_wide_graphs_are_converted() {
    let mut drawing = Drawing::default().node(1, "Loader", &[], &["MODEL"], json!(["a"]));
    for id in 2..=3000 {
        drawing = drawing.node(id, "Reroute", &[("", "*")], &["*"], Value::Null);
    }
    drawing = drawing.node(4000, "Sampler", &[("model", "MODEL")], &[], json!([1, "fixed", 2]));
    let mut file = drawing.value();
    let mut links: Vec<Value> = (1..3000).map(|id| json!([id, id, 0, id + 1, 0, "*"])).collect();
    links.push(json!([3000, 3000, 0, 4000, 0, "*"]));
    file["links"] = json!(links);
    let conversion = convert(&file, &crate::graphs::few(), &Options::default()).unwrap();
    assert_eq!(conversion.prompt["4000"]["inputs"]["model"], json!(["1", 0]));
}
