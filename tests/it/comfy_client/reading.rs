//! Requests that may be repeated, and answers that are too long, broken off or wrong; and the small requests that stop things.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{StatusCode, Uri},
    routing::{any, get, post},
};
use comfy_remote::{
    comfy::{ComfyError, Outcome},
    workflow::{ClientId, PromptId, WorkflowId},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Barrier,
};

use super::{always, client, json_response, raw};

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let endless = |_: Request| async {
        let chunk = Bytes::from(vec![b' '; 1 << 20]);
        Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone())))
    };
    let error = client(Router::new().fallback(any(endless))).await.queue().await.unwrap_err();
    assert!(matches!(error, ComfyError::TooBig { .. }), "{error}");
}

#[tokio::test]
async fn a_body_announced_as_too_long_is_not_read() {
    let (client, _) = raw(|_, mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{").await.unwrap();
        // Nothing more comes until the other side hangs up: who reads on would wait.
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    assert!(matches!(client.queue().await, Err(ComfyError::TooBig { .. })));
}

#[tokio::test]
async fn a_read_survives_two_broken_connections() {
    let (client, count) = raw(|number, mut stream| async move {
        match number {
            0 => {}
            1 => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"queue_").await.unwrap(),
            _ => {
                let body = r#"{"queue_running": [], "queue_pending": [[1, "p", {"1": NaN}, {}, []]]}"#;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(client.queue().await.unwrap().position(&"p".into()), Some(1));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_read_is_not_repeated_for_ever() {
    let (client, count) = raw(|_, stream| async move { drop(stream) }).await;
    assert!(matches!(client.queue().await, Err(ComfyError::Unreachable { sent: true, .. })));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn errors_are_told_with_their_beginning() {
    let error = always((StatusCode::INTERNAL_SERVER_ERROR, "500 Internal\n\nServer got itself in trouble"))
        .await
        .queue()
        .await
        .unwrap_err();
    let expected = "GET /queue was answered with HTTP 500: 500 Internal Server got itself in trouble";
    assert_eq!(error.to_string(), expected);
    assert!(error.is_transient());
    let error = always("{}").await.queue().await.unwrap_err();
    assert!(matches!(error, ComfyError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn definitions_are_asked_for_one_by_one_and_four_at_once() {
    struct Seen {
        /// Lets requests go on in fours: fewer at once would wait for ever.
        fours: Barrier,
        now: AtomicUsize,
        most: AtomicUsize,
        classes: Mutex<BTreeSet<String>>,
    }
    let seen = Arc::new(Seen {
        fours: Barrier::new(4),
        now: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        classes: Mutex::default(),
    });
    let answer = |State(seen): State<Arc<Seen>>, Path(class): Path<String>| async move {
        let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most.fetch_max(now, Ordering::SeqCst);
        seen.fours.wait().await;
        seen.classes.lock().unwrap().insert(class.clone());
        seen.now.fetch_sub(1, Ordering::SeqCst);
        match class.as_str() {
            "Gone" => json_response(json!({})),
            _ => json_response(json!({class: {
                "input": {"required": {"image": [["a"], {"image_upload": true}]}}, "output_node": true}})),
        }
    };
    let router = Router::new().route("/object_info/{class}", get(answer)).with_state(Arc::clone(&seen));
    let odd = ["Load Image/ünï (x) %41?", "Gone", "..", "A", "B", "C", "D", "E", "F"];
    let classes: BTreeSet<String> = odd.iter().map(|class| (*class).to_owned()).collect();
    let definitions = client(router).await.definitions(&classes).await.unwrap();
    let definition = definitions.class("Load Image/ünï (x) %41?").unwrap();
    assert!(definition.output_node && definition.input("image").unwrap().is_upload);
    assert!(definitions.class("Gone").is_none() && definitions.class("..").is_none());
    assert!(!seen.classes.lock().unwrap().contains(".."));
    assert_eq!(seen.most.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn definitions_are_kept_up_to_a_measure_all_together() {
    let heavy = |Path(class): Path<String>| async move {
        let lists = vec!["[]"; 150_000].join(",");
        format!(r#"{{"{class}": {{"input": {{"required": {{"a": [[{lists}]]}}}}}}}}"#)
    };
    let client = client(Router::new().route("/object_info/{class}", get(heavy))).await;
    let ask = async |classes: &[&str]| {
        client.definitions(&classes.iter().map(|class| (*class).to_owned()).collect()).await.map(|all| all.len())
    };
    assert_eq!(ask(&["A"]).await.unwrap(), 1);
    let error = ask(&["A", "B", "C"]).await.unwrap_err();
    assert!(
        matches!(&error, ComfyError::Malformed { problem, .. } if problem.ends_with("24 MiB of memory")),
        "{error}"
    );
}

#[tokio::test]
async fn definitions_are_asked_for_one_after_the_other_once_they_are_large() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let asked = (Arc::clone(&now), Arc::clone(&most));
    let large = |Path(class): Path<String>| async move {
        let (now, most) = asked;
        // Those that are asked for together with the first large one are asked for twice, and "z…" come first.
        if class.starts_with('a') {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            return json_response(json!({class: {}}));
        }
        json_response(json!({class: {"description": "x".repeat(2 << 20)}}))
    };
    let client = client(Router::new().route("/object_info/{class}", get(large))).await;
    let classes: BTreeSet<String> = (0..8).map(|n| format!("{}{n}", if n < 4 { "a" } else { "z" })).collect();
    assert_eq!(client.definitions(&classes).await.unwrap().len(), 8);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn names_of_classes_are_read_up_to_a_measure() {
    let named = |count: usize| async move {
        let names: serde_json::Map<String, Value> = (0..count).map(|n| (format!("{n}"), json!(0))).collect();
        let body = json!(names).to_string();
        always(body).await.class_names().await.map(|names| names.len())
    };
    assert_eq!(named(20_000).await.unwrap(), 20_000);
    let error = named(20_001).await.unwrap_err();
    assert!(error.to_string().contains("it has more than 20000 names"), "{error}");
}

#[tokio::test]
async fn a_comfyui_that_replaces_no_classes_says_so_with_a_404() {
    assert_eq!(always(StatusCode::NOT_FOUND).await.replaced_classes().await.unwrap(), BTreeSet::new());
    assert!(always(StatusCode::INTERNAL_SERVER_ERROR).await.replaced_classes().await.is_err());
}

#[tokio::test]
async fn a_run_under_another_id_is_found_by_its_mark() {
    let searches = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&searches);
    let recent = move |uri: Uri| async move {
        assert!(uri.query().unwrap().starts_with("max_items="));
        counter.fetch_add(1, Ordering::SeqCst);
        let mark = json!({"comfy_remote": {"workflow_id": "w", "prompt_id": "ours"}});
        json_response(json!({
            "other": {"prompt": [1, "other", {}, {}, []], "outputs": {}, "status": {"status_str": "success"}},
            "theirs": {"prompt": [2, "theirs", {}, mark, []], "outputs": {}, "status": {"status_str": "success"}},
        }))
    };
    let router = Router::new()
        .route("/history/{id}", get(|| async { json_response(json!({})) }))
        .route("/history", get(recent))
        .route("/prompt", post(|| async { json_response(json!({"prompt_id": "ours"})) }));
    let client = client(router).await;
    let (ours, workflow) = (PromptId::from("ours"), WorkflowId::from("w"));
    let (id, entry) = client.find_in_history(&ours, &workflow).await.unwrap().unwrap();
    assert_eq!((id.as_str(), entry.outcome), ("theirs", Outcome::Succeeded));
    // The search is expensive: soon after, it is left out.
    assert_eq!(client.find_in_history(&ours, &workflow).await.unwrap(), None);
    assert_eq!(searches.load(Ordering::SeqCst), 1);
    // A server that keeps our ids needs no search at all.
    let submitted = client.submit(&json!({}), &ClientId::fresh(), &ours, &workflow).await.unwrap();
    assert_eq!(submitted.prompt_id, ours);
    assert_eq!(client.clone().find_in_history(&ours, &workflow).await.unwrap(), None);
    assert_eq!(searches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn jobs_are_cancelled_where_that_exists() {
    let router = Router::new()
        .route(
            "/api/jobs/{id}/cancel",
            post(|Path(id): Path<String>| async move {
                assert_eq!(id, "a/b c");
                json_response(json!({"cancelled": true}))
            }),
        )
        .fallback(any(|| async { StatusCode::METHOD_NOT_ALLOWED }));
    assert_eq!(client(router).await.cancel_job(&"a/b c".into()).await.unwrap(), Some(true));
    let old = always(StatusCode::METHOD_NOT_ALLOWED).await;
    assert_eq!(old.cancel_job(&"p".into()).await.unwrap(), None);
    assert!(matches!(old.delete_pending(&"p".into()).await, Err(ComfyError::Status { status: 405, .. })));
}

#[tokio::test]
async fn what_stops_and_frees_is_sent_as_comfyui_wants_it() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&bodies);
    let answer = move |uri: Uri, body: String| async move {
        keep.lock().unwrap().push((uri.to_string(), serde_json::from_str::<Value>(&body).unwrap()));
    };
    let client = client(Router::new().fallback(post(answer))).await;
    client.delete_pending(&"p".into()).await.unwrap();
    client.interrupt(&"p".into()).await.unwrap();
    client.free_memory().await.unwrap();
    let expected = [
        ("/queue".to_owned(), json!({"delete": ["p"]})),
        ("/interrupt".to_owned(), json!({"prompt_id": "p"})),
        ("/free".to_owned(), json!({"unload_models": true, "free_memory": true})),
    ];
    assert_eq!(*bodies.lock().unwrap(), expected);
}
