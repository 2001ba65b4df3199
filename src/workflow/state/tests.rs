#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::workflow::{ErrorCode, ErrorDetail, Folder, NodeOutput, RemoteFile};

const GRAPH: &str = r#"{
  "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Photo"}},
  "2": {"class_type": "KSampler", "inputs": {"image": ["1", 0]}},
  "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
  "4": {"class_type": "Unused", "inputs": {}}
}"#;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_732_234_567 + second, 0).unwrap()
}

fn accepted() -> WorkflowState {
    let request = Request {
        ssh_connection: "ssh root@box".into(),
        workflow_file: "/w.json".into(),
        workflow_name: "w.json".into(),
        input_images: vec![],
        output_dir: "/tmp/out".into(),
        comfyui_port: 18188,
        comfyui_input_dir: "/in".into(),
        comfyui_output_dir: "/box/output".into(),
    };
    let graph = Graph::parse(GRAPH.as_bytes()).unwrap();
    WorkflowState::accepted(WorkflowId::new(at(0), 1), request, &graph, at(0))
}

fn run(events: impl IntoIterator<Item = Event>) -> WorkflowState {
    let mut state = accepted();
    for (second, event) in (1..).zip(events) {
        state.apply(at(second), event);
    }
    state
}

fn planned() -> Event {
    Event::Planned { order: vec!["1".into(), "2".into(), "3".into()], outputs: vec!["3".into()] }
}

fn submitted() -> [Event; 5] {
    [
        Event::Entered(Phase::Connecting),
        planned(),
        Event::Entered(Phase::Uploading),
        Event::Submitting,
        Event::Submitted("p".into()),
    ]
}

fn file(name: &str) -> RemoteFile {
    RemoteFile { filename: name.into(), subfolder: String::new(), folder: Folder::Output, listed_as: "images".into() }
}

fn reported(name: &str) -> Event {
    let output = NodeOutput { files: vec![file(name)], texts: vec!["a caption".into()] };
    Event::Box(BoxEvent::NodeOutput { node: "3".into(), output })
}

#[test]
fn a_normal_run_goes_from_queued_to_completed() {
    let mut state = run(submitted());
    assert_eq!((state.status(), state.nodes.len()), (Status::Queued, 3));
    state.apply(at(10), Event::Waiting { position: 2 });
    assert_eq!(state.queue_position, Some(2));

    state.apply(at(11), Event::Box(BoxEvent::Started));
    assert_eq!((state.status(), state.start_time, state.queue_position), (Status::Executing, Some(at(11)), None));

    state.apply(at(12), Event::Box(BoxEvent::NodeFinished("1".into())));
    assert_eq!(state.nodes["1"].message.as_deref(), Some("Image loaded successfully"));
    state.apply(at(13), Event::Box(BoxEvent::NodeStep { node: "2".into(), value: 45.0, max: 100.0 }));
    let sampler = &state.nodes["2"];
    assert_eq!((sampler.status, sampler.progress), (NodeStatus::Executing, 45.0));
    assert_eq!(sampler.message.as_deref(), Some("Sampling step 45/100"));
    assert_eq!(state.current_node, Some("2".into()));
    assert_eq!((state.progress_percent(), state.overall_percent()), (33.3, 48.3));

    state.apply(at(14), reported("a.png"));
    state.apply(at(15), Event::Entered(Phase::Downloading));
    assert_eq!((state.progress_percent(), state.status()), (99.9, Status::Executing));
    let stored = Event::Stored { node: "3".into(), file: file("a.png"), local_path: "/tmp/out/a.png".into(), size: 7 };
    state.apply(at(16), stored);
    state.apply(at(17), Event::Completed);
    assert_eq!((state.progress_percent(), state.completed_nodes()), (100.0, 3));
    assert_eq!((state.end_time, state.current_node.clone()), (Some(at(17)), None));
    assert_eq!(state.outputs[0].remote_path, "/box/output/a.png");
    assert!(state.outputs[0].downloaded());
    assert_eq!(state.texts.len(), 1);
}

