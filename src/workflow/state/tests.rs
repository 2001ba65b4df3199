#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::workflow::Document;
use crate::workflow::{ErrorCode, ErrorDetail, Folder, NodeOutput, RemoteFile, Stored};

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
    WorkflowState::accepted(WorkflowId::new(at(0), 1), request, &Document::Graph(graph).into(), at(0))
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
        Event::Submitting(None),
        Event::Submitted("p".into()),
    ]
}

fn file(name: &str) -> RemoteFile {
    RemoteFile { filename: name.into(), subfolder: String::new(), folder: Folder::Output, listed_as: "images".into() }
}

fn reported(name: &str) -> Event {
    let output = NodeOutput { files: vec![file(name)], texts: vec!["a caption".into()], texts_cut: false };
    Event::Box(BoxEvent::NodeOutput { node: "3".into(), output })
}

fn stored(name: &str) -> Stored {
    Stored { node: "3".into(), file: file(name), local_path: format!("/tmp/out/{name}").into(), size: 7 }
}

/// A run that was over on the box and failed here, with two outputs that did not come.
fn failed_for(code: ErrorCode) -> WorkflowState {
    let mut state = run(submitted());
    for event in [
        reported("a.png"),
        reported("b.png"),
        Event::Entered(Phase::Downloading),
        Event::Failed(Failure::new(code, "it did not come")),
    ] {
        state.apply(at(20), event);
    }
    state
}

#[test]
fn what_comes_later_completes_a_run_that_lacked_only_its_downloads() {
    for code in [ErrorCode::DownloadFailed, ErrorCode::DiskFull] {
        let mut state = failed_for(code);
        assert!(state.apply(at(30), Event::StoredLater(stored("a.png"))));
        assert_eq!((state.status(), state.end_time), (Status::Failed, Some(at(20))), "one is still missing");
        state.apply(at(31), Event::StoredLater(stored("b.png")));
        assert_eq!(
            (state.status(), state.end_time, state.progress_percent()),
            (Status::Completed, Some(at(31)), 100.0)
        );
        assert_eq!(state.failure(), None);
    }
}

#[test]
fn what_comes_later_leaves_every_other_end_as_it_was() {
    for code in [ErrorCode::NodeError, ErrorCode::JobLost] {
        let mut state = failed_for(code);
        state.apply(at(30), Event::StoredLater(stored("a.png")));
        state.apply(at(31), Event::StoredLater(stored("b.png")));
        assert!(state.outputs.iter().all(Output::downloaded));
        assert_eq!(state.failure().map(|failure| failure.code), Some(code));
    }
    // A full disk before the run began: that its only output came from somewhere completes nothing.
    let mut state = run([reported("a.png"), Event::Failed(Failure::new(ErrorCode::DiskFull, "full"))]);
    state.apply(at(30), Event::StoredLater(stored("a.png")));
    assert_eq!(state.status(), Status::Failed);
}

#[test]
fn what_the_box_knew_of_an_end_that_nobody_saw_is_listed() {
    for (code, unseen) in [
        (ErrorCode::SshUnreachable, true),
        (ErrorCode::ComfyuiUnreachable, true),
        (ErrorCode::Wedged, true),
        (ErrorCode::NodeError, false),
        (ErrorCode::DownloadFailed, false),
    ] {
        let mut state = run(submitted());
        state.apply(at(20), Event::Failed(Failure::new(code, "x")));
        assert_eq!(state.may_have_left_more(), unseen, "{code:?}");
        let output = NodeOutput { files: vec![file("a.png")], ..NodeOutput::default() };
        state.apply(at(30), Event::ReportedLater(vec![("3".into(), output)]));
        state.apply(at(31), Event::StoredLater(stored("a.png")));
        assert_eq!((state.status(), state.outputs[0].downloaded()), (Status::Failed, true));
        state.apply(at(32), Event::LostHere(vec![file("a.png")]));
        assert!(!state.outputs[0].downloaded());
    }
    let never_sent = run([Event::Failed(Failure::new(ErrorCode::SshUnreachable, "x"))]);
    assert!(!never_sent.may_have_left_more());
}

