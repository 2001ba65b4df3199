//! State files as released versions wrote them still load, and mean the same.
//!
//! `tests/fixtures/state/format-<number>-<month>.json` and the folder of its graphs were written by a running service.
//! Another is written by `cargo test --test it write_a_fixture -- --ignored`, into the file that
//! `TESTS_WRITE_STATE_FIXTURE` names; those that are there stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use comfy_remote::{
    sandbox::{LostAnswer, Sandbox, SandboxOptions},
    store::{Opened, Options, Store},
    workflow::{Caller, WorkflowId, WorkflowState},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    graphs::{self, tag},
    loopback::Deaf,
    sandbox_stage::{PATIENCE, Stage},
    support::{client::answer, service::Service},
};

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

fn graphs_of(state_file: &Path) -> PathBuf {
    state_file.with_extension("json.graphs")
}

fn copy_with_graphs(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::create_dir_all(graphs_of(to)).unwrap();
    for graph in fs::read_dir(graphs_of(from)).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&graph, graphs_of(to).join(graph.file_name().unwrap())).unwrap();
    }
}

/// Opens the store on a file, and ends it in order after `look`.
async fn with_store(file: &Path, look: impl AsyncFn(&Store)) {
    let options =
        Options { file: file.to_owned(), write_interval: Duration::from_millis(10), keep_finished: usize::MAX };
    let stop = CancellationToken::new();
    let Opened { store, warnings, writer } = Store::open(options, stop.clone()).await.unwrap();
    assert_eq!(warnings, Vec::<String>::new(), "{}", file.display());
    look(&store).await;
    stop.cancel();
    writer.await.unwrap();
    assert_eq!(store.troubles(), Vec::<String>::new());
}

fn workflows(file: &Path) -> serde_json::Map<String, Value> {
    let document: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    document["workflows"].as_object().unwrap().clone()
}

/// Whether everything that `old` says is in `new` as it was; fields may have been added.
fn keeps(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(key, value)| new.get(key).is_some_and(|now| keeps(value, now)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| keeps(old, new))
        }
        _ => old == new,
    }
}

#[tokio::test]
async fn files_of_every_version_load_keep_their_meaning_and_load_again() {
    assert!(!fixtures().is_empty());
    for fixture in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        copy_with_graphs(&fixture, &file);
        let before = workflows(&fixture);
        assert!(before.len() >= 12, "{}", fixture.display());
        for _ in 0..2 {
            with_store(&file, async |store: &Store| {
                for (id, old) in &before {
                    let id = WorkflowId::from(id.as_str());
                    let state = store.get(&id).unwrap();
                    let new = serde_json::to_value(&*state).unwrap();
                    assert!(keeps(old, &new), "{}\n{old:#}\n{new:#}", fixture.display());
                    assert!(store.source(&id).await.is_ok(), "{id}");
                }
            })
            .await;
            let after = workflows(&file);
            assert!(before.keys().eq(after.keys()));
            assert!(before.iter().all(|(id, old)| keeps(old, &after[id])), "{}", fixture.display());
        }
    }
}

/// The fixture's workflows are named after what they stand for.
#[tokio::test]
async fn the_first_formats_workflows_are_what_their_names_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.json");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state/format-1-2026-11.json");
    copy_with_graphs(&fixture, &file);
    with_store(&file, async |store: &Store| {
        let states: Vec<_> =
            workflows(&fixture).keys().map(|id| store.get(&WorkflowId::from(id.as_str())).unwrap()).collect();
        let named = |name: &str| -> &WorkflowState {
            states.iter().find(|state| state.request.workflow_name == name).unwrap_or_else(|| panic!("no {name}"))
        };
        for (name, phase) in [
            ("waiting", "Waiting"),
            ("reconnecting", "Running"),
            ("queued", "Queued"),
            ("running", "Running"),
            ("downloading", "Downloading"),
        ] {
            let state = named(name);
            assert_eq!(format!("{:?}", state.phase().unwrap()), phase, "{name}");
            assert!(state.is_active() && state.end_time.is_none());
        }
        for (name, status) in [
            ("completed", "Completed"),
            ("cancelled", "Cancelled"),
            ("failed", "Failed"),
            ("second attempt", "Completed"),
            ("with a key", "Completed"),
            ("unclear", "Completed"),
        ] {
            let state = named(name);
            assert_eq!(format!("{:?}", state.status()), status, "{name}");
            assert!(state.end_time >= state.start_time && state.start_time.is_some());
        }
        let completed = named("completed");
        assert!(completed.texts[0].text.contains("ünï") && completed.outputs.iter().all(|output| output.downloaded()));
        assert_eq!(completed.progress_percent(), 100.0);
        let failed: Vec<_> = states.iter().filter(|state| state.request.workflow_name == "failed").collect();
        let detail = failed[0].failure().unwrap().detail.clone().unwrap();
        assert!(failed[0].failure().unwrap().message.contains("boom") && !detail.traceback.is_empty(), "{detail:?}");
        assert_eq!(failed[1].retry_of.as_ref(), Some(&failed[0].id));
        assert!(named("cancelled").cancel_requested);
        let second = named("second attempt");
        assert_eq!((second.attempt, second.warnings.len()), (2, 1), "{:?}", second.warnings);
        assert!(named("unclear").unclear_because.is_some());
        assert!(named("reconnecting").connection.as_ref().unwrap().cause.is_some());
        assert!(named("queued").queue_position.is_some());
        assert_eq!(named("with a key").idempotency.as_ref().unwrap().tunnel_error, None);
        let refused = store.by_idempotency_key(&Caller::new("anybody"), "another key").unwrap();
        assert!(refused.idempotency.as_ref().unwrap().tunnel_error.is_some() && refused.failure().is_some());
    })
    .await;
}