#[test]
fn a_cached_node_counts_as_executed() {
    let mut state = run(submitted());
    state.apply(at(9), Event::Box(BoxEvent::Cached(vec!["1".into(), "99".into()])));
    let node = &state.nodes["1"];
    assert_eq!((node.status, node.progress, node.message.as_deref()), (NodeStatus::Executed, 100.0, Some("cached")));
}

#[test]
fn a_failed_node_is_named_and_what_ran_stays() {
    let mut state = run(submitted());
    state.apply(at(9), Event::Box(BoxEvent::NodeFinished("1".into())));
    let failure = Failure {
        code: ErrorCode::NodeError,
        message: "Node execution failed: boom".into(),
        node_type: Some("KSampler".into()),
        detail: Some(Box::new(ErrorDetail {
            node_id: Some("2".into()),
            exception_message: Some("boom\nmore".into()),
            ..ErrorDetail::default()
        })),
    };
    state.apply(at(10), Event::Failed(failure));
    assert_eq!(state.nodes["2"].status, NodeStatus::Failed);
    assert_eq!(state.nodes["2"].message.as_deref(), Some("boom"));
    assert_eq!(state.nodes["1"].status, NodeStatus::Executed);
    assert_eq!((state.failed_node.clone(), state.progress_percent()), (Some("2".into()), 33.3));
}

#[test]
fn a_second_attempt_starts_again_with_a_new_prompt() {
    let mut state = run(submitted());
    state.apply(at(9), Event::Box(BoxEvent::NodeFinished("1".into())));
    state.apply(at(9), reported("a.png"));
    state.apply(at(11), Event::AttemptStarted("p2".into()));
    assert_eq!((state.attempt, state.prompt_id.as_str(), state.submission), (2, "p2", Submission::None));
    assert_eq!((state.progress_percent(), state.outputs.len(), state.texts.len()), (0.0, 0, 0));
    assert_eq!(state.phase(), Some(Phase::Uploading));
}

#[test]
fn what_was_asked_to_stop_ends_cancelled_whatever_the_run_did() {
    for event in [Event::Completed, Event::Failed(Failure::new(ErrorCode::NodeError, "boom"))] {
        let mut state = run(submitted());
        state.apply(at(9), Event::CancelRequested);
        state.apply(at(10), event);
        assert_eq!(state.status(), Status::Cancelled);
    }
}

#[test]
fn no_node_goes_on_executing_after_the_end() {
    let mut state = run(submitted());
    state.apply(at(9), Event::Box(BoxEvent::NodeStep { node: "2".into(), value: 1.0, max: 2.0 }));
    state.apply(at(10), Event::Cancelled);
    assert_eq!((state.nodes["2"].status, state.nodes["2"].progress), (NodeStatus::Pending, 50.0));
}

#[test]
fn history_settles_what_the_websocket_told() {
    let mut state = run(submitted());
    state.apply(at(9), reported("heard only.png"));
    state.apply(at(9), reported("both.png"));
    let output = NodeOutput { files: vec![file("both.png"), file("history only.png")], texts: vec![] };
    // Another node that reports the same file adds nothing.
    state.apply(at(10), Event::Reported(vec![("3".into(), output.clone()), ("4".into(), output)]));
    let names: Vec<_> = state.outputs.iter().map(|output| output.remote.filename.as_str()).collect();
    assert_eq!(names, ["both.png", "history only.png"]);
}

#[test]
fn the_state_survives_serialisation() {
    let mut state = run(submitted());
    state.apply(at(9), Event::Box(BoxEvent::NodeStep { node: "2".into(), value: 1.0, max: 3.0 }));
    state.apply(at(9), reported("a.png"));
    state.apply(at(10), Event::Failed(Failure::new(ErrorCode::JobLost, "gone")));
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<WorkflowState>(&text).unwrap(), state);
}

