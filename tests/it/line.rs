//! Our own line: who runs, who waits, who is turned away, and what becomes of the line when something ends early.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use comfy_remote::{app, config::Config, sandbox::Sandbox, sandbox::SandboxOptions};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::{
        client::{ApiClient, answer, is_over},
        service::Service,
    },
};

const ONE_PER_BOX: (&str, toml::Value) = ("limits.max_running_per_box", toml::Value::Integer(1));

impl Stage {
    /// A workflow that takes no time.
    fn quick(&self) -> Value {
        self.request(&graphs::slow(&tag(), 1, 1))
    }

    async fn assert_positions(&self, expected: &[(&String, Value)]) {
        for (id, position) in expected {
            let progress = self.service.client().progress(id).await;
            assert_eq!(progress["local_queue_position"], *position, "{progress:#}");
            if position.is_number() {
                assert_eq!((&progress["status"], &progress["phase"]), (&json!("queued"), &json!("waiting")));
            }
        }
    }

    async fn accept(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.service.client().accepted(&self.quick()).await);
        }
        ids
    }

    /// The ids on record, as the disk has them.
    fn on_record(&self) -> BTreeSet<String> {
        let state: Value = serde_json::from_slice(&fs::read(self.service.state_file()).unwrap()).unwrap();
        state["workflows"].as_object().unwrap().keys().cloned().collect()
    }

    /// All of them complete, one after the other in this order.
    async fn complete_in_order(&self, ids: &[String]) {
        let mut times = Vec::new();
        for id in ids {
            let done = self.completed(id).await;
            assert_eq!(done["local_queue_position"], Value::Null);
            times.push((done["start_time"].as_str().unwrap().to_owned(), done["end_time"].clone()));
        }
        assert!(times.is_sorted_by_key(|(start, _)| start.clone()), "{times:#?}");
    }
}

/// Points a request at another box.
fn to_box(mut request: Value, other: &Sandbox) -> Value {
    request["ssh_connection"] = json!(other.ssh_connection());
    request["comfyui_port"] = json!(other.comfyui_port());
    request["comfyui_input_dir"] = json!(other.input_dir());
    request["comfyui_output_dir"] = json!(other.output_dir());
    request
}

#[tokio::test]
async fn a_full_box_holds_up_its_own_workflows_in_their_order_and_no_other_box() {
    // Whoever waits in line gets the answer at once: longer than this the client does not wait.
    let stage = Stage::with_settings(&[ONE_PER_BOX, ("ssh.execute_wait_s", 600.into())]).await;
    let other = Sandbox::start(SandboxOptions::default()).await.unwrap();
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let ids = stage.accept(4).await;
    hold.reached().await;
    let elsewhere = stage.service.client().accepted(&to_box(stage.quick(), &other)).await;
    stage.completed(&elsewhere).await;
    stage
        .assert_positions(&[(&ids[0], json!(null)), (&ids[1], json!(1)), (&ids[2], json!(2)), (&ids[3], json!(3))])
        .await;
    let newest = stage.service.client().state().await.1;
    assert_eq!(
        (&newest["state"]["workflow_id"], &newest["state"]["local_queue_position"]),
        (&json!(ids[3]), &json!(3))
    );
    assert_eq!(stage.sandbox.engine().submissions(), 1);
    hold.release();
    stage.complete_in_order(&ids).await;
}

