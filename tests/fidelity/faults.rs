//! The switches of the sandbox do what they promise, and the generations of ComfyUI differ as they should.

use std::time::Duration;

use comfy_remote::sandbox::{Faults, LostAnswer, Page, Sandbox, Version};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::server::{Answer, Server, Socket, within};

const ID: &str = "0f7c1f6e-6a53-4b0e-9a4c-2a1d54c3f0aa";

fn steps(count: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
        "2": {"class_type": "RigSlowSteps", "inputs": {"image": ["1", 0], "steps": count, "step_ms": 0, "preview_every": 1}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    })
}

struct Bench {
    server: Server,
    socket: Socket,
}

impl Bench {
    async fn new(version: Version) -> Self {
        let server = Server::sandbox(version).await;
        let mut socket = server.connect(Some("me")).await;
        socket.wait_for("the greeting", |message| message["data"]["sid"] == "me").await;
        Self { server, socket }
    }

    fn sandbox(&self) -> &Sandbox {
        self.server.sandbox.as_ref().unwrap()
    }

    fn faults(&self) -> &Faults {
        self.sandbox().faults()
    }

    async fn submit(&self, id: &str) -> Answer {
        self.server.post("/prompt", &json!({"prompt": steps(3), "client_id": "me", "prompt_id": id})).await
    }

    async fn finish(&self, id: &str) -> Value {
        self.server.wait_until_idle().await;
        self.sandbox().engine().history(id).unwrap_or_else(|| panic!("{id} is not in the history"))
    }

    async fn hears_end(&mut self) {
        self.socket.wait_for("the end", |message| message["data"].get("node").is_some_and(Value::is_null)).await;
    }
}

