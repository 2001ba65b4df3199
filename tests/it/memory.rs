//! Memory stays bounded, whatever a box sends and however slowly a client reads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    graphs::{self, tag},
    loopback,
    sandbox_stage::{PATIENCE, Stage},
    support::{LOOK_EVERY, service::Service},
};

/// What one box may cost, as docs/OPERATIONS.md has it.
const ALLOWANCE: u64 = 300 << 20;

/// How much of each kind a flood has.
const PICTURES: usize = 8;
const TEXTS: usize = 8;
const PATTER: usize = 2_000;

/// A ComfyUI that takes any prompt and then talks without measure.
struct Talker {
    history: fn(&str) -> Response,
    /// Whether a prompt runs for ever rather than being over at once.
    keeps_running: bool,
    floods: bool,
    prompt: std::sync::Mutex<Value>,
    /// How often it was asked for history, or how many messages it has sent.
    told: AtomicUsize,
}

impl Talker {
    fn with_history(history: fn(&str) -> Response) -> Arc<Self> {
        Self::new(history, false)
    }

    fn flooding() -> Arc<Self> {
        Self::new(|_| Json(json!({})).into_response(), true)
    }

    fn new(history: fn(&str) -> Response, floods: bool) -> Arc<Self> {
        let prompt = std::sync::Mutex::new(Value::Null);
        Arc::new(Self { history, keeps_running: floods, floods, prompt, told: AtomicUsize::new(0) })
    }

    async fn serve(self: &Arc<Self>) -> u16 {
        let router = Router::new()
            .route("/system_stats", get(|| async { Json(json!({"system": {"comfyui_version": "0.3.75"}})) }))
            .route("/object_info/{class}", get(definition))
            .route("/prompt", post(take_prompt))
            .route("/queue", get(queue))
            .route("/history/{id}", get(history))
            .route("/ws", get(socket))
            .with_state(self.clone());
        loopback::serve(router).await.port()
    }

    fn prompt_id(&self) -> Value {
        self.prompt.lock().unwrap()["prompt_id"].clone()
    }

    /// Waits until it has told this much.
    async fn has_told(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.told.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < deadline, "told {} of {times}", self.told.load(Ordering::SeqCst));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn definition(Path(class): Path<String>) -> Json<Value> {
    Json(json!({class: {"input": {}, "output_node": true}}))
}

async fn take_prompt(State(talker): State<Arc<Talker>>, Json(prompt): Json<Value>) -> Json<Value> {
    let answer = json!({"prompt_id": prompt["prompt_id"], "number": 1, "node_errors": {}});
    *talker.prompt.lock().unwrap() = prompt;
    Json(answer)
}

async fn queue(State(talker): State<Arc<Talker>>) -> Json<Value> {
    let running = if talker.keeps_running { json!([[1, talker.prompt_id(), {}, {}, []]]) } else { json!([]) };
    Json(json!({"queue_running": running, "queue_pending": []}))
}

async fn history(State(talker): State<Arc<Talker>>, Path(id): Path<String>) -> Response {
    talker.told.fetch_add(1, Ordering::SeqCst);
    (talker.history)(&id)
}

async fn socket(State(talker): State<Arc<Talker>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| async move {
        if talker.floods {
            flood(&talker, socket).await;
        }
    })
}

/// A first step, so that it does not pass for deaf; pictures of 10 MB; messages of 15 MB that would be huge in memory;
/// and then the patter of a sampler.
async fn flood(talker: &Talker, mut socket: WebSocket) {
    let mut send = async |message: Message| {
        talker.told.fetch_add(1, Ordering::SeqCst);
        socket.send(message).await.is_ok()
    };
    let status = json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "x"}});
    let mut is_open = send(Message::text(status.to_string())).await;
    while talker.prompt_id().is_null() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let progress = |step: usize| {
        let data = json!({"prompt_id": talker.prompt_id(), "node": "2", "value": step, "max": PATTER});
        Message::text(json!({"type": "progress", "data": data}).to_string())
    };
    is_open = is_open && send(progress(0)).await;
    let picture = Bytes::from([&[0, 0, 0, 1, 0, 0, 0, 1][..], &vec![7; 10 << 20]].concat());
    for _ in 0..PICTURES {
        is_open = is_open && send(Message::Binary(picture.clone())).await;
    }
    let data = json!({"prompt_id": talker.prompt_id(), "node": "3", "output": {"text": ["T"]}});
    let text = json!({"type": "executed", "data": data}).to_string().replace("\"T\"", &vec!["[]"; 5 << 20].join(","));
    for _ in 0..TEXTS {
        is_open = is_open && send(Message::text(text.clone())).await;
    }
    for step in 1..PATTER {
        is_open = is_open && send(progress(step)).await;
    }
    // Stays open as long as the other side wants it.
    while is_open && socket.recv().await.is_some_and(|message| message.is_ok()) {}
}

/// Runs a workflow on a box that talks without measure until it has told this much, and stops it.
async fn listen_to(stage: &Stage, talker: &Arc<Talker>, times: usize) {
    let client = stage.service.client();
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["comfyui_port"] = json!(talker.serve().await);
    let id = client.accepted(&request).await;
    talker.has_told(times).await;
    assert_eq!(client.progress(&id).await["error_message"], Value::Null);
    client.cancel(&id).await;
    // What says that the prompt runs for ever says so also after an interrupt.
    if !talker.keeps_running {
        client.wait_for_status(&id, "cancelled", PATIENCE).await;
    }
}