#[tokio::test]
async fn an_alias_is_no_way_around_the_limit_of_a_box_also_after_a_restart() {
    let mut stage = Stage::with_settings(&[ONE_PER_BOX]).await;
    fs::create_dir_all(stage.service.folder().join(".ssh")).unwrap();
    let config = "Host one two\nHostName 127.0.0.1\n";
    fs::write(stage.service.folder().join(".ssh/config"), config).unwrap();
    let plain = stage.sandbox.ssh_connection();
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let mut ids = stage.accept(1).await;
    hold.reached().await;
    for connection in [
        plain.replace("@127.0.0.1", "@one"),
        plain.replace("@127.0.0.1", "@two"),
        plain.replace("ssh ", "ssh -o HostName=127.0.0.1 ").replace("@127.0.0.1", "@three"),
        plain.replace("@127.0.0.1", "@127.1"),
    ] {
        let mut request = stage.quick();
        request["ssh_connection"] = json!(connection);
        ids.push(stage.service.client().accepted(&request).await);
    }
    for restarted in [false, true] {
        if restarted {
            stage.service.kill();
            stage.service.launch();
        }
        for (index, id) in ids.iter().enumerate().skip(1) {
            stage.assert_positions(&[(id, json!(index))]).await;
        }
    }
    hold.release();
    stage.complete_in_order(&ids).await;
}