#[test]
fn a_later_failure_is_told_and_does_not_close_the_way() {
    let mut state = failed_for(ErrorCode::DownloadFailed);
    state.apply(at(30), Event::NotStoredLater(Failure::new(ErrorCode::DiskFull, "full")));
    assert_eq!(state.failure(), Some(&Failure::new(ErrorCode::DiskFull, "full")));
    state.apply(at(31), Event::NotStoredLater(Failure::new(ErrorCode::SshUnreachable, "the box is gone")));
    assert_eq!(state.failure().map(|failure| failure.code), Some(ErrorCode::DiskFull));
    assert_eq!(state.warnings, ["the missing outputs could not be fetched: the box is gone"]);
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
    state.apply(at(16), Event::Stored(stored("a.png")));
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
    let output = NodeOutput { files: vec![file("both.png"), file("history only.png")], ..NodeOutput::default() };
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
        Just(Event::Submitting(Some("7f1c3c1e-2f57-4b52-9df4-0d6a5c6c1a0e".into()))),
        Just(Event::Stalled(at(3))),
        Just(Event::NotTaken),
        Just(Event::NeverTaken),
        Just(Event::AnswerLost("cut".into())),
        Just(Event::PartlyRefused(Failure::new(ErrorCode::InvalidWorkflow, "x"))),
        Just(Event::Submitted("p".into())),
        (1..3u64).prop_map(|size| Event::Stored(Stored { size, ..stored("a.png") })),
        Just(Event::StoredLater(stored("a.png"))),
        Just(Event::LostHere(vec![file("a.png")])),
        Just(Event::ReportedLater(vec![(
            "3".into(),
            NodeOutput { files: vec![file("c.png")], ..NodeOutput::default() }
        )])),
        Just(Event::NotStoredLater(Failure::new(ErrorCode::DiskFull, "still full"))),
        Just(Event::NotStoredLater(Failure::new(ErrorCode::SshUnreachable, "gone"))),
        Just(Event::Failed(Failure::new(ErrorCode::DownloadFailed, "cut"))),
        Just(Event::Reported(vec![])),
        Just(reported("b.png")),
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

/// A final status absorbs everything, but for what the user asks for later.
fn is_absorbed(before: &WorkflowState, after: &WorkflowState, event: &Event) -> bool {
    let lacked = |state: &WorkflowState| state.failure().is_some_and(|failure| failure.code.is_about_downloads());
    let without_outputs = |state: &WorkflowState| {
        let (outputs, warnings, last_update) = (Vec::new(), Vec::new(), at(0));
        WorkflowState { outputs, warnings, last_update, ..state.clone() }
    };
    match event {
        Event::StoredLater(_) if lacked(before) && after.status() == Status::Completed => {
            after.outputs.iter().all(Output::downloaded)
        }
        Event::NotStoredLater(_) if lacked(before) => lacked(after),
        Event::StoredLater(_) | Event::NotStoredLater(_) | Event::ReportedLater(_) | Event::LostHere(_) => {
            without_outputs(before) == without_outputs(after)
        }
        _ => before == after,
    }
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
                prop_assert!(is_absorbed(&before, &state, &event), "{event:?}: {before:?}\n{state:?}");
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
        Event::Box(BoxEvent::NodeOutput { node: "3".into(), output: NodeOutput { files, texts, texts_cut: true } })
    };
    let mut state = run(submitted());
    for n in 0..60 {
        state.apply(at(n), output(n as usize * 1000));
    }
    let names: usize = state.outputs.iter().map(|output| output.remote.filename.len()).sum();
    let texts: usize = state.texts.iter().map(|text| text.text.len()).sum();
    assert!((4 << 20..8 << 20).contains(&names) && (500 << 10..1 << 20).contains(&texts), "{names} {texts}");
    assert_eq!((state.warnings.len(), state.outputs_left_out), (3, true), "{:?}", state.warnings);
    let (outputs, texts) = (state.outputs.clone(), state.texts.clone());
    state.apply(at(300), output(0));
    assert_eq!((state.outputs, state.texts), (outputs, texts), "what is known stays and is not warned of again");
}

/// Also the events after which a run starts over.
fn any_event_or_attempt() -> impl Strategy<Value = Event> {
    prop_oneof![12 => any_event(), 1 => (2..9u32).prop_map(|n| Event::AttemptStarted(format!("p{n}").as_str().into()))]
}

