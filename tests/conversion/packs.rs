//! Nodes of packs that live in the browser, which no recorded case has.

use comfy_remote::convert::{Code, Severity};
use serde_json::{Value, json};

use crate::graphs::Drawing;

/// A loader, and a sampler that needs its model.
fn loader_and_sampler() -> Drawing {
    Drawing::default().node(1, "Loader", &[], &["MODEL", "CLIP", "VAE"], json!(["a"])).node(
        2,
        "Sampler",
        &[("model", "MODEL")],
        &["LATENT"],
        json!([7, "fixed", 20]),
    )
}

fn set_and_get(name: &str, other: &str) -> Drawing {
    loader_and_sampler()
        .node(3, "SetNode", &[("MODEL", "MODEL")], &["*"], json!([name]))
        .node(4, "GetNode", &[], &["MODEL"], json!([other]))
        .link((1, 0), (3, 0))
        .link((4, 0), (2, 0))
}

#[test]
fn a_link_that_was_given_a_name_is_taken_up_by_it() {
    let drawing = set_and_get("model", "model");
    assert_eq!(drawing.inputs("2")["model"], json!(["1", 0]));
    assert_eq!(drawing.convert().unwrap().prompt.len(), 2);
}

#[test]
fn what_a_setter_hands_on_directly_comes_through_too() {
    let drawing = loader_and_sampler()
        .node(3, "easy setNode", &[("MODEL", "MODEL")], &["MODEL"], json!(["m"]))
        .link((1, 0), (3, 0))
        .link((3, 0), (2, 0));
    assert_eq!(drawing.inputs("2")["model"], json!(["1", 0]));
}

#[test]
fn a_name_that_nobody_gives_is_refused() {
    let findings = set_and_get("model", "modle").refusals();
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].code, findings[0].node_id.as_str()), (Code::UnknownName, "2"));
    assert_eq!(findings[0].input.as_deref(), Some("model"));
    assert!(findings[0].message.contains("\"modle\""), "{}", findings[0]);
}

#[test]
fn names_that_lead_in_a_circle_are_refused() {
    let drawing = loader_and_sampler()
        .node(3, "SetNode", &[("*", "*")], &["*"], json!(["a"]))
        .node(4, "GetNode", &[], &["*"], json!(["a"]))
        .link((4, 0), (3, 0))
        .link((4, 0), (2, 0));
    assert_eq!(drawing.refusals()[0].code, Code::LinkCycle);
}

#[test]
fn a_name_is_known_in_the_subgraphs_below_too() {
    let inner = Drawing::default().node(10, "GetNode", &[], &["MODEL"], json!(["m"])).node(
        11,
        "Sampler",
        &[("model", "MODEL")],
        &["LATENT"],
        json!([1, "fixed", 2]),
    );
    let mut subgraph = inner.value();
    subgraph["id"] = json!("sub");
    subgraph["links"] =
        json!([{"id": 1, "origin_id": 10, "origin_slot": 0, "target_id": 11, "target_slot": 0, "type": "MODEL"}]);
    let drawing = loader_and_sampler()
        .node(3, "SetNode", &[("MODEL", "MODEL")], &[], json!(["m"]))
        .link((1, 0), (3, 0))
        .node(4, "sub", &[], &[], json!([]))
        .file(json!({"definitions": {"subgraphs": [subgraph]}}));
    assert_eq!(drawing.inputs("4:11")["model"], json!(["1", 0]));
}