#[tokio::test]
async fn the_overall_limit_counts_every_box_and_a_cancel_in_line_reaches_out_to_none() {
    let stage = Stage::with_settings(&[("limits.max_running", 1.into())]).await;
    let client = stage.service.client();
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let first = client.accepted(&stage.quick()).await;
    hold.reached().await;
    let never = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    never.set_nonblocking(true).unwrap();
    let photo = stage.service.folder().join("photo.png");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &photo).unwrap();
    let mut request = stage.quick();
    request["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", never.local_addr().unwrap().port()));
    request["input_images"] = json!([photo]);
    let second = client.accepted(&request).await;
    let third = client.accepted(&stage.quick()).await;
    stage.assert_positions(&[(&second, json!(1)), (&third, json!(2))]).await;

    assert_eq!(client.cancel(&second).await.0, StatusCode::OK);
    let cancelled = client.wait_for_status(&second, "cancelled", PATIENCE).await;
    assert_eq!(cancelled["local_queue_position"], Value::Null);
    stage.assert_positions(&[(&third, json!(1))]).await;
    hold.release();
    stage.completed(&first).await;
    stage.completed(&third).await;
    assert_eq!(never.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[tokio::test]
async fn a_killed_service_keeps_its_line() {
    let mut stage = Stage::with_settings(&[ONE_PER_BOX]).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let ids = stage.accept(11).await;
    hold.reached().await;
    stage.service.kill();
    stage.service.launch();
    let late = stage.service.client().accepted(&stage.quick()).await;
    for (index, id) in ids.iter().enumerate().skip(1) {
        stage.assert_positions(&[(id, json!(index))]).await;
    }
    stage.assert_positions(&[(&ids[0], json!(null)), (&late, json!(11))]).await;
    hold.release();
    stage.complete_in_order(&[ids, vec![late]].concat()).await;
    assert_eq!(stage.sandbox.engine().submissions(), 12);
}

#[tokio::test]
async fn a_stopped_service_lets_nobody_come_up_on_its_way_out() {
    let mut stage = Stage::with_settings(&[ONE_PER_BOX]).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let ids = stage.accept(9).await;
    hold.reached().await;
    assert!(stage.service.terminate(Duration::from_secs(10)).success());
    let state: Value = serde_json::from_slice(&fs::read(stage.service.state_file()).unwrap()).unwrap();
    for id in &ids[1..] {
        assert_eq!(state["workflows"][id]["lifecycle"], json!({"active": "waiting"}));
    }
    stage.service.launch();
    hold.release();
    stage.complete_in_order(&ids).await;
}

#[tokio::test]
async fn what_has_begun_goes_on_after_a_restart_also_over_a_lower_limit() {
    let mut stage = Stage::new().await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let mut ids = stage.accept(1).await;
    hold.reached().await;
    ids.extend(stage.accept(2).await);
    let in_comfyuis_line = |progress: &Value| progress["queue_position"] == 1;
    stage.service.client().wait_for(&ids[1], "ComfyUI's line", PATIENCE, in_comfyuis_line).await;
    stage.service.kill();
    stage.service.configure(&[ONE_PER_BOX]);
    stage.service.launch();
    stage.service.client().wait_for(&ids[1], "ComfyUI's line again", PATIENCE, in_comfyuis_line).await;
    stage.assert_positions(&[(&ids[0], json!(null)), (&ids[2], json!(1))]).await;
    hold.release();
    stage.complete_in_order(&ids).await;
    assert_eq!(stage.sandbox.engine().submissions(), 3);
}

#[tokio::test]
async fn a_burst_puts_as_many_in_line_as_may_wait_and_the_rest_is_told_to_come_back() {
    let stage = Stage::with_settings(&[ONE_PER_BOX, ("limits.max_waiting", 5.into())]).await;
    let client = stage.service.client();
    let finished = stage.accept(1).await.remove(0);
    stage.completed(&finished).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let running = stage.accept(1).await.remove(0);
    hold.reached().await;

    let body = stage.quick();
    let burst = (0..30).map(|n| {
        let key = format!("key {n}");
        let request = client.request(Method::POST, "/comfyui/workflow/execute").json(&body);
        answer(request.header("idempotency-key", key))
    });
    let answers = futures_util::future::join_all(burst).await;
    let accepted: Vec<(usize, String)> = answers.iter().enumerate().filter_map(as_accepted).collect();
    assert_eq!(accepted.len(), 5);
    let expected: BTreeSet<String> =
        accepted.iter().map(|(_, id)| id.clone()).chain([finished.clone(), running]).collect();
    assert_eq!(stage.on_record(), expected);
    let graphs = format!("{}.graphs", stage.service.state_file().display());
    assert_eq!(fs::read_dir(graphs).unwrap().count(), 7, "what was refused leaves nothing behind");

    // A repeat is no new workflow, a retry is one.
    let (index, id) = &accepted[0];
    let repeat = client.request(Method::POST, "/comfyui/workflow/execute").json(&body);
    let (status, repeated) = answer(repeat.header("idempotency-key", format!("key {index}"))).await;
    assert_eq!((status, &repeated["workflow_id"]), (StatusCode::OK, &json!(id)));
    let retry = client.request(Method::POST, &format!("/comfyui/workflow/{finished}/retry"));
    assert_eq!(answer(retry).await.0, StatusCode::TOO_MANY_REQUESTS);
    assert_turned_away(&client, &body).await;

    assert_eq!(client.cancel(id).await.0, StatusCode::OK);
    client.wait_for_status(id, "cancelled", PATIENCE).await;
    let instead = accepted_at_last(&client, &body).await;
    hold.release();
    stage.completed(&instead).await;
}

/// The number and the id of an answer that is none of the two that may come.
fn as_accepted((index, (status, answer)): (usize, &(StatusCode, Value))) -> Option<(usize, String)> {
    if *status == StatusCode::TOO_MANY_REQUESTS {
        let message = "Too many workflows are waiting (5); try again later";
        assert_eq!(*answer, json!({"success": false, "message": message}));
        return None;
    }
    assert_eq!((*status, &answer["message"]), (StatusCode::OK, &json!("Workflow execution started")), "{answer}");
    Some((index, answer["workflow_id"].as_str().unwrap().to_owned()))
}

async fn assert_turned_away(client: &ApiClient, body: &Value) {
    let request = client.request(Method::POST, "/comfyui/workflow/execute").json(body);
    let answer = request.header(header::ORIGIN, "http://localhost").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().is_ok_and(|seconds| seconds > 0));
    assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://localhost");
    assert_eq!(answer.headers()[header::ACCESS_CONTROL_EXPOSE_HEADERS], "retry-after");
}

