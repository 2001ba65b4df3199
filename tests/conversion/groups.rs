//! Group nodes, which the recorded cases have only one of.

use comfy_remote::convert::Code;
use serde_json::{Value, json};

use crate::graphs::Drawing;

/// Text and sampler, linked inside; the inner nodes list what could be linked when the group was made.
fn group(config: Value) -> Value {
    json!({
        "nodes": [
            {"id": -1, "type": "Text", "inputs": [{"name": "clip", "type": "CLIP"}], "widgets_values": ["inner"]},
            {"id": -1, "type": "Text", "inputs": [{"name": "clip", "type": "CLIP"}], "widgets_values": ["other"]},
            {
                "id": -1, "type": "Sampler", "widgets_values": [1, "fixed", 20],
                "inputs": [{"name": "model", "type": "MODEL"}, {"name": "positive", "type": "CONDITIONING"}]
            }
        ],
        "links": [[0, 0, 2, 1, 0, "CONDITIONING"]],
        "external": [],
        "config": config
    })
}

fn drawing(class: &str, inputs: &[(&str, &str)], values: Value, group: Value) -> Drawing {
    Drawing::default()
        .node(1, "Loader", &[], &["MODEL", "CLIP", "VAE"], json!(["a"]))
        .node(2, class, inputs, &["CONDITIONING", "LATENT"], values)
        .node(3, "Save", &[("images", "LATENT")], &[], json!(["x"]))
        .link((2, 1), (3, 0))
        .file(json!({"extra": {"groupNodes": {"g": group}}}))
}

const INPUTS: [(&str, &str); 3] = [("clip", "CLIP"), ("Text clip", "CLIP"), ("model", "MODEL")];

#[test]
fn its_nodes_are_numbered_on_and_take_the_values_of_the_group_in_order() {
    for class in ["workflow>g", "workflow/g"] {
        let drawing = drawing(class, &INPUTS, json!(["first", "second", 42, "randomize", 9]), group(json!({})))
            .link((1, 1), (2, 0))
            .link((1, 0), (2, 2));
        assert_eq!(drawing.inputs("7:4"), json!({"text": "first", "clip": ["1", 1]}));
        assert_eq!(drawing.inputs("7:5"), json!({"text": "second"}));
        let sampler = json!({"seed": 42, "steps": 9, "model": ["1", 0], "positive": ["7:4", 0]});
        assert_eq!(drawing.inputs("7:6"), sampler);
        assert_eq!(drawing.inputs("3")["images"], json!(["7:6", 0]));
    }
}

#[test]
fn what_its_author_has_hidden_has_no_place_among_inputs_values_and_outputs() {
    let hidden = json!({
        "0": {"input": {"text": {"visible": false}, "clip": {"visible": false}}},
        "1": {"output": {"0": {"visible": false}}}
    });
    let mut drawing = drawing(
        "workflow>g",
        &[("clip", "CLIP"), ("model", "MODEL")],
        json!(["second", 42, "fixed", 9]),
        group(hidden),
    );
    drawing = drawing.link((1, 1), (2, 0));
    assert_eq!(drawing.inputs("7:4"), json!({"text": "inner"}));
    assert_eq!(drawing.inputs("7:5"), json!({"text": "second", "clip": ["1", 1]}));
    assert_eq!(drawing.inputs("7:6")["seed"], 42);
    // The one output that is left is the sampler's, at the first place.
    assert_eq!(drawing.inputs("3").get("images"), None);
}

#[test]
fn without_values_of_its_own_those_of_the_inner_nodes_count() {
    let drawing = drawing("workflow>g", &INPUTS, Value::Null, group(json!({})));
    assert_eq!(drawing.inputs("7:4")["text"], "inner");
    assert_eq!(drawing.inputs("7:6")["steps"], 20);
}

#[test]
fn a_group_with_a_primitive_is_refused_and_says_so() {
    let mut group = group(json!({}));
    group["nodes"][0] = json!({"id": -1, "type": "PrimitiveNode", "widgets_values": [1, "fixed"]});
    let findings = drawing("workflow>g", &INPUTS, json!([]), group).refusals();
    assert_eq!((findings[0].code, findings[0].node_id.as_str()), (Code::UnsupportedNode, "2"));
    assert!(findings[0].message.contains("PrimitiveNode"));
}
