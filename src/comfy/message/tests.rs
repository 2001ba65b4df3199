//! Tests of the decoder: against recordings of real servers, and against what no server should say.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::comfy::{
    history::{self, HistoryEntry, Outcome},
    traces::{self, Trace},
};

fn decode(decoder: &mut Decoder, message: &Value) -> Decoded {
    decoder.decode(&SocketMessage::Text(message.to_string().into()))
}

fn events(decoder: &mut Decoder, kind: &str, data: Value) -> Vec<BoxEvent> {
    decode(decoder, &json!({"type": kind, "data": data})).events
}

/// A decoder whose prompt is "p".
fn decoder() -> Decoder {
    Decoder::new("p".into())
}

/// What a recording says about a prompt, socket by socket.
#[derive(Debug, Default)]
struct Folded {
    started: bool,
    over: bool,
    cached: Vec<NodeId>,
    running: Vec<NodeId>,
    finished: Vec<NodeId>,
    steps: BTreeMap<String, (f64, f64)>,
    outputs: Vec<(NodeId, NodeOutput)>,
    failure: Option<NodeFailure>,
}

fn fold<'a>(prompt: &PromptId, messages: impl Iterator<Item = &'a Value>) -> Folded {
    let (mut decoder, mut folded) = (Decoder::new(prompt.clone()), Folded::default());
    for message in messages {
        let decoded = decode(&mut decoder, message);
        assert_eq!(decoded.queue_changed, message["type"] == "status");
        folded.failure = decoded.failure.or(folded.failure);
        for event in decoded.events {
            match event {
                BoxEvent::Started => folded.started = true,
                BoxEvent::Cached(nodes) => folded.cached.extend(nodes),
                BoxEvent::NodeStarted(node) => folded.running.push(node),
                BoxEvent::NodeStep { node, value, max } => drop(folded.steps.insert(node.to_string(), (value, max))),
                BoxEvent::NodeFinished(node) => folded.finished.push(node),
                BoxEvent::NodeOutput { node, output } => folded.outputs.push((node, output)),
                BoxEvent::Over => folded.over = true,
            }
        }
    }
    assert_eq!(decoder.ignored(), 0);
    folded
}

fn histories(trace: &Trace) -> Vec<HistoryEntry> {
    let mut entries: Vec<HistoryEntry> = Vec::new();
    for body in trace.http("GET", "/history").filter_map(|answer| answer.get("response")) {
        entries.extend(history::parse(body.to_string().as_bytes()).unwrap_or_default());
    }
    entries.dedup_by(|a, b| a.prompt_id == b.prompt_id);
    entries
}