#[tokio::test]
async fn a_place_is_free_again_however_its_workflow_ends() {
    let stage = Stage::with_settings(&[ONE_PER_BOX, ("limits.max_waiting", 0.into())]).await;
    let client = stage.service.client();
    for (graph, end) in [
        (graphs::fail(&tag()), "failed"),
        (graphs::slow(&tag(), 3000, 10), "cancelled"),
        (graphs::slow(&tag(), 1, 1), "completed"),
    ] {
        let request = stage.request(&graph);
        let id = accepted_at_last(&client, &request).await;
        assert_eq!(client.execute(&request).await.0, StatusCode::TOO_MANY_REQUESTS, "its place is taken");
        if end == "cancelled" {
            client.cancel(&id).await;
        }
        client.wait_for_status(&id, end, PATIENCE).await;
    }
    accepted_at_last(&client, &stage.quick()).await;
}

/// The place is free a moment after the status is final.
async fn accepted_at_last(client: &ApiClient, request: &Value) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (status, answer) = client.execute(request).await;
        if status == StatusCode::OK {
            return answer["workflow_id"].as_str().unwrap().to_owned();
        }
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
        assert!(std::time::Instant::now() < deadline, "the place never was free");
        tokio::time::sleep(crate::support::LOOK_EVERY).await;
    }
}

/// Panics once, in whoever says these words.
struct PanicsOnceAt {
    words: &'static str,
    is_over: AtomicBool,
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for PanicsOnceAt {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let panics = message.0 == self.words && !self.is_over.swap(true, Ordering::Relaxed);
        assert!(!panics, "the test wants it so");
    }
}

/// The log is the one thing that a test can break from outside, so that is where the panic comes from. It runs in the
/// test's own thread, as everything of the service here does.
#[tokio::test]
async fn a_panic_in_one_execution_fails_that_workflow_only() {
    let panics = PanicsOnceAt { words: "submitted", is_over: AtomicBool::new(false) };
    let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(panics));
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::defaults().unwrap();
    config.server.bind = "127.0.0.1:0".parse().unwrap();
    config.state.file = folder.path().join("state.json");
    config.ssh.known_hosts = folder.path().join("known_hosts");
    config.ssh.config_file = Some(folder.path().join("no_ssh_config"));
    config.ssh.use_agent = false;
    config.defaults.output_dir = folder.path().join("outputs").display().to_string();
    config.limits.max_running_per_box = 1;
    let service = app::Service::start(&config).await.unwrap();
    let client = ApiClient::new(format!("http://{}", service.address()));

    let mut ids = Vec::new();
    for name in ["first.json", "second.json", "third.json"] {
        let file = folder.path().join(name);
        fs::write(&file, graphs::slow(&tag(), 1, 1).to_string()).unwrap();
        ids.push(client.accepted(&to_box(json!({"workflow_file": file}), &sandbox)).await);
    }
    let failed = client.wait_for_status(&ids[0], "failed", PATIENCE).await;
    assert_eq!(failed["error_code"], "internal");
    for id in &ids[1..] {
        client.wait_for_status(id, "completed", PATIENCE).await;
    }
    service.stop().await;
    sandbox.stop().await;
}

#[tokio::test]
async fn a_real_comfyui_gets_no_more_than_may_run_in_order() {
    let Some(far) = FarEnd::start(Kind::ComfyUi).await else { return };
    let service = Service::start(&[ONE_PER_BOX]);
    let (client, files) = (service.client(), tempfile::tempdir().unwrap());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.accepted(&far.request(files.path(), &graphs::slow(&tag(), 5, 100))).await);
    }
    let waiting = client.progress(&ids[2]).await;
    assert_eq!((&waiting["phase"], &waiting["local_queue_position"]), (&json!("waiting"), &json!(2)));
    let mut done = Vec::new();
    for id in &ids {
        done.push(client.wait_for(id, "its end, alone on the box", PATIENCE, is_over).await);
        assert!(far.prompts_in_line().await.len() <= 1);
    }
    assert!(done.iter().all(|progress| progress["status"] == "completed"), "{done:#?}");
    let begun_after_the_end_before =
        |pair: &[Value]| pair[0]["end_time"].as_str().unwrap() <= pair[1]["start_time"].as_str().unwrap();
    assert!(done.windows(2).all(begun_after_the_end_before), "{done:#?}");
}