/// What holds for every state that can be reached.
fn assert_sound(state: &WorkflowState) -> Result<(), TestCaseError> {
    let text = serde_json::to_string(state).unwrap();
    prop_assert_eq!(&serde_json::from_str::<WorkflowState>(&text).unwrap(), state, "it survives the disk");

    let over = !state.is_active();
    prop_assert_eq!(state.end_time.is_some(), over);
    prop_assert!(!over || (state.connection.is_none() && state.current_node.is_none()));
    prop_assert!(state.queue_position.is_none() || state.phase() <= Some(Phase::Queued) && !over);
    prop_assert!(state.failed_node.is_none() || state.status() == Status::Failed);
    prop_assert!(!over || state.nodes.values().all(|node| node.status != NodeStatus::Executing));
    let current = state.current_node.as_ref().map(|id| state.nodes.get(id).map(NodeState::is_done));
    prop_assert!(matches!(current, None | Some(Some(false))), "the current node is one that is not done");

    let times = [Some(state.queue_time), state.start_time, state.end_time];
    let times: Vec<_> = times.into_iter().flatten().collect();
    prop_assert!(times.is_sorted() && times.iter().all(|time| *time <= state.last_update), "{times:?}");
    prop_assert!(state.start_time.is_some() || state.status() != Status::Executing);

    let mut files: Vec<_> = state.outputs.iter().map(|output| output.remote.filename.clone()).collect();
    files.sort();
    files.dedup();
    prop_assert_eq!(files.len(), state.outputs.len(), "a file counts once");
    prop_assert!(state.outputs.iter().all(|output| output.size.is_some() == output.downloaded()));
    Ok(())
}

/// What an event may change within one attempt.
fn assert_forward(before: &WorkflowState, state: &WorkflowState, is_lost: bool) -> Result<(), TestCaseError> {
    prop_assert!(state.progress_percent() >= before.progress_percent());
    prop_assert!(state.overall_percent() >= before.overall_percent());
    prop_assert!(state.phase() >= before.phase() || !state.is_active());
    prop_assert!(before.submission != Submission::Accepted || state.submission == Submission::Accepted);
    let mut here = before.outputs.iter().filter(|output| output.downloaded());
    prop_assert!(
        is_lost
            || here
                .all(|known| state.outputs.iter().any(|output| output.remote == known.remote && output.downloaded()))
    );
    Ok(())
}

proptest! {
    #[test]
    fn every_reachable_state_is_sound(events in proptest::collection::vec(any_event_or_attempt(), 0..40)) {
        // Nothing runs before the plan is known.
        let mut state = run([planned()]);
        for (second, event) in (2..).zip(events) {
            let before = state.clone();
            let is_lost = matches!(event, Event::LostHere(_));
            let changed = state.apply(at(second), event);
            prop_assert_eq!(changed, state != before, "it says whether anything changed");
            prop_assert_eq!(state.last_update, if changed { at(second) } else { before.last_update });
            prop_assert_eq!((&state.id, state.queue_time), (&before.id, before.queue_time));
            prop_assert!(state.cancel_requested || !before.cancel_requested, "a cancel is not taken back");
            prop_assert!(state.start_time == before.start_time || before.start_time.is_none());
            assert_sound(&state)?;
            if state.attempt == before.attempt {
                assert_forward(&before, &state, is_lost)?;
            } else {
                prop_assert_eq!(state.attempt, before.attempt + 1);
                prop_assert_eq!((state.submission, state.outputs.len(), state.texts.len()), (Submission::None, 0, 0));
                prop_assert_eq!((state.progress_percent(), &state.current_node), (0.0, &None));
            }
        }
    }

    #[test]
    fn what_was_asked_to_stop_never_ends_completed(
        before in proptest::collection::vec(any_event_or_attempt(), 0..20),
        after in proptest::collection::vec(any_event_or_attempt(), 0..20),
    ) {
        let mut state = run(before);
        let was_active = state.is_active();
        state.apply(at(30), Event::CancelRequested);
        for (second, event) in (31..).zip(after.iter().cloned().chain([Event::Completed])) {
            state.apply(at(second), event);
        }
        let unconfirmed = after.iter().any(|event| matches!(event, Event::CancelUnconfirmed(_)));
        let expected = state.status() == Status::Cancelled || (unconfirmed && state.status() == Status::Failed);
        prop_assert!(!was_active || expected, "{:?}", state.lifecycle);
    }

    #[test]
    fn warnings_are_bounded_and_said_once(texts in proptest::collection::vec(0..150u32, 0..400)) {
        let mut state = accepted();
        for text in texts {
            state.apply(at(1), Event::Warned(text.to_string()));
        }
        let mut distinct = state.warnings.clone();
        distinct.sort();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), state.warnings.len());
        prop_assert!(state.warnings.len() <= MAX_WARNINGS);
    }
}