#[test]
fn what_the_socket_says_agrees_with_history_in_every_recording() {
    let mut compared = 0;
    for trace in traces::all() {
        for entry in histories(trace) {
            for socket in trace.sockets() {
                let told = fold(&entry.prompt_id, trace.messages(socket));
                if !(told.started && told.over) {
                    continue;
                }
                compared += 1;
                let name = &trace.name;
                let sorted = |mut outputs: Vec<(NodeId, NodeOutput)>| {
                    outputs.sort_by(|a, b| a.0.cmp(&b.0));
                    outputs
                };
                assert_eq!(sorted(told.outputs), sorted(entry.outputs.clone()), "{name}");
                let is_fork = name.contains("fork");
                if !is_fork {
                    assert_eq!(told.cached, entry.cached, "{name}");
                }
                match &entry.outcome {
                    Outcome::Succeeded => {
                        assert_eq!(told.failure, None, "{name}");
                        assert!(told.running.iter().all(|node| told.finished.contains(node)), "{name}");
                    }
                    Outcome::Interrupted => assert_eq!(told.failure, None, "{name}"),
                    Outcome::Failed(failure) if is_fork => {
                        let told = told.failure.unwrap();
                        assert_eq!(told.exception_message, failure.exception_message, "{name}");
                        assert!(told.node_id.is_some() && failure.node_id.is_none(), "{name}");
                    }
                    Outcome::Failed(failure) => {
                        assert_eq!(told.failure.as_ref(), Some(failure), "{name}");
                        let failed = failure.node_id.as_ref().unwrap();
                        assert!(told.running.contains(failed) && !told.finished.contains(failed), "{name}");
                    }
                }
            }
        }
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn each_node_begins_and_ends_once() {
    for trace in traces::all() {
        for entry in histories(trace) {
            for socket in trace.sockets() {
                let told = fold(&entry.prompt_id, trace.messages(socket));
                for nodes in [told.running, told.finished] {
                    let distinct: HashSet<_> = nodes.iter().collect();
                    assert_eq!(distinct.len(), nodes.len(), "{}: {nodes:?}", trace.name);
                }
            }
        }
    }
}

#[test]
fn steps_reach_their_end() {
    let trace = traces::one("comfyui-0.3.75-pypi", "b_slow");
    let entry = histories(trace).remove(0);
    let told = fold(&entry.prompt_id, trace.messages("ws"));
    assert_eq!(told.steps, BTreeMap::from([("2".to_owned(), (20.0, 20.0))]));
    assert_eq!(told.finished, ["1", "2", "3"].map(NodeId::from));
}

#[test]
fn without_states_a_node_ends_when_the_next_begins() {
    // What a server before v0.3.45 would have sent for the same runs.
    for situation in ["a_invert", "b_slow", "m_mixed"] {
        let trace = traces::one("comfyui-0.3.64", situation);
        let entry = histories(trace).remove(0);
        let old = trace.messages("ws").filter(|message| message["type"] != "progress_state");
        let (told, modern) = (fold(&entry.prompt_id, old), fold(&entry.prompt_id, trace.messages("ws")));
        let sorted = |mut nodes: Vec<NodeId>| {
            nodes.sort();
            nodes
        };
        assert_eq!(sorted(told.finished), sorted(modern.finished), "{situation}");
        assert_eq!((told.running, told.steps), (modern.running, modern.steps), "{situation}");
    }
}

#[test]
fn the_repeated_executing_counts_only_while_ours_is_known_to_run() {
    let replay = || json!({"node": "2"});
    let mut decoder = decoder();
    assert_eq!(events(&mut decoder, "executing", replay()), []);
    decoder.set_running();
    assert_eq!(events(&mut decoder, "executing", replay()), [BoxEvent::NodeStarted("2".into())]);
    assert_eq!(events(&mut decoder, "executing", json!({"node": null, "prompt_id": "p"})), [BoxEvent::Over]);
    assert_eq!(events(&mut decoder, "executing", replay()), []);

    // The recorded one, on the socket that connected in the middle of the run.
    let trace = traces::one("comfyui-0.3.64", "x_reconnect");
    let prompt = trace.http("POST", "/prompt").next().unwrap()["response"]["prompt_id"].as_str().unwrap().into();
    let mut decoder = Decoder::new(prompt);
    decoder.set_running();
    let all: Vec<_> = trace.messages("ws2").flat_map(|message| decode(&mut decoder, message).events).collect();
    assert_eq!(all.first(), Some(&BoxEvent::NodeStarted("2".into())));
    assert_eq!(all.last(), Some(&BoxEvent::Over));
}

#[test]
fn other_prompts_are_not_heard() {
    let trace = traces::one("comfyui-0.3.64", "x_no_client_id");
    let mut decoder = decoder();
    for socket in trace.sockets() {
        for message in trace.messages(socket) {
            let decoded = decode(&mut decoder, message);
            assert_eq!((decoded.events, decoded.failure), (vec![], None));
        }
    }
    assert_eq!(events(&mut decoder, "execution_interrupted", json!({"prompt_id": "q"})), []);
}

#[test]
fn children_count_as_their_node_running() {
    let state = |id: &str, real: &str, state: &str, value: Value, max: Value| json!({"state": state, "value": value, "max": max, "node_id": id, "display_node_id": real, "real_node_id": real});
    let mut decoder = decoder();
    let nodes = json!({
        "12": state("12", "12", "running", json!(0), json!(1)),
        "12.0.0.3": state("12.0.0.3", "12", "finished", json!(1), json!(1)),
        "12.0.0.4": state("12.0.0.4", "12", "running", json!(3), json!(20)),
    });
    let expected =
        [BoxEvent::NodeStarted("12".into()), BoxEvent::NodeStep { node: "12".into(), value: 3.0, max: 20.0 }];
    assert_eq!(events(&mut decoder, "progress_state", json!({"prompt_id": "p", "nodes": nodes})), expected);
    let same = json!({"prompt_id": "p", "node": "12.0.0.4", "value": 3, "max": 20});
    assert_eq!(events(&mut decoder, "progress", same), []);
    let child = json!({"prompt_id": "p", "node": "12.0.0.4", "display_node": "12.0.0.4", "output": {"text": ["x y"]}});
    let output = NodeOutput { texts: vec!["x y".into()], ..NodeOutput::default() };
    assert_eq!(events(&mut decoder, "executed", child), [BoxEvent::NodeOutput { node: "12".into(), output }]);
    let done = json!({"12": state("12", "12", "finished", json!(1), json!(1))});
    let end = [BoxEvent::NodeFinished("12".into())];
    assert_eq!(events(&mut decoder, "progress_state", json!({"prompt_id": "p", "nodes": done})), end);
}

#[test]
fn a_cached_output_node_does_not_finish_again() {
    let mut decoder = decoder();
    let cached = vec![NodeId::from("1"), NodeId::from("3")];
    let data = json!({"prompt_id": "p", "nodes": ["1", 3]});
    assert_eq!(events(&mut decoder, "execution_cached", data), [BoxEvent::Cached(cached)]);
    let states = json!({"prompt_id": "p", "nodes": {"3": {"state": "finished", "value": 1, "max": 1}}});
    assert_eq!(events(&mut decoder, "progress_state", states), []);
    // It may have been evicted meanwhile, and run after all.
    let executing = json!({"prompt_id": "p", "node": "3"});
    assert_eq!(events(&mut decoder, "executing", executing), [BoxEvent::NodeStarted("3".into())]);
    let executed = json!({"prompt_id": "p", "node": "3", "display_node": "3", "output": null});
    assert_eq!(events(&mut decoder, "executed", executed), [BoxEvent::NodeFinished("3".into())]);
}

#[test]
fn a_closed_branch_ends_nothing_and_an_error_does() {
    let mut decoder = decoder();
    let blocked = json!({"prompt_id": "p", "exception_type": "ExecutionBlocked", "current_inputs": []});
    assert_eq!(events(&mut decoder, "execution_error", blocked), []);
    let error = json!({"type": "execution_error", "data": {"prompt_id": "p", "node_id": "5", "exception_type": "E"}});
    let decoded = decode(&mut decoder, &error);
    assert_eq!(decoded.events, [BoxEvent::Over]);
    assert_eq!(decoded.failure.unwrap().node_id, Some("5".into()));
}

#[test]
fn odd_numbers_make_no_step() {
    let mut decoder = decoder();
    for (value, max) in [("NaN", "20"), ("1", "0"), ("1", "-3"), ("1", "Infinity"), ("null", "5"), ("\"1\"", "5")] {
        let text =
            format!(r#"{{"type":"progress","data":{{"prompt_id":"p","node":"1","value":{value},"max":{max}}}}}"#);
        assert_eq!(decoder.decode(&SocketMessage::Text(text.into())), Decoded::default(), "{value} of {max}");
    }
    let beyond = json!({"prompt_id": "p", "node": 1, "value": 25.5, "max": 20.0});
    let expected = BoxEvent::NodeStep { node: "1".into(), value: 25.5, max: 20.0 };
    assert_eq!(events(&mut decoder, "progress", beyond), [expected]);
}

#[test]
fn what_is_no_message_is_counted() {
    let mut decoder = decoder();
    for text in ["", "null", "[]", "{}", "{\"type\": \"crystools.monitor\", \"data\": {}}", "{\"type\": 3}", "{"] {
        assert_eq!(decoder.decode(&SocketMessage::Text(text.into())), Decoded::default());
    }
    assert_eq!(decoder.ignored(), 7);
    decoder.decode(&SocketMessage::Text(r#"{"type": "feature_flags", "data": {}}"#.into()));
    assert_eq!(decoder.ignored(), 7);
}

#[test]
fn binary_frames_are_told_apart_within_their_length() {
    let frame = |event: u32, length: u32, rest: &[u8]| {
        [event.to_be_bytes().as_slice(), length.to_be_bytes().as_slice(), rest].concat()
    };
    assert_eq!(Binary::of(&frame(1, 1, b"\xff\xd8\xff")), Binary::Preview);
    assert_eq!(Binary::of(&frame(3, 2, b"12text")), Binary::Text);
    assert_eq!(Binary::of(&frame(4, 2, b"{}\xff\xd8")), Binary::PreviewWithMetadata);
    for odd in
        [&frame(3, 9, b"12")[..], &frame(4, u32::MAX, b""), &frame(7, 0, b"x"), &frame(1, 1, b""), b"\0\0\0\x03", b""]
    {
        assert_eq!(Binary::of(odd), Binary::Unknown, "{odd:?}");
    }
}

/// Any JSON, with the words that the decoder looks for among its keys and texts.
fn any_json() -> impl Strategy<Value = Value> {
    let word = proptest::sample::select(vec![
        "type",
        "data",
        "prompt_id",
        "p",
        "node",
        "nodes",
        "display_node",
        "value",
        "max",
        "state",
        "running",
        "finished",
        "real_node_id",
        "output",
        "filename",
        "subfolder",
        "images",
        "text",
        "result",
        "traceback",
        "exception_type",
        "execution_start",
        "execution_cached",
        "executing",
        "progress",
        "progress_state",
        "executed",
        "execution_error",
        "execution_success",
        "status",
        "a.glb",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((word.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(messages in proptest::collection::vec(any_json(), 0..8), data in any_json(), kind in 0..9usize) {
        let kinds = ["execution_start", "execution_cached", "executing", "progress", "progress_state", "executed",
                     "execution_success", "execution_error", "execution_interrupted"];
        let mut decoder = decoder();
        decoder.set_running();
        for message in &messages {
            decode(&mut decoder, message);
        }
        for event in events(&mut decoder, kinds[kind], data.clone()) {
            if let BoxEvent::NodeStep { value, max, .. } = event {
                prop_assert!(value >= 0.0 && max > 0.0 && value.is_finite() && max.is_finite());
            }
        }
        outputs::read(&data);
        NodeFailure::read(&data);
        let text = data.to_string();
        let _ = history::parse(text.as_bytes());
        let _ = crate::comfy::Queue::parse(text.as_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut decoder = decoder();
        decoder.decode(&SocketMessage::Binary(Bytes::from(bytes.clone())));
        decoder.decode(&SocketMessage::Text(String::from_utf8_lossy(&bytes).into_owned().into()));
        let _ = history::parse(&bytes);
        let _ = crate::comfy::Queue::parse(&bytes);
    }
}