/// Runs one of everything, and keeps the state file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes a fixture"]
async fn write_a_fixture() {
    let target =
        PathBuf::from(std::env::var_os("TESTS_WRITE_STATE_FIXTURE").expect("TESTS_WRITE_STATE_FIXTURE is set"));
    // Only what waits for the disk is written, so that the last one accepted is seen waiting.
    let service =
        Service::start(&[("state.write_interval_ms", 3_600_000.into()), ("limits.resubmit_lost", true.into())]);
    let stage = Stage { sandbox: Sandbox::start(SandboxOptions::default()).await.unwrap(), service };
    let away = Sandbox::start(SandboxOptions::default()).await.unwrap();
    finished_ones(&stage).await;
    active_ones(&stage, &away).await;
    let file = stage.service.state_file();
    copy_with_graphs(&file, &target);
    let mut text = fs::read_to_string(&target).unwrap();
    let places = [
        (stage.service.folder().to_owned(), "/home/me"),
        (stage.sandbox.root().to_owned(), "/workspace/ComfyUI"),
        (away.root().to_owned(), "/workspace/ComfyUI"),
        (stage.sandbox.client_key().parent().unwrap().to_owned(), "/home/me/.ssh"),
        (away.client_key().parent().unwrap().to_owned(), "/home/me/.ssh"),
    ];
    for (place, written) in &places {
        text = text.replace(place.to_str().unwrap(), written);
    }
    fs::write(&target, text).unwrap();
}

async fn start(stage: &Stage, name: &str, graph: &Value) -> String {
    stage.service.client().accepted(&named(stage.request(graph), name)).await
}

fn named(mut request: Value, name: &str) -> Value {
    request["workflow_name"] = json!(name);
    request
}

async fn finished_ones(stage: &Stage) {
    let client = stage.service.client();
    let execute = |key: &str, body: &Value| {
        client.request(Method::POST, "/comfyui/workflow/execute").header("idempotency-key", key).json(body)
    };
    stage.completed(&start(stage, "completed", &graphs::mixed(&tag())).await).await;
    let failed = start(stage, "failed", &graphs::fail(&tag())).await;
    client.wait_for_status(&failed, "failed", PATIENCE).await;
    let retried = answer(client.request(Method::POST, &format!("/comfyui/workflow/{failed}/retry"))).await.1;
    client.wait_for_status(retried["workflow_id"].as_str().unwrap(), "failed", PATIENCE).await;

    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let cancelled = start(stage, "cancelled", &graphs::slow(&tag(), 3, 1)).await;
    hold.reached().await;
    client.cancel(&cancelled).await;
    client.wait_for_status(&cancelled, "cancelled", PATIENCE).await;

    let body = named(stage.request(&graphs::slow(&tag(), 1, 1)), "with a key");
    let with_key = answer(execute("a key", &body)).await.1;
    stage.completed(with_key["workflow_id"].as_str().unwrap()).await;
    let mut body = named(body, "refused");
    let deaf = Deaf::new();
    body["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", deaf.port));
    answer(execute("another key", &body)).await;

    stage.sandbox.faults().lose_submit_answers(1, LostAnswer::Cut);
    stage.completed(&start(stage, "unclear", &graphs::slow(&tag(), 1, 1)).await).await;

    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let second = start(stage, "second attempt", &graphs::slow(&tag(), 3, 1)).await;
    hold.reached().await;
    drop(hold);
    stage.sandbox.engine().restart().await.unwrap();
    stage.completed(&second).await;
}

async fn active_ones(stage: &Stage, away: &Sandbox) {
    let client = stage.service.client();
    let at_away = |graph: &Value, name: &str| {
        let mut request = named(stage.request(graph), name);
        request["ssh_connection"] = json!(away.ssh_connection());
        request["comfyui_port"] = json!(away.comfyui_port());
        request
    };
    let report = json!({"images": [{"filename": "big.bin", "subfolder": "", "type": "output", "_size": 200_000_000}]});
    let big = json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report.to_string()}}});
    let downloading = client.accepted(&at_away(&big, "downloading")).await;
    client.wait_for(&downloading, "its phase", PATIENCE, |progress| progress["phase"] == "downloading").await;
    let hold = away.engine().hold_at_step("2", 1);
    let reconnecting = client.accepted(&at_away(&graphs::slow(&tag(), 3, 1), "reconnecting")).await;
    hold.reached().await;
    client.wait_for(&reconnecting, "its phase", PATIENCE, |progress| progress["phase"] == "running").await;
    away.faults().refuse_ssh(true);
    away.faults().cut_ssh();
    let is_away = |progress: &Value| progress["connection"]["state"] == "reconnecting";
    client.wait_for(&reconnecting, "its connection", PATIENCE, is_away).await;
    client.wait_for(&downloading, "its connection", PATIENCE, is_away).await;

    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let running = start(stage, "running", &graphs::slow(&tag(), 3, 1)).await;
    hold.reached().await;
    client.wait_for(&running, "its phase", PATIENCE, |progress| progress["phase"] == "running").await;
    let queued = start(stage, "queued", &graphs::slow(&tag(), 3, 1)).await;
    client.wait_for(&queued, "its place", PATIENCE, |progress| progress["queue_position"] == 1).await;
    start(stage, "waiting", &graphs::slow(&tag(), 1, 1)).await;
}