#[test]
fn rgthrees_reroutes_hand_on_and_its_switchboards_are_left_out() {
    let drawing = loader_and_sampler()
        .node(3, "Reroute (rgthree)", &[("", "*")], &["*"], Value::Null)
        .node(4, "Fast Groups Bypasser (rgthree)", &[], &["*"], Value::Null)
        .node(5, "Fast Muter (rgthree)", &[("", "*")], &["*"], json!([true]))
        .node(6, "Label (rgthree)", &[], &[], Value::Null)
        .link((1, 0), (3, 0))
        .link((3, 0), (2, 0))
        .link((2, 0), (5, 0));
    let conversion = drawing.convert().unwrap();
    assert_eq!(conversion.prompt.keys().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(conversion.prompt["2"]["inputs"]["model"], json!(["1", 0]));
    assert!(conversion.findings.is_empty());
}

#[test]
fn a_node_that_mutes_by_chance_is_refused_by_name() {
    let findings = loader_and_sampler().node(3, "Random Unmuter (rgthree)", &[], &[], json!([])).refusals();
    assert_eq!((findings[0].code, findings[0].node_type.as_str()), (Code::UnsupportedNode, "Random Unmuter (rgthree)"));
}

#[test]
fn each_lora_of_a_power_lora_loader_is_an_input() {
    let lora = |name: &str| json!({"on": true, "lora": name, "strength": 0.5, "strengthTwo": null});
    let values = json!([{}, {"type": "PowerLoraLoaderHeaderWidget"}, lora("a"), lora("b"), {}, ""]);
    let drawing = loader_and_sampler()
        .node(3, "Power Lora Loader (rgthree)", &[("model", "MODEL")], &["MODEL", "CLIP"], values)
        .link((1, 0), (3, 0));
    let wanted = json!({"lora_1": lora("a"), "lora_2": lora("b"), "model": ["1", 0]});
    assert_eq!(drawing.inputs("3"), wanted);
    assert!(drawing.convert().unwrap().findings.is_empty());
}

#[test]
fn values_that_a_pack_saves_by_name_are_read_by_name() {
    let drawing = Drawing::default().node(1, "Named", &[], &[], json!({"name": "clip", "videopreview": {}, "fps": 24}));
    assert_eq!(drawing.inputs("1"), json!({"fps": 24, "name": "clip"}));
}

#[test]
fn values_beyond_what_a_packs_definition_tells_of_are_pointed_out() {
    let conversion = Drawing::default().node(1, "Named", &[], &[], json!([24, "clip", "more", ""])).convert().unwrap();
    assert_eq!(conversion.findings.len(), 1);
    assert_eq!((conversion.findings[0].code, conversion.findings[0].severity), (Code::ExtraValues, Severity::Warning));
}

/// A loader whose model is sent everywhere.
fn sender() -> Drawing {
    loader_and_sampler()
        .node(3, "Anything Everywhere", &[("MODEL", "MODEL")], &[], json!([]))
        .with(json!({"inputs": [{"name": "anything", "type": "MODEL", "link": null}]}))
        .link((1, 0), (3, 0))
}

#[test]
fn what_is_sent_everywhere_reaches_free_inputs_of_its_type() {
    let drawing = sender();
    assert_eq!(drawing.inputs("2")["model"], json!(["1", 0]));
    assert_eq!(drawing.inputs("2").get("positive"), None);
}

#[test]
fn the_links_that_the_pack_wrote_down_count_more_than_the_rules() {
    let link = json!({"downstream": 2, "downstream_slot": 0, "upstream": "1", "upstream_slot": 0, "controller": 3});
    let drawing = sender().file(json!({"extra": {"ue_links": [link]}}));
    assert_eq!(drawing.inputs("2")["model"], json!(["1", 0]));
    let drawing = sender().file(json!({"extra": {"ue_links": []}}));
    assert_eq!(drawing.inputs("2").get("model"), None);
}

#[test]
fn of_two_equal_senders_none_sends_and_that_is_said() {
    let drawing = sender()
        .node(4, "Loader", &[], &["MODEL", "CLIP", "VAE"], json!(["b"]))
        .node(5, "Anything Everywhere", &[("anything", "MODEL")], &[], json!([]))
        .link((4, 0), (5, 0));
    let conversion = drawing.convert().unwrap();
    assert_eq!(conversion.prompt["2"]["inputs"].get("model"), None);
    assert_eq!(conversion.findings[0].code, Code::AmbiguousBroadcast);
}

#[test]
fn a_pattern_for_titles_or_inputs_restricts_a_sender_and_goes_before_others() {
    let with_patterns = |title: &str, input: &str| {
        sender()
            .node(4, "Loader", &[], &["MODEL", "CLIP", "VAE"], json!(["b"]))
            .node(5, "Anything Everywhere?", &[("anything", "MODEL")], &[], json!([title, input, ".*"]))
            .link((4, 0), (5, 0))
    };
    assert_eq!(with_patterns("^Samp", "mod").inputs("2")["model"], json!(["4", 0]));
    assert_eq!(with_patterns("^Other", ".*").inputs("2")["model"], json!(["1", 0]));
    let refused = with_patterns("(?=x)", ".*").refusals();
    assert_eq!((refused[0].code, refused[0].node_id.as_str()), (Code::UnsupportedNode, "5"));
}

#[test]
fn a_sender_that_is_bound_to_a_colour_is_refused() {
    let drawing = sender().node(4, "Anything Everywhere", &[("anything", "MODEL")], &[], json!([]));
    let drawing = drawing.with(json!({"properties": {"ue_properties": {"color_restricted": 1}}}));
    assert_eq!(drawing.refusals()[0].code, Code::UnsupportedNode);
}

#[test]
fn what_is_found_in_a_subgraph_is_told_for_each_use_of_it() {
    let several = sender().node(4, "Loader", &[], &["MODEL", "CLIP", "VAE"], json!(["b"]));
    let several = several.node(5, "Anything Everywhere", &[("anything", "MODEL")], &[], json!([])).link((4, 0), (5, 0));
    let bound = sender().with(json!({"properties": {"ue_properties": {"color_restricted": 1}}}));
    let file = |inner: &Drawing, uses: u64| {
        let mut graph = inner.value();
        graph["id"] = json!("inner");
        let root = (10..10 + uses).fold(Drawing::default(), |root, id| root.node(id, "inner", &[], &[], json!([])));
        root.file(json!({"definitions": {"subgraphs": [graph]}}))
    };

    let used_twice = file(&several, 2).convert().unwrap();
    let warned: Vec<_> = used_twice.findings.iter().map(|found| (found.code, found.node_id.as_str())).collect();
    assert_eq!(warned, [(Code::AmbiguousBroadcast, "10:2"), (Code::AmbiguousBroadcast, "11:2")]);

    let refused = file(&bound, 1).refusals();
    let refused: Vec<_> = refused.iter().map(|found| (found.code, found.node_id.as_str())).collect();
    assert_eq!(refused, [(Code::UnsupportedNode, "10:3")]);
    assert_eq!(file(&bound, 0).convert().unwrap().findings, []);
}
