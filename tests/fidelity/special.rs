//! Situations whose recordings cannot be replayed line by line.

use serde_json::{Value, json};

use super::{NOVEMBER, OCTOBER, version_of};
use crate::normal::{Names, Recording, assert_same, normal};
use crate::replay::picture;
use crate::server::{Answer, Server, answer};
use crate::trace::{Trace, fixtures};

/// Requests that go wrong, and small routes.
async fn answers_like(server: &'static str) {
    let sandbox = Server::sandbox(version_of(server)).await;
    run_text(&sandbox, "first").await;
    for line in Trace::load(server, "x_post_errors").http() {
        let got = ask(&sandbox, line).await;
        let what = format!("{server}: {line}");
        assert_eq!(json!(got.status), line["status"], "{what}");
        let path = line["path"].as_str().unwrap_or_default();
        if path.starts_with("/history?") {
            // The recorded server had other runs behind it; the kind of answer must be the same.
            assert_eq!(got.body.as_object().unwrap().len(), 1, "{what}");
        } else if path == "/system_stats" {
            // Another machine; the same keys with values of the same types.
            assert_eq!(shape(&got.body), shape(&line["response"]), "{what}");
        } else {
            assert_eq!(got.body, line["response"], "{what}");
        }
    }
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn october_x_post_errors() {
    answers_like(OCTOBER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn november_x_post_errors() {
    answers_like(NOVEMBER).await;
}

async fn ask(server: &Server, line: &Value) -> Answer {
    let path = line["path"].as_str().unwrap_or_default();
    if let Some(origin) = line["note"].as_str().and_then(|note| note.strip_prefix("Origin: ")) {
        let origin = origin.split(' ').next().unwrap();
        return answer(server.http.get(server.url("/queue")).header("Origin", origin)).await;
    }
    match line["raw_request"].as_str() {
        Some(body) => server.post_raw(path, body.to_owned()).await,
        None => server.get(path).await,
    }
}

async fn run_text(server: &Server, text: &str) -> String {
    let prompt = json!({"1": {"class_type": "RigText", "inputs": {"text": text}}});
    let accepted = server.post("/prompt", &json!({"prompt": prompt})).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
    server.wait_until_idle().await;
    accepted.body["prompt_id"].as_str().unwrap().to_owned()
}

/// `x_restart`: one running, one pending, then the process is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x_restart() {
    let trace = Trace::load(OCTOBER, "x_restart");
    let first_number = trace.lines.iter().any(
        |line| matches!(&line.what, crate::trace::What::Note(note) if note == "first number after the restart: 0"),
    );
    assert!(first_number, "the recording says what the first number is");

    let server = Server::sandbox(version_of(OCTOBER)).await;
    let sandbox = server.sandbox.as_ref().unwrap();
    let before = run_text(&server, "before").await;
    let mut socket = server.connect(Some("someone")).await;
    let hold = sandbox.engine().hold_at_step("2", 1);
    let slow = trace.http().filter(|http| http["path"] == "/prompt").nth(1).unwrap()["request"].clone();
    let prompt = json!({"prompt": slow["prompt"], "client_id": "someone"});
    for _ in 0..2 {
        assert_eq!(server.post("/prompt", &prompt).await.status, 200);
    }
    hold.reached().await;
    std::fs::write(sandbox.temp_dir().join("left over.png"), "x").unwrap();
    std::fs::write(sandbox.output_dir().join("kept.png"), "x").unwrap();

    sandbox.engine().kill().await;
    assert!(socket.breaks_off().await, "a killed process says no goodbye");
    let refused = server.http.get(server.url("/queue")).send().await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");

    sandbox.engine().revive().await.unwrap();
    let empty = json!({"queue_running": [], "queue_pending": []});
    assert_eq!(server.get("/queue").await.body, empty);
    for path in ["/history".to_owned(), format!("/history/{before}")] {
        assert_eq!(server.get(&path).await.body, json!({}));
    }
    let again =
        server.post("/prompt", &json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": "x"}}}})).await;
    assert_eq!(again.body["number"], 0);
    assert!(!sandbox.temp_dir().join("left over.png").exists());
    assert!(sandbox.output_dir().join("kept.png").exists());
    server.stop().await;
}

/// What `/view` answers, as recorded at the end of most runs and in `x_post_errors`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_served() {
    let server = Server::sandbox(version_of(NOVEMBER)).await;
    let sandbox = server.sandbox.as_ref().unwrap();
    let folder = sandbox.output_dir().join("sub/ünï cödé");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a b%c&d_00001_.png"), picture(1)).unwrap();
    std::fs::write(sandbox.output_dir().join("page.html"), "<script>").unwrap();

    let get = |query: &str| server.http.get(server.url(&format!("/view?{query}"))).send();
    let response = get("filename=a%20b%25c%26d_00001_.png&subfolder=sub/%C3%BCn%C3%AF%20c%C3%B6d%C3%A9&type=output")
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["content-disposition"].as_bytes(), "filename=\"a b%c&d_00001_.png\"".as_bytes());
    assert_eq!(response.content_length(), Some(picture(1).len() as u64));
    assert_eq!(response.bytes().await.unwrap(), picture(1));

    let response = get("filename=page.html").await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    for (query, status) in [
        ("filename=nope.png", 404),
        ("filename=page.html&type=temp", 404),
        ("filename=page.html&type=nonsense", 400),
        ("filename=page.html%20%5Btemp%5D", 404),
        ("filename=/etc/passwd", 400),
        ("filename=a..b.png", 400),
        ("filename=x.png&subfolder=../input", 403),
        ("", 404),
    ] {
        assert_eq!(get(query).await.unwrap().status(), status, "{query}");
    }
    server.stop().await;
}

/// `/object_info` of the classes both have, as the real 0.3.75 described them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_are_described_alike() {
    let server = Server::sandbox(version_of(NOVEMBER)).await;
    let path = fixtures().join(NOVEMBER).join("object_info.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let all = server.get("/object_info").await.body;
    for (class, info) in recorded.as_object().unwrap() {
        assert_eq!(all[class], *info, "{class}");
        assert_eq!(server.get(&format!("/object_info/{class}")).await.body, json!({class: info}));
    }
    server.stop().await;
}

/// Keys and types.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            // Null or a text, as the package is installed or not; not a matter of the version.
            let kept = map.iter().filter(|(key, _)| *key != "installed_templates_version");
            kept.map(|(key, value)| (key.clone(), shape(value))).collect()
        }
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::String(_) => json!("string"),
        Value::Number(_) => json!("number"),
    }
}

