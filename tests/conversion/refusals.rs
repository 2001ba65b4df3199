//! What is refused, what is pointed out, and values at their limits.

use chrono::NaiveDate;
use comfy_remote::convert::{Code, ConvertError, NodeDefinitions, Options, Severity, convert};
use serde_json::{Value, json};

use crate::graphs::{Drawing, few};

#[test]
fn a_class_without_definition_is_refused_with_node_title_and_hint() {
    let drawing = Drawing::default()
        .node(7, "Gone", &[], &["IMAGE"], json!([]))
        .with(json!({"title": "My node"}))
        .node(8, "Gone", &[], &["IMAGE"], json!([]))
        .with(json!({"mode": 2}));
    let findings = drawing.refusals();
    assert_eq!(findings.len(), 1);
    let told = serde_json::to_value(&findings[0]).unwrap();
    assert_eq!(told["severity"], "error");
    assert_eq!(told["code"], "missing_node_type");
    assert_eq!(
        (&told["node_id"], &told["node_type"], &told["title"]),
        (&json!("7"), &json!("Gone"), &json!("My node"))
    );
    assert_eq!(told["hint"], "install the pack that brings it, or mute the node in ComfyUI and save again");
    for (key, pack) in [("cnr_id", "comfyui-kjnodes"), ("aux_id", "someone/some-nodes")] {
        let known =
            Drawing::default().node(7, "Gone", &[], &["IMAGE"], json!([])).with(json!({"properties": {key: pack}}));
        assert!(known.refusals()[0].hint.starts_with(&format!("install the pack {pack} that brings it")), "{pack}");
    }
    let own = json!({"properties": {"cnr_id": "comfy-core"}});
    let own = Drawing::default().node(7, "Gone", &[], &["IMAGE"], json!([])).with(own);
    let hint = &own.refusals()[0].hint;
    assert!(hint.starts_with("update ComfyUI on the box, which it comes with (if it is an API node, "), "{hint}");
    let error = drawing.convert().unwrap_err().to_string();
    assert!(error.starts_with("cannot be converted: node 7 (My node, Gone): the class Gone is not among"), "{error}");
}

#[test]
fn what_is_not_a_workflow_in_ui_format_is_told() {
    for other in [json!({}), json!([]), json!({"1": {"class_type": "A"}}), json!({"nodes": {}}), json!(null)] {
        let error = convert(&other, &few(), &Options::default()).unwrap_err();
        assert!(matches!(error, ConvertError::NotUi), "{other}");
    }
}

#[test]
fn a_file_whose_nodes_all_rest_gives_an_empty_prompt() {
    let drawing = Drawing::default().node(1, "Loader", &[], &[], json!(["a"])).with(json!({"mode": 4}));
    assert!(drawing.convert().unwrap().prompt.is_empty());
}

#[test]
fn a_link_from_a_node_that_is_not_in_the_file_is_refused() {
    let mut file = Drawing::default().node(2, "Sampler", &[("model", "MODEL")], &[], json!([1, "fixed", 2])).value();
    file["links"] = json!([[1, 99, 0, 2, 0, "MODEL"]]);
    file["nodes"][0]["inputs"][0]["link"] = json!(1);
    let Err(ConvertError::Refused(findings)) = convert(&file, &few(), &Options::default()) else { panic!("converted") };
    assert_eq!((findings[0].code, findings[0].input.as_deref()), (Code::MissingLinkSource, Some("model")));
    assert!(findings[0].message.contains("node 99"));
}

#[test]
fn two_nodes_of_one_id_are_refused() {
    let drawing =
        Drawing::default().node(1, "Loader", &[], &[], json!(["a"])).node(1, "Loader", &[], &[], json!(["b"]));
    assert_eq!(drawing.refusals()[0].code, Code::DoubledId);
}

#[test]
fn seeds_of_64_bits_and_other_numbers_keep_every_digit() {
    let text = r#"{"nodes": [{"id": 1, "type": "Sampler", "inputs": [], "widgets_values": [18446744073709551615, "fixed", 0.10000000000000000000001]}], "links": []}"#;
    let file: Value = serde_json::from_str(text).unwrap();
    let conversion = convert(&file, &few(), &Options::default()).unwrap();
    let inputs = conversion.prompt["1"]["inputs"].to_string();
    assert_eq!(inputs, r#"{"seed":18446744073709551615,"steps":0.10000000000000000000001}"#);
}

#[test]
fn a_link_in_the_table_reaches_the_input_that_names_it_though_its_place_has_changed() {
    // The file lists two inputs in another order than when the link was made.
    let mut file = Drawing::default()
        .node(1, "Text", &[], &["CONDITIONING"], json!(["a"]))
        .node(2, "Text", &[], &["CONDITIONING"], json!(["b"]))
        .node(3, "Sampler", &[("negative", "CONDITIONING"), ("positive", "CONDITIONING")], &[], json!([1, "fixed", 2]))
        .value();
    file["links"] = json!([[5, 1, 0, 3, 0, "CONDITIONING"], [6, 2, 0, 3, 1, "CONDITIONING"]]);
    file["nodes"][2]["inputs"][1]["link"] = json!(5);
    file["nodes"][2]["inputs"][0]["link"] = json!(6);
    let conversion = convert(&file, &few(), &Options::default()).unwrap();
    let inputs = &conversion.prompt["3"]["inputs"];
    assert_eq!((&inputs["positive"], &inputs["negative"]), (&json!(["1", 0]), &json!(["2", 0])));
}

#[test]
fn a_choice_among_texts_is_made_by_the_number_given_and_pointed_out() {
    let drawing = Drawing::default().node(1, "Text", &[], &[], json!(["a {red|green|blue} cat /* not a dog */"]));
    let mut seen: Vec<String> = (0..40)
        .map(|seed| {
            let conversion = convert(&drawing.value(), &few(), &Options { seed, now: None }).unwrap();
            assert_eq!(conversion.findings[0].code, Code::RandomChoice);
            assert_eq!(conversion.findings[0].severity, Severity::Warning);
            conversion.prompt["1"]["inputs"]["text"].as_str().unwrap().to_owned()
        })
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["a blue cat ", "a green cat ", "a red cat "]);
}

