#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

/// Two classes of ComfyUI's own, one of them with a check of its own, and one of a pack.
fn definitions() -> NodeDefinitions {
    let core = |input: Value, output: Value, output_node: bool| json!({"input": input, "output": output, "output_node": output_node, "python_module": "comfy_extras.nodes_v3"});
    let sampler = json!({"required": {
        "model": ["MODEL"], "seed": ["INT", {"min": 0, "max": 18_446_744_073_709_551_615_u64}],
        "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}], "sampler_name": [["euler", "dpmpp_2m"]]}});
    let grows = core(
        json!({"required": {"images": ["COMFY_AUTOGROW_V3", {"template": {"min": 1}}], "mode": ["COMFY_DYNAMICCOMBO_V3",
            {"options": [{"key": "5", "inputs": {"required": {"height": ["INT"]}}}, {"key": "big", "inputs": {"required": {"width": ["INT", {"min": 16}]}}}]}]}}),
        json!(["IMAGE"]),
        false,
    );
    NodeDefinitions::read(&json!({
        "Loader": core(json!({"required": {"name": [["a.safetensors", "b.safetensors"]]}}), json!(["MODEL", "CLIP"]), false),
        "Sampler": core(sampler.clone(), json!(["LATENT"]), false),
        "LoadImage": core(json!({"required": {"image": [["there.png"], {"image_upload": true}]}}), json!(["IMAGE"]), false),
        "Save": core(json!({"required": {"latent": ["LATENT"]}, "optional": {"image": ["IMAGE"], "any": ["*"]}}), json!([]), true),
        "PackSampler": {"input": sampler, "output": ["LATENT"], "output_node": false, "python_module": "custom_nodes.pack"},
        "Grows": grows,
        "Registered": {"input": {"required": {"n": ["INT", {"max": 1}]}}, "output": ["LATENT"], "output_node": false,
                       "python_module": "nodes"},
    }))
}

fn sound() -> Value {
    json!({
        "1": {"class_type": "Loader", "inputs": {"name": "a.safetensors"}},
        "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 7, "cfg": "8.5", "sampler_name": "euler"}},
        "3": {"class_type": "Save", "inputs": {"latent": ["2", 0]}, "_meta": {"title": "Keep it"}},
    })
}

fn report(graph: &Value, given: &[&str]) -> Report {
    report_with(graph, &definitions(), given, false)
}

fn report_with(graph: &Value, definitions: &NodeDefinitions, given: &[&str], is_over: bool) -> Report {
    let graph = Graph::parse(graph.to_string().as_bytes()).unwrap();
    let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
    let replaced = BTreeSet::from(["Gone".to_owned()]);
    let known = Known { definitions, replaced: &replaced, version: Some("0.9.1"), given: &given };
    check(&graph, &known, &|| is_over)
}

/// The sound graph with one thing changed, in short: severity, code, node, input.
fn found(path: &str, value: Value) -> Vec<String> {
    let mut graph = sound();
    let (parent, key) = path.rsplit_once('/').unwrap();
    graph.pointer_mut(parent).unwrap()[key] = value;
    short(&report(&graph, &[]))
}

fn short(report: &Report) -> Vec<String> {
    let one = |finding: &Finding| {
        let input = finding.input.as_deref().unwrap_or("-");
        format!("{} {} {} {input}", finding.severity.as_str(), finding.code.as_str(), finding.node_id)
    };
    report.findings.iter().map(one).collect()
}

#[test]
fn a_sound_graph_has_no_findings() {
    assert_eq!(report(&sound(), &[]), Report::default());
    // What no output needs may be as wrong as it likes, but its class must be there.
    assert!(found("/4", json!({"class_type": "Sampler", "inputs": {"seed": "x", "model": ["99", 0]}})).is_empty());
    assert_eq!(found("/4", json!({"class_type": "Nope"})), ["error missing_node_type 4 -"]);
    assert_eq!(found("/4", json!({"class_type": "Gone"})), ["warning replaced_node_type 4 -"]);
}

#[test]
fn each_kind_of_fault_is_found_where_it_is() {
    for (path, value, expected) in [
        ("/2/inputs/seed", json!(-1), "error value_smaller_than_min 2 seed"),
        ("/2/inputs/seed", json!("seven"), "error invalid_input_type 2 seed"),
        ("/2/inputs/seed", json!(null), "error invalid_input_type 2 seed"),
        ("/2/inputs/cfg", json!(100.5), "error value_bigger_than_max 2 cfg"),
        ("/2/inputs/sampler_name", json!("Euler"), "error value_not_in_list 2 sampler_name"),
        ("/1/inputs/name", json!("c.safetensors"), "error value_not_in_list 1 name"),
        ("/2/inputs/model", json!(["99", 0]), "error missing_link_source 2 model"),
        ("/2/inputs/model", json!([1, 0]), "error missing_link_source 2 model"),
        ("/2/inputs/model", json!(["1", 2]), "error bad_linked_input 2 model"),
        ("/2/inputs/model", json!(["1", "0"]), "error bad_linked_input 2 model"),
        ("/2/inputs/model", json!(["1"]), "error bad_linked_input 2 model"),
        ("/2/inputs/model", json!(["1", 1]), "error return_type_mismatch 2 model"),
        ("/2/inputs/sampler_name", json!(["1", 0]), "error return_type_mismatch 2 sampler_name"),
        ("/2/inputs/model", json!("a model"), "warning value_for_link 2 model"),
        ("/2/inputs/odd", json!(["99", 0]), "warning missing_link_source 2 odd"),
        (
            "/2/inputs",
            json!({"model": ["1", 0], "cfg": 1, "sampler_name": "euler"}),
            "error required_input_missing 2 seed",
        ),
        ("/3/class_type", json!("Loader"), "error prompt_no_outputs  -"),
    ] {
        assert_eq!(found(path, value.clone()), [expected], "{path} {value}");
    }
    for (path, value) in [
        ("/2/inputs/model", json!(["1", -2])),
        ("/2/inputs/seed", json!(18_446_744_073_709_551_615_u64)),
        ("/2/inputs/seed", json!(" 12 ")),
        ("/2/inputs/unknown", json!("ignored")),
        ("/3/inputs/any", json!(["1", 1])),
    ] {
        assert_eq!(found(path, value.clone()), Vec::<String>::new(), "{path} {value}");
    }
}

#[test]
fn all_faults_come_at_once_and_are_worded_for_people() {
    let mut graph = sound();
    graph["1"]["inputs"]["name"] = json!("A.safetensor");
    graph["2"]["inputs"]["cfg"] = json!(-1);
    graph["3"]["inputs"]["image"] = json!(["9", 0]);
    let report = report(&graph, &["photo.png"]);
    let told: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "node 3 (Keep it, Save): image is linked to node \"9\", which is not in the workflow",
            "node 2 (Sampler): cfg must be at least 0, and is -1",
            "node 1 (Loader): name is \"A.safetensor\", which the box does not have among its choices; did you mean \
             \"a.safetensors\" or \"b.safetensors\"?",
            "the input file photo.png is named by no node of the workflow; it is uploaded all the same; if a node should \
             load it, put its name there",
        ]
    );
}

#[test]
fn what_a_node_may_allow_by_itself_is_a_warning() {
    let mut graph = sound();
    graph["2"]["class_type"] = json!("PackSampler");
    graph["2"]["inputs"] = json!({"model": ["1", 1], "seed": -1, "cfg": "x", "sampler_name": "other"});
    assert_eq!(
        short(&report(&graph, &[])),
        [
            "warning return_type_mismatch 2 model",
            "warning value_smaller_than_min 2 seed",
            "error invalid_input_type 2 cfg",
            "warning value_not_in_list 2 sampler_name",
        ]
    );
}

#[test]
fn files_that_are_neither_given_nor_known_are_to_be_looked_for() {
    let mut graph = sound();
    graph["4"] = json!({"class_type": "LoadImage", "inputs": {"image": "sub/new.png [output]"}});
    graph["3"]["inputs"]["image"] = json!(["4", 0]);
    let asked = report(&graph, &[]);
    assert!(asked.findings.is_empty());
    assert_eq!(asked.files[0].file, annotated("sub/new.png [output]"));
    assert_eq!((asked.files[0].missing.severity, asked.files[0].missing.node_id.as_str()), (Severity::Error, "4"));
    // ComfyUI takes a folder for a file.
    for (name, severity) in
        [("frames", Severity::Warning), ("sub/frames.v2", Severity::Warning), ("a.WebP", Severity::Error)]
    {
        graph["4"]["inputs"]["image"] = json!(name);
        assert_eq!(report(&graph, &[]).files[0].missing.severity, severity, "{name}");
    }
    for (name, given) in [("there.png", ""), ("new.png", "new.png"), ("new.png [input]", "new.png")] {
        graph["4"]["inputs"]["image"] = json!(name);
        assert!(report(&graph, &[given]).files.is_empty(), "{name}");
    }
}

#[test]
fn choices_that_bring_inputs_are_followed_and_what_grows_is_counted() {
    let mut graph = sound();
    graph["4"] = json!({"class_type": "Grows", "inputs": {"mode": "big", "mode.width": 8, "images.image0": ["9", 0]}});
    graph["3"]["inputs"]["image"] = json!(["4", 0]);
    assert_eq!(
        short(&report(&graph, &[])),
        ["warning missing_link_source 4 images.image0", "error value_smaller_than_min 4 mode.width"]
    );
    graph["4"]["inputs"] = json!({"mode": "big"});
    assert_eq!(
        short(&report(&graph, &[])),
        ["warning required_input_missing 4 images", "error required_input_missing 4 mode.width"]
    );
    // What ComfyUI does not take for a choice that it has brings nothing, not even the choice itself.
    graph["4"]["inputs"] = json!({"mode": 5, "images.a": ["1", 0]});
    assert_eq!(short(&report(&graph, &[])), ["warning value_not_in_list 4 mode"]);
    graph["4"]["inputs"] = json!({"images.a": ["1", 0]});
    assert_eq!(short(&report(&graph, &[])), ["warning required_input_missing 4 mode"]);
    graph["4"]["inputs"] = json!({"mode": "small", "images.a": ["1", 0]});
    assert_eq!(short(&report(&graph, &[])), ["warning value_not_in_list 4 mode"]);
}

#[test]
fn circles_are_found_once_and_however_deep_a_graph_is() {
    let mut graph = sound();
    graph["2"]["inputs"]["model"] = json!(["3", 0]);
    let circles = report(&graph, &[]).findings.into_iter().filter(|finding| finding.code == FindingCode::LinkCycle);
    let told: Vec<String> = circles.map(|finding| finding.message).collect();
    assert_eq!(told, ["is linked to itself in a circle: 3 ← 2 ← 3"]);
    let link = |n: usize| json!({"class_type": "Save", "inputs": {"latent": [format!("{}", n + 1), 0]}});
    let deep: Value = (0..50_000).map(|n| (n.to_string(), link(n))).collect();
    assert_eq!(short(&report(&deep, &[])).len(), 200);
}

/// A pack that registers a class past ComfyUI's loader has `nodes` for its module, too.
#[test]
fn a_class_that_is_not_in_nodes_py_is_no_class_of_comfyui() {
    let mut graph = sound();
    graph["2"] = json!({"class_type": "Registered", "inputs": {"n": 7}});
    assert_eq!(short(&report(&graph, &[])), ["warning value_bigger_than_max 2 n"]);
    graph["3"]["inputs"]["latent"] = json!(["2", "first"]);
    assert!(short(&report(&graph, &[])).contains(&"warning bad_linked_input 3 latent".to_owned()));
    let listed = json!({"input": {}, "output": ["LATENT"], "output_node": false, "python_module": "nodes"});
    let known = NodeDefinitions::read(&json!({"KSampler": listed, "Registered": listed}));
    assert!(known.class("KSampler").unwrap().is_surely_core && !known.class("Registered").unwrap().is_surely_core);
}

#[test]
fn behind_switches_that_cut_links_nothing_is_certain() {
    let mut graph = sound();
    graph["2"]["inputs"]["cfg"] = json!("x");
    assert_eq!(short(&report(&graph, &[])), ["error invalid_input_type 2 cfg"]);
    graph["4"] = json!({"class_type": "ImpactSwitch", "inputs": {"sel_mode": true, "select": 1}});
    assert!(short(&report(&graph, &[])).contains(&"warning invalid_input_type 2 cfg".to_owned()));
    graph["4"]["inputs"]["sel_mode"] = json!(false);
    assert!(short(&report(&graph, &[])).contains(&"error invalid_input_type 2 cfg".to_owned()));
}

#[test]
fn a_check_that_nobody_waits_for_ends() {
    let mut graph = sound();
    graph["2"]["inputs"]["cfg"] = json!("x");
    assert_eq!(report_with(&graph, &definitions(), &[], false).findings.len(), 1);
    assert!(report_with(&graph, &definitions(), &[], true).findings.is_empty());
}

/// Each of thousands of nodes names one of as many choices, or none of them, without looking at all of them.
#[test]
fn choices_without_number_are_looked_up() {
    let choices: Vec<Value> =
        (0..60_000).map(|n| if n % 2 == 0 { json!(n) } else { json!(format!("{n}.png")) }).collect();
    let pack = |input: Value| json!({"input": {"required": {"a": input}}, "output": [], "output_node": true});
    let definitions = NodeDefinitions::read(&json!({
        "Choice": pack(json!([choices])), "File": pack(json!([choices, {"image_upload": true}]))}));
    let node = |n: usize| {
        let value = match n % 4 {
            0 => json!(59_998.0),
            1 => json!("59999.png"),
            2 => json!(59_999),
            _ => json!(format!("{n} is not there.png")),
        };
        (n.to_string(), json!({"class_type": if n % 8 < 4 { "Choice" } else { "File" }, "inputs": {"a": value}}))
    };
    let graph: Value = (0..20_000).map(node).collect();
    let report = report_with(&graph, &definitions, &[], false);
    assert!(report.findings.iter().all(|finding| matches!(finding.node_id.parse::<usize>().unwrap() % 8, 2 | 3)));
    assert_eq!((report.findings.len(), report.files.len()), (MAX_FINDINGS, 20_000 / 8));
    assert!(
        report.findings[199].hint.starts_with("there are \"0\", \"1.png\", ")
            && report.findings[199].hint.ends_with("59992 more")
    );
}

#[test]
fn definitions_without_end_are_looked_at_up_to_a_measure() {
    let inputs: Value = (0..2_000).map(|n| (format!("i{n}"), json!(["INT"]))).collect();
    let wide = json!({"input": {"optional": inputs}, "output": [], "output_node": true});
    let definitions = NodeDefinitions::read(&json!({"Wide": wide}));
    let graph = |count: usize| -> Value {
        let node =
            |n: usize| (n.to_string(), json!({"class_type": "Wide", "inputs": {"i0": if n == 0 { "x" } else { "0" }}}));
        (0..count).map(node).collect()
    };
    let fault = "error invalid_input_type 0 i0";
    assert_eq!(short(&report_with(&graph(100), &definitions, &[], false)), [fault]);
    assert_eq!(short(&report_with(&graph(3_000), &definitions, &[], false)), [fault, "warning no_definitions  -"]);
}