fn any_event() -> impl Strategy<Value = Event> {
    let node = prop_oneof![Just("1"), Just("2"), Just("3"), Just("4"), Just("99")].prop_map(NodeId::from);
    let phases =
        [Phase::Waiting, Phase::Connecting, Phase::Uploading, Phase::Queued, Phase::Running, Phase::Downloading];
    prop_oneof![
        proptest::sample::select(phases.to_vec()).prop_map(Event::Entered),
        Just(planned()),
        Just(Event::Submitting),
        Just(Event::NotTaken),
        Just(Event::AnswerLost("cut".into())),
        Just(Event::PartlyRefused(Failure::new(ErrorCode::InvalidWorkflow, "x"))),
        Just(Event::Submitted("p".into())),
        Just(Event::Stored { node: "3".into(), file: file("a.png"), local_path: "/o/a.png".into(), size: 1 }),
        Just(Event::Reported(vec![])),
        (1..9u32).prop_map(|position| Event::Waiting { position }),
        Just(Event::Box(BoxEvent::Started)),
        proptest::collection::vec(node.clone(), 0..3).prop_map(|nodes| Event::Box(BoxEvent::Cached(nodes))),
        node.clone().prop_map(|node| Event::Box(BoxEvent::NodeStarted(node))),
        (node.clone(), -1.0..30.0, 0.0..20.0).prop_map(|(node, value, max)| Event::Box(BoxEvent::NodeStep {
            node,
            value,
            max
        })),
        node.clone().prop_map(|node| Event::Box(BoxEvent::NodeFinished(node))),
        Just(Event::Box(BoxEvent::Over)),
        Just(reported("a.png")),
        Just(Event::Warned("careful".into())),
        Just(Event::Connected),
        Just(Event::Reconnecting { cause: "cut".into(), next_attempt: Some(at(99)) }),
        Just(Event::CancelRequested),
        Just(Event::Cancelled),
        node.clone().prop_map(|node| {
            let detail = ErrorDetail { node_id: Some(node), ..ErrorDetail::default() };
            Event::Failed(Failure { detail: Some(Box::new(detail)), ..Failure::new(ErrorCode::NodeError, "x") })
        }),
        Just(Event::CancelUnconfirmed(Failure::new(ErrorCode::SshUnreachable, "x"))),
        Just(Event::Completed),
    ]
}

proptest! {
    #[test]
    fn nothing_goes_back_and_nothing_counts_twice(events in proptest::collection::vec(any_event(), 0..40)) {
        let mut state = accepted();
        state.apply(at(0), planned());
        for (second, event) in (1..).zip(events) {
            let before = state.clone();
            state.apply(at(second), event.clone());
            if !before.is_active() {
                prop_assert_eq!(&state, &before, "a final status absorbs");
            }
            prop_assert!(state.progress_percent() >= before.progress_percent());
            prop_assert!(state.overall_percent() >= before.overall_percent());
            prop_assert!(state.phase() >= before.phase() || !state.is_active());
            prop_assert_eq!(state.progress_percent() == 100.0, state.status() == Status::Completed);
            let once = state.clone();
            state.apply(at(second + 1), event);
            prop_assert_eq!(&state, &once, "twice equals once");
        }
    }
}

#[test]
fn what_a_box_reports_without_end_is_kept_in_part_and_said() {
    let output = |from: usize| {
        let files = (from..from + 1000).map(|n| file(&format!("{n}_{}.png", "x".repeat(200)))).collect();
        let texts = vec![format!("{from} {}", "t".repeat(40_000))];
        Event::Box(BoxEvent::NodeOutput { node: "3".into(), output: NodeOutput { files, texts } })
    };
    let mut state = run(submitted());
    for n in 0..60 {
        state.apply(at(n), output(n as usize * 1000));
    }
    let names: usize = state.outputs.iter().map(|output| output.remote.filename.len()).sum();
    let texts: usize = state.texts.iter().map(|text| text.text.len()).sum();
    assert!((4 << 20..8 << 20).contains(&names) && (500 << 10..1 << 20).contains(&texts), "{names} {texts}");
    assert_eq!(state.warnings.len(), 2, "{:?}", state.warnings);
    let (outputs, texts) = (state.outputs.clone(), state.texts.clone());
    state.apply(at(300), output(0));
    assert_eq!((state.outputs, state.texts), (outputs, texts), "what is known stays and is not warned of again");
}