/// A service that has done a first run, and what memory it has.
async fn idle() -> (Stage, u64) {
    let stage = Stage::new().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.completed(&id).await;
    let idle = stage.service.memory("VmRSS");
    (stage, idle)
}

fn assert_within_allowance(stage: &Stage, idle: u64) {
    let most = stage.service.memory("VmHWM");
    assert!(most < idle + ALLOWANCE, "{} MiB idle, {} MiB at most", idle >> 20, most >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_history_is_not_taken_in() {
    let (stage, idle) = idle().await;
    let endless = |id: &str| {
        let chunk = Bytes::from("[],".repeat(100_000));
        let start = Bytes::from(format!(r#"{{"{id}": {{"outputs": ["#));
        let rest = futures_util::stream::repeat_with(move || chunk.clone());
        let chunks = futures_util::StreamExt::chain(futures_util::stream::iter([start]), rest);
        Body::from_stream(futures_util::StreamExt::map(chunks, Ok::<_, std::io::Error>)).into_response()
    };
    listen_to(&stage, &Talker::with_history(endless), 3).await;
    assert_within_allowance(&stage, idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_would_be_huge_in_memory_is_not_taken_in() {
    let (stage, idle) = idle().await;
    let dense = |id: &str| {
        let lists = vec!["[]"; 6 << 20].join(",");
        format!(r#"{{"odd": NaN, "{id}": {{"outputs": {{"3": [{lists}]}}}}}}"#).into_response()
    };
    listen_to(&stage, &Talker::with_history(dense), 3).await;
    assert_within_allowance(&stage, idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_the_websocket_is_held_back() {
    let (stage, idle) = idle().await;
    listen_to(&stage, &Talker::flooding(), 1 + PICTURES + TEXTS + PATTER).await;
    assert_within_allowance(&stage, idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_that_would_be_huge_in_memory_are_not_taken_in() {
    let (stage, idle) = idle().await;
    let dense = |Path(class): Path<String>| async move {
        let lists = vec!["[]"; 200_000].join(",");
        format!(
            r#"{{"{class}": {{"input": {{"required": {{"a": [[{lists}]]}}}}, "output": [], "output_node": true}}}}"#
        )
    };
    let router = Router::new()
        .route("/system_stats", get(|| async { Json(json!({"system": {"comfyui_version": "0.3.75"}})) }))
        .route("/object_info/{class}", get(dense));
    let classes: serde_json::Map<String, Value> =
        (0..30).map(|n| (n.to_string(), json!({"class_type": format!("Dense{n}"), "inputs": {}}))).collect();
    let mut request = stage.request(&classes.into());
    request["comfyui_port"] = json!(loopback::serve(router).await.port());
    request["dry_run"] = json!(true);
    // As many as may look at one box at once.
    let client = stage.service.client();
    let looks = futures_util::future::join_all((0..4).map(|_| client.execute(&request))).await;
    for (status, plan) in looks {
        assert_eq!((status.as_u16(), &plan["findings"][0]["code"]), (200, &json!("no_definitions")), "{plan:#}");
    }
    assert_within_allowance(&stage, idle);
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_let_go() {
    let service = Service::start(&[]);
    let mut stream = TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap();
    let (mut answers, mut requests) = stream.split();
    let asking = async {
        let many = "GET /comfyui/workflow/unknown/progress HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
        // Stands still when all buffers are full, and fails when the other side has hung up.
        while requests.write_all(many.as_bytes()).await.is_ok() {}
    };
    tokio::time::timeout(PATIENCE * 3, asking).await.expect("the service to hang up");
    let ended = tokio::time::timeout(PATIENCE * 3, tokio::io::copy(&mut answers, &mut tokio::io::sink())).await;
    ended.expect("an end of the answers").ok();
    assert_eq!(service.client().get("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_workflows_in_line_are_on_disk_rather_than_in_memory() {
    // Beyond what glibc keeps for later when it is given back.
    const EACH: usize = 40 << 20;
    let mut stage = Stage::with_settings(&[("limits.max_running", 1.into())]).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let first = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    hold.reached().await;
    let before = stage.service.memory("VmRSS");
    let mut ids = Vec::new();
    for _ in 0..4 {
        let mut graph = graphs::slow(&tag(), 1, 1);
        graph["1"]["inputs"]["note"] = "x".repeat(EACH).into();
        // Only what is shown is kept of it.
        graph["2"]["_meta"] = json!({"title": "y".repeat(1 << 20)});
        ids.push(stage.start(&graph).await);
    }
    for restarted in [false, true] {
        if restarted {
            stage.service.kill();
            stage.service.launch();
        }
        let more = stage.service.memory("VmRSS").saturating_sub(before);
        assert!(more < EACH as u64 * 2, "{} MiB for four of {} MiB", more >> 20, EACH >> 20);
    }
    assert!(std::fs::metadata(stage.service.state_file()).unwrap().len() < 1 << 20);
    for id in &ids[2..] {
        stage.service.client().cancel(id).await;
    }
    hold.release();
    for id in [&first, &ids[0], &ids[1]] {
        stage.completed(id).await;
    }
}