#[test]
fn a_date_in_a_file_name_is_filled_in_where_the_time_is_known() {
    let drawing =
        Drawing::default().node(1, "Save", &[], &[], json!(["%date:yyyy-MM-dd%/%date:hhmmss% %Save.x% %time%"]));
    assert_eq!(drawing.refusals()[0].code, Code::TimeUnknown);
    let now = NaiveDate::from_ymd_opt(2026, 3, 4).and_then(|day| day.and_hms_opt(15, 6, 7));
    let conversion = convert(&drawing.value(), &few(), &Options { seed: 0, now }).unwrap();
    assert_eq!(conversion.prompt["1"]["inputs"]["filename_prefix"], "2026-03-04/150607 %Save.x% %time%");
}

#[test]
fn definitions_with_oddities_are_read_as_far_as_they_go() {
    let definitions = NodeDefinitions::read(&json!({
        "Odd": {"input": {"required": {"a": ["FLOAT", {"default": null}], "b": [], "c": "INT", "d": [["x"]]}}, "output": null},
        "Nothing": 3, "Empty": {}, "List": {"input": {"optional": []}, "output": [["a", "b"], 4]}
    }));
    assert_eq!(definitions.class("Nothing"), None);
    assert_eq!(definitions.class("List").unwrap().outputs, ["COMBO", "*"]);
    let file = json!({"nodes": [{"id": 1, "type": "Odd"}, {"id": 2, "type": "Empty"}], "links": null});
    let conversion = convert(&file, &definitions, &Options::default()).unwrap();
    assert_eq!(conversion.prompt["1"]["inputs"], json!({"a": 0, "d": "x"}));
}

#[test]
fn a_value_that_the_browser_makes_is_refused_though_one_was_saved_and_taken_over_a_link() {
    let definitions = NodeDefinitions::read(&json!({
        "Load3D": {"input": {"required": {"image": ["LOAD_3D", {}], "width": ["INT", {}]}}, "output": ["IMAGE"]},
        "Maker": {"input": {}, "output": ["LOAD_3D"]}
    }));
    let node = |id: u64, link: Value| {
        let image = json!({"name": "image", "type": "LOAD_3D", "widget": {"name": "image"}, "link": link});
        json!({"id": id, "type": "Load3D", "inputs": [image], "widgets_values": [{"image": "x"}, 8]})
    };
    let converted = |file: Value| convert(&file, &definitions, &Options::default());
    let refused = |file: Value| match converted(file) {
        Err(ConvertError::Refused(findings)) => {
            findings.into_iter().map(|found| (found.code, found.node_id)).collect::<Vec<_>>()
        }
        other => panic!("not refused: {other:?}"),
    };
    let saved = json!({"nodes": [node(1, Value::Null)], "links": []});
    assert_eq!(refused(saved), [(Code::BrowserValue, "1".to_owned())]);

    // As an input of a subgraph, and as one of the widgets that its node lists.
    let port = json!([{"name": "image", "type": "LOAD_3D"}]);
    let link = json!([{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 2, "target_slot": 0}]);
    for (inputs, links, linked, proxies) in
        [(port, link, json!(1), json!([])), (json!([]), json!([]), Value::Null, json!([["2", "image"]]))]
    {
        let around = json!({"id": "s", "nodes": [node(2, linked)], "links": links, "inputs": inputs, "outputs": []});
        let outer = json!({"id": 1, "type": "s", "widgets_values": ["y"], "properties": {"proxyWidgets": proxies}});
        let file = json!({"nodes": [outer], "links": [], "definitions": {"subgraphs": [around]}});
        assert_eq!(refused(file), [(Code::BrowserValue, "1:2".to_owned())]);
    }

    let linked =
        json!({"nodes": [{"id": 5, "type": "Maker"}, node(1, json!(7))], "links": [[7, 5, 0, 1, 0, "LOAD_3D"]]});
    let prompt = converted(linked).unwrap().prompt;
    assert_eq!(prompt["1"]["inputs"], json!({"image": ["5", 0], "width": 8}));
}

#[test]
fn two_nodes_of_one_id_in_a_subgraph_are_refused_where_it_is_used() {
    let twice = json!([{"id": 2, "type": "Loader"}, {"id": 2, "type": "Loader"}]);
    let around = json!({"id": "s", "nodes": twice, "links": []});
    let file = |used: bool| {
        let nodes = if used { json!([{"id": 1, "type": "s"}]) } else { json!([]) };
        convert(
            &json!({"nodes": nodes, "links": [], "definitions": {"subgraphs": [around]}}),
            &few(),
            &Options::default(),
        )
    };
    let Err(ConvertError::Refused(findings)) = file(true) else { panic!("converted") };
    assert_eq!((findings[0].code, findings[0].node_id.as_str()), (Code::DoubledId, "1:2"));
    assert!(file(false).unwrap().prompt.is_empty());
}