/// The same situation on the sandbox and on the real server, where there is no recording.
pub(crate) async fn compare_answers(sandbox: &Server, real: &Server) {
    sandbox.reset().await;
    real.reset().await;
    let linked = |source: &str, output: i32| json!({"1": {"class_type": "ImageInvert", "inputs": {"image": [source, output]}}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    let bodies = [
        json!({"prompt": {"1": {"class_type": "SaveImage"}}}),
        json!({"prompt": {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}}),
        json!({"prompt": linked("99", 0)}),
        json!({"prompt": {"1": {"class_type": "RigOOM", "inputs": {"image": ["2", 0], "kind": "fusion"}},
                          "2": {"class_type": "EmptyImage", "inputs": {"width": 99999, "height": "3", "batch_size": 1, "color": 2.5}},
                          "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": 5}}}}),
        json!({"prompt": {"1": {"class_type": "SaveImage", "inputs": {"images": ["a"], "filename_prefix": "x"}}}}),
        json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": "x"}}}, "number": "abc"}),
        json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": "x"}}}, "partial_execution_targets": ["7"]}),
        json!({"prompt": {"1": {"class_type": 5, "inputs": {}}}}),
        json!({"prompt": {"1": {"class_type": {}, "inputs": {}}}}),
        json!({"prompt": {"1": []}}),
        json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": ["1", 0]}}}}),
        json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": {"__value__": ["a", "b"]}}}}, "prompt_id": "fixed id"}),
        json!({"prompt": {"1": {"class_type": "RigText", "inputs": {"text": {"__value__": ["a", "b"]}}}}, "prompt_id": "cached"}),
        json!("text"),
        json!(5),
    ];
    for body in bodies {
        let (ours, theirs) = (sandbox.post("/prompt", &body).await, real.post("/prompt", &body).await);
        same(&format!("POST /prompt {body}"), &ours, &theirs);
    }
    sandbox.wait_until_idle().await;
    real.wait_until_idle().await;
    for path in [
        "/nope",
        "/features",
        "/embeddings",
        "/models/loras",
        "/models/nope",
        "/object_info/Nope",
        "/history?max_items=x",
        "/history/fixed%20id",
        "/history/cached",
        "/ws",
        "/api/jobs",
        "/queue",
        "/prompt",
    ] {
        same(path, &sandbox.get(path).await, &real.get(path).await);
    }
    for path in ["/view", "/nope", "/system_stats"] {
        same(
            &format!("POST {path}"),
            &sandbox.post_raw(path, String::new()).await,
            &real.post_raw(path, String::new()).await,
        );
    }
    for path in ["/queue", "/history", "/free", "/interrupt"] {
        for body in ["", "{}", "[]", "nonsense", "{\"delete\": [\"nobody\"]}", "{\"prompt_id\": 7}"] {
            let (ours, theirs) = (sandbox.post_raw(path, body.into()).await, real.post_raw(path, body.into()).await);
            same(&format!("POST {path} {body}"), &ours, &theirs);
        }
    }
}