fn kinds(messages: &[Value]) -> Vec<&str> {
    messages.iter().filter_map(|message| message["type"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_stop_a_run_until_released() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    let engine = bench.sandbox().engine().clone();
    let (before, step, history) =
        (engine.hold_before("2"), engine.hold_at_step("2", 2), bench.faults().hold_before_history());
    assert_eq!(bench.submit(ID).await.status, 200);
    within("the first hold", before.reached()).await;
    assert!(!step.is_reached());
    assert_eq!(engine.running().as_deref(), Some(ID));
    before.release();
    within("the second hold", step.reached()).await;
    bench.socket.wait_for("step 2", |message| message["type"] == "progress" && message["data"]["value"] == 2).await;
    drop(step);
    within("the third hold", history.reached()).await;
    bench.socket.wait_for("success", |message| message["type"] == "execution_success").await;
    assert_eq!(bench.server.get(&format!("/history/{ID}")).await.body, json!({}));
    assert_eq!(engine.running().as_deref(), Some(ID), "a run is never in neither place");
    history.release();
    assert_eq!(bench.finish(ID).await["status"]["status_str"], "success");
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupts_end_holds_or_get_lost() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    let hold = bench.faults().hold_at_step("2", 1);
    bench.submit(ID).await;
    within("the hold", hold.reached()).await;
    bench.faults().lose_interrupts(1);
    let interrupt = json!({"prompt_id": ID});
    assert_eq!(bench.server.post("/interrupt", &interrupt).await.status, 200);
    assert_eq!(bench.server.post("/interrupt", &json!({"prompt_id": "another"})).await.status, 200);
    assert_eq!(bench.sandbox().engine().running().as_deref(), Some(ID));
    assert_eq!(bench.server.post("/interrupt", &interrupt).await.status, 200);
    bench.hears_end().await;
    assert!(kinds(&bench.socket.heard).contains(&"execution_interrupted"));
    assert_eq!(bench.sandbox().engine().interrupts(), 3);

    let hold = bench.faults().hold_before("3").stubborn();
    bench.submit("stubborn").await;
    within("the hold", hold.reached()).await;
    bench.server.post("/interrupt", &json!({"prompt_id": "stubborn"})).await;
    tokio::time::timeout(Duration::from_millis(50), bench.server.wait_until_idle()).await.unwrap_err();
    hold.release();
    let messages = bench.finish("stubborn").await["status"]["messages"].clone();
    assert_eq!(messages[2][0], "execution_interrupted");
    assert_eq!(messages[2][1]["node_id"], "3");
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_get_lost() {
    let bench = Bench::new(Version::V0_3_75).await;
    bench.faults().lose_submit_answers(1, LostAnswer::Cut);
    let body = json!({"prompt": steps(1), "prompt_id": "cut"}).to_string();
    let lost = bench.server.http.post(bench.server.url("/prompt")).body(body).send().await;
    assert!(lost.is_err_and(|error| !error.is_timeout()));
    bench.finish("cut").await;
    bench.faults().lose_submit_answers(1, LostAnswer::Never);
    let body = json!({"prompt": steps(1), "prompt_id": "never"}).to_string();
    let request = bench.server.http.post(bench.server.url("/prompt")).body(body).timeout(Duration::from_millis(300));
    assert!(request.send().await.is_err_and(|error| error.is_timeout()));
    bench.finish("never").await;
    assert_eq!(bench.submit("heard").await.status, 200);
    assert_eq!(bench.sandbox().engine().submissions(), 3);
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_answer_instead() {
    let bench = Bench::new(Version::V0_3_75).await;
    for (page, status) in
        [(Page::Login, 200), (Page::Unauthorized, 401), (Page::Redirect, 302), (Page::BadGateway, 502)]
    {
        bench.faults().answer_with(Some(page));
        for path in ["/system_stats", "/queue", "/nope"] {
            let answer = bench.server.get(path).await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.content_type.as_deref(), Some("text/html; charset=utf-8"));
        }
        let url = format!("ws://{}/ws", bench.server.authority);
        assert!(tokio_tungstenite::connect_async(url).await.is_err());
    }
    bench.faults().answer_with(None);
    assert!(bench.server.get("/system_stats").await.body["system"].is_object());
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_engine_does_nothing() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    let hold = bench.faults().hold_at_step("2", 1);
    bench.submit(ID).await;
    within("the hold", hold.reached()).await;
    bench.faults().hang_engine(true);
    hold.release();
    let request = bench.server.http.get(bench.server.url("/queue")).timeout(Duration::from_millis(200)).send();
    assert!(request.await.is_err_and(|error| error.is_timeout()));
    assert_eq!(bench.sandbox().engine().running().as_deref(), Some(ID));
    bench.faults().hang_engine(false);
    bench.hears_end().await;
    bench.finish(ID).await;
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_go_deaf_break_and_babble() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    bench.faults().deafen(true);
    bench.submit("deaf").await;
    bench.finish("deaf").await;
    bench.socket.drain().await;
    assert_eq!(kinds(&bench.socket.heard), ["status"], "pings are answered, nothing else is said");
    bench.faults().deafen(false);
    bench.faults().close_sockets();
    assert!(bench.socket.breaks_off().await);

    let url = format!("ws://{}/ws?clientId=me", bench.server.authority);
    let (mut raw, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    bench.faults().noise(true);
    bench.faults().duplicate_messages(true);
    bench.submit("noisy").await;
    let (mut frames, mut ends) = (vec![], 0);
    within("the end, twice", async {
        while ends < 2 {
            let frame = raw.next().await.unwrap().unwrap();
            ends += usize::from(frame.to_text().is_ok_and(|text| text.contains("\"node\": null, \"prompt_id\"")));
            frames.push(frame);
        }
    })
    .await;
    assert!(frames.iter().any(|frame| frame.is_binary() && frame.len() < 8));
    assert!(frames.iter().any(|frame| frame.to_text().is_ok_and(|text| text.contains("NaN"))));
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_can_be_what_python_writes() {
    let bench = Bench::new(Version::V0_3_75).await;
    bench.faults().nan_in_json(true);
    bench.submit(ID).await;
    bench.server.wait_until_idle().await;
    for path in [format!("/history/{ID}"), "/object_info".into(), "/system_stats".into()] {
        // Not JSON, so the body stays text.
        let body = bench.server.get(&path).await.body;
        let text = body.as_str().unwrap_or_else(|| panic!("{path}: {body}"));
        assert!(text.contains("NaN"), "{path}: {text}");
    }
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn success_can_be_left_out() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    bench.faults().omit_execution_success(true);
    bench.submit(ID).await;
    bench.hears_end().await;
    assert!(!kinds(&bench.socket.heard).contains(&"execution_success"));
    assert_eq!(bench.finish(ID).await["status"]["status_str"], "success");
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_server_knows_less() {
    let mut bench = Bench::new(Version::Old).await;
    bench.socket.send(&json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}})).await;
    let hold = bench.faults().hold_at_step("2", 1);
    let accepted = bench.submit(ID).await;
    assert_ne!(accepted.body["prompt_id"], ID);
    within("the hold", hold.reached()).await;
    assert_eq!(bench.server.post("/interrupt", &json!({"prompt_id": "somebody else's"})).await.status, 200);
    bench.hears_end().await;
    let kinds = kinds(&bench.socket.heard);
    assert!(kinds.contains(&"execution_interrupted"), "{kinds:?}");
    assert!(!kinds.contains(&"progress_state") && !kinds.contains(&"feature_flags"), "{kinds:?}");
    assert!(bench.socket.heard.iter().any(|message| message["type"] == "binary" && message["event"] == 1));
    assert_eq!(bench.server.get("/features").await.status, 404);
    assert_eq!(bench.server.get("/api/jobs").await.status, 404);
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_current_server_is_strict() {
    let mut bench = Bench::new(Version::Current).await;
    for id in ["123", "0F7C1F6E-6A53-4B0E-9A4C-2A1D54C3F0AA", "0f7c1f6e6a534b0e9a4c2a1d54c3f0aa"] {
        let refused = bench.submit(id).await;
        assert_eq!((refused.status, &refused.body["error"]["type"]), (400, &json!("invalid_prompt_id")), "{id}");
    }
    let hold = bench.faults().hold_at_step("2", 1);
    assert_eq!(bench.submit(ID).await.body["prompt_id"], ID);
    within("the hold", hold.reached()).await;
    let refused = bench.submit(ID).await;
    assert_eq!((refused.status, refused.body), (409, json!({"error": "prompt_id already exists"})));
    let unknown = bench.server.post("/prompt", &json!({"prompt": {"1": {"class_type": "Foo", "inputs": {}}}})).await;
    assert_eq!(unknown.body["error"]["type"], "missing_node_type");
    let cycle = json!({"1": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    let refused = bench.server.post("/prompt", &json!({"prompt": cycle})).await;
    assert_eq!(refused.body["error"]["type"], "dependency_cycle");

    let waiting = "11111111-6a53-4b0e-9a4c-2a1d54c3f0aa";
    assert_eq!(bench.submit(waiting).await.status, 200);
    let jobs = bench.server.get("/api/jobs?status=pending,in_progress").await.body;
    assert_eq!(jobs["pagination"]["total"], 2);
    let cancel = |id: &str| format!("/api/jobs/{id}/cancel");
    assert_eq!(bench.server.post_raw(&cancel(waiting), String::new()).await.body, json!({"cancelled": true}));
    assert_eq!(bench.server.post_raw(&cancel(waiting), String::new()).await.body, json!({"cancelled": false}));
    assert_eq!(bench.server.post_raw(&cancel(ID), String::new()).await.body, json!({"cancelled": true}));
    bench.hears_end().await;
    bench.server.wait_until_idle().await;
    let job = bench.server.get(&format!("/api/jobs/{ID}")).await.body;
    assert_eq!((&job["status"], &job["execution_status"]["status_str"]), (&json!("cancelled"), &json!("error")));
    assert_eq!(bench.server.get(&format!("/api/jobs/{waiting}")).await.status, 404);
    assert_eq!(bench.server.get("/jobs").await.status, 404);
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_current_server_keeps_the_newer_socket() {
    let mut bench = Bench::new(Version::Current).await;
    let mut newer = bench.server.connect(Some("me")).await;
    newer.wait_for("the greeting", |message| message["data"]["sid"] == "me").await;
    bench.socket.close().await;
    bench.submit(ID).await;
    newer.wait_for("the end", |message| message["data"].get("node").is_some_and(Value::is_null)).await;
    bench.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_outputs_are_reported_and_written() {
    let bench = Bench::new(Version::V0_3_75).await;
    let report = json!({
        "gifs": [{"filename": "a.mp4", "subfolder": "vhs", "type": "output", "format": "video/h264-mp4", "_hex": "00ff"}],
        "images": [{"filename": "../../evil.png", "subfolder": "", "type": "output", "_text": "x"},
                   {"filename": "missing.png", "subfolder": "", "type": "temp"}],
        "result": ["model.glb", null, 5],
    });
    let prompt = json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report.to_string()}},
                        "2": {"class_type": "SandboxSampler", "inputs": {"image": ["3", 0], "seed": 18_446_744_073_709_551_615u64, "steps": 2, "step_ms": 0}},
                        "3": {"class_type": "EmptyImage", "inputs": {"width": 300, "height": 20, "batch_size": 1, "color": 9}},
                        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}});
    let accepted = bench.server.post("/prompt", &json!({"prompt": prompt, "client_id": "me"})).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
    let entry = bench.finish(accepted.body["prompt_id"].as_str().unwrap()).await;
    let shown = &entry["outputs"]["1"];
    assert_eq!(
        shown["gifs"][0],
        json!({"filename": "a.mp4", "subfolder": "vhs", "type": "output", "format": "video/h264-mp4"})
    );
    assert_eq!(shown["images"][0]["filename"], "../../evil.png");
    assert_eq!(shown["result"], report["result"]);
    assert_eq!(std::fs::read(bench.sandbox().output_dir().join("vhs/a.mp4")).unwrap(), [0, 255]);
    assert!(!bench.sandbox().root().join("evil.png").exists());
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    bench.server.stop().await;
}

/// Nothing a client sends makes the engine fall over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_are_survived() {
    let mut bench = Bench::new(Version::V0_3_75).await;
    let mut chain = serde_json::Map::new();
    for id in 0..5_000 {
        chain.insert(
            id.to_string(),
            json!({"class_type": "ImageInvert", "inputs": {"image": [(id - 1).to_string(), 0]}}),
        );
    }
    chain.insert("out".into(), json!({"class_type": "PreviewImage", "inputs": {"images": ["4999", 0]}}));
    let image = |inputs: Value| json!({"1": {"class_type": "EmptyImage", "inputs": inputs}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    let save = |prefix: &str| json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}});
    let load = |name: &str| json!({"1": {"class_type": "LoadImage", "inputs": {"image": name}}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    for prompt in [
        Value::Object(chain),
        image(json!({"width": 16384, "height": 16384, "batch_size": 4096, "color": 0})),
        image(json!({"width": 1e300, "height": "-9999999999999999999999999999", "batch_size": null, "color": []})),
        json!({"1": {"class_type": "PreviewImage", "inputs": 5}}),
        json!({"1": {"class_type": "PreviewImage", "inputs": {"images": [["1"], {}]}}}),
        json!({"1": {"class_type": "PreviewImage", "inputs": {"images": ["1", 1e99]}}}),
        json!({"1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}}, "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}, "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}),
        save("../../x"),
        save("/etc/x"),
        save("a\u{0}b"),
        save(&"long".repeat(200)),
        load("../../../../etc/hostname"),
        load("/etc/hostname"),
        load("\u{0}"),
        load(" [input]"),
        load(""),
    ] {
        let answer = bench.server.post("/prompt", &json!({"prompt": prompt, "client_id": "me"})).await;
        assert!([200, 400, 500].contains(&answer.status), "{answer:?}");
    }
    for body in [vec![b'['; 100_000], vec![0xff; 10], b"{\"delete\": [[], {}, null]}".to_vec()] {
        for path in ["/prompt", "/queue", "/history", "/interrupt", "/free", "/upload/image"] {
            // What is answered before its body is read ends the connection, which must not serve the next one.
            let post = bench.server.http.post(bench.server.url(path)).header("Connection", "close");
            post.body(body.clone()).send().await.unwrap();
        }
    }
    bench.socket.send(&json!([{"type": "feature_flags"}])).await;
    bench.socket.send(&json!({"type": "feature_flags", "data": "x"})).await;
    bench.server.wait_until_idle().await;
    assert_eq!(bench.submit("still alive").await.status, 200);
    bench.finish("still alive").await;
    assert!(!bench.sandbox().root().join("x_00001_.png").exists());
    bench.server.stop().await;
}