/// Graphs whose order or caching the recordings do not show.
pub(crate) async fn compare_runs(sandbox: &Server, real: &Server) {
    let empty = |color: i32| json!({"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": color}});
    let invert = |source: &str| json!({"class_type": "ImageInvert", "inputs": {"image": [source, 0]}});
    let show = |source: &str| json!({"class_type": "PreviewImage", "inputs": {"images": [source, 0]}});
    let batch = |a: &str, b: &str| json!({"class_type": "ImageBatch", "inputs": {"image1": [a, 0], "image2": [b, 0]}});
    let scale = |source: &str| json!({"class_type": "ImageScale", "inputs": {"image": [source, 0], "upscale_method": "lanczos", "width": 0, "height": 4, "crop": "center"}});
    let diamond = json!({"a": empty(1), "b": empty(2), "c": batch("a", "b"), "d": scale("c"), "e": show("d"), "f": show("a"), "x": invert("b"), "y": invert("x"), "z": show("y")});
    let bodies = [
        json!({"prompt": diamond}),
        json!({"prompt": diamond, "partial_execution_targets": ["e"]}),
        json!({"prompt": {"1": empty(7), "2": show("1"), "3": {"class_type": "ImageInvert", "inputs": {}}, "4": {"class_type": "RigFail", "inputs": {"image": ["1", 0], "message": "not needed"}}}}),
        json!({"prompt": {"9": show("8"), "8": invert("7"), "7": invert("6"), "6": empty(9), "5": show("4"), "4": empty(9)}}),
        json!({"prompt": {"1": empty(7), "2": {"class_type": "RigFail", "inputs": {"image": ["1", 0], "message": "first"}}, "3": show("2"), "unknown": empty(3)}}),
        json!({"prompt": {"10": empty(7), "20": show("10"), "unknown": {"class_type": "ImageInvert", "inputs": {"image": ["10", 0], "more": 5}}}}),
    ];
    sandbox.reset().await;
    real.reset().await;
    for mut body in bodies {
        body["client_id"] = json!("fidelity");
        let (mut ours, mut theirs) = (run(sandbox, &body).await, run(real, &body).await);
        if theirs.has_several_outputs() {
            ours.forget_order();
            theirs.forget_order();
        }
        assert_same(&format!("{body}"), &theirs, &ours);
    }
}

async fn run(server: &Server, body: &Value) -> Recording {
    let mut recording = Recording::default();
    let mut socket = server.connect(Some("fidelity")).await;
    let accepted = server.post("/prompt", body).await;
    let id = accepted.body["prompt_id"].as_str().unwrap_or_else(|| panic!("{accepted:?}")).to_owned();
    recording.names.add(&id, "prompt");
    socket.wait_for("the end", |message| message["type"] == "executing" && message["data"]["node"].is_null()).await;
    socket.close().await;
    recording.streams.insert("ws".into(), socket.heard);
    recording.answers = vec![accepted.body, server.get(&format!("/history/{id}")).await.body];
    recording
}

fn same(what: &str, ours: &Answer, theirs: &Answer) {
    let comparable = |answer: &Answer| {
        let mut body = answer.body.clone();
        // Ids and numbers of accepted prompts differ; an accepted prompt is what matters.
        if body["prompt_id"].is_string() {
            body = json!({"accepted": true, "node_errors": body["node_errors"]});
        }
        (answer.status, answer.content_type.clone(), normal(&body, &Names::default()))
    };
    assert_eq!(comparable(ours), comparable(theirs), "{what}");
}
