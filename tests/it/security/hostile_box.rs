//! What a box can answer over HTTP: bodies without end, sizes that lie, JSON that no ComfyUI writes, ways to elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{SinkExt, StreamExt, future::join_all, stream};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    impostor::{Asked, Impostor, PICTURE, endless, files, history},
    siege::Siege,
};
use crate::{
    graphs::{self, tag},
    loopback,
    support::eventually,
};

/// Runs a workflow on each of them at once, and returns how they ended, in order.
async fn run_all(siege: &Siege, impostors: Vec<Impostor>) -> Vec<Value> {
    join_all(impostors.into_iter().map(async |impostor| siege.run(impostor.serve().await).await)).await
}

/// One that shows its file in this way, once asked about it and once for it.
fn showing(
    head: impl Fn() -> Response + Send + Sync + 'static,
    body: impl Fn() -> Response + Send + Sync + 'static,
) -> Impostor {
    Impostor::new().lying("/view?filename=picture", move |asked| if asked.is_head { head() } else { body() })
}

fn of_size(size: &'static str) -> Response {
    (
        [(header::CONTENT_LENGTH, HeaderValue::from_static(size))],
        Body::from_stream(stream::empty::<Result<&str, std::io::Error>>()),
    )
        .into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_lie_end_in_download_failed_with_nothing_left_behind() {
    let siege = Siege::begin().await;
    let stream_without_end = || endless("", vec![7; 1 << 20]).into_response();
    let impostors = vec![
        showing(|| of_size("10"), stream_without_end),
        showing(|| of_size("1000000000"), || "ten bytes.".into_response()),
        showing(|| of_size("10"), || "eleven bytes.".into_response()),
        showing(|| of_size("2000000000000"), || "ten bytes.".into_response()),
        showing(|| of_size("9223372036854775808"), stream_without_end),
    ];
    for failed in run_all(&siege, impostors).await {
        siege.assert_failed(&failed, &["download_failed", "disk_full"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_with_every_look_is_given_up() {
    let siege = Siege::begin().await;
    let looks = AtomicUsize::new(0);
    let impostor = Impostor::new().lying("/view?filename=picture", move |asked| match asked.is_head {
        true => "x".repeat(looks.fetch_add(1, Ordering::SeqCst) + 1).into_response(),
        false => "x".into_response(),
    });
    let failed = siege.run(impostor.serve().await).await;
    siege.assert_failed(&failed, &["download_failed"]);
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_nobody_can_read_end_the_workflow_and_nothing_else() {
    let siege = Siege::begin().await;
    let deep = |_: &Asked| "[".repeat(4 << 20).into_response();
    let deep_objects = |_: &Asked| "{\"a\":".repeat(1 << 20).into_response();
    let compressed = |_: &Asked| {
        let bomb: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xed\xc1\x01\x0d";
        ([(header::CONTENT_ENCODING, "gzip")], bomb).into_response()
    };
    let zeros = |_: &Asked| endless("", vec![0; 1 << 20]).into_response();
    let blanks = |_: &Asked| endless("{", vec![b' '; 1 << 20]).into_response();
    let many_headers = |_: &Asked| {
        let mut response = "{}".into_response();
        for number in 0..400 {
            let name = format!("x-header-{number}").parse::<header::HeaderName>().unwrap();
            response.headers_mut().insert(name, HeaderValue::from_str(&"x".repeat(4000)).unwrap());
        }
        response
    };
    let impostors = vec![
        Impostor::new().lying("/history", deep),
        Impostor::new().lying("/history", compressed),
        Impostor::new().lying("/history", zeros),
        Impostor::new().lying("/history", many_headers),
        Impostor::new().lying("/system_stats", deep_objects),
        Impostor::new().lying("/system_stats", blanks),
        Impostor::new().lying("/system_stats", many_headers),
    ];
    for failed in run_all(&siege, impostors).await {
        siege.assert_failed(&failed, &["comfyui_unreachable", "job_lost", "wedged"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_only_looks_odd_is_read() {
    let siege = Siege::begin().await;
    let huge = "1".repeat(100_000);
    let impostor = Impostor::new()
        .lying("/queue", move |_| {
            let odd = format!(r#"[[1e999999, "x", {huge}, NaN], [-{huge}, "y", {{"a": 1, "a": 2}}], 3, [null]]"#);
            format!("\u{feff}{{\"queue_running\": 5, \"queue_running\": [], \"queue_pending\": {odd}}}").into_response()
        })
        .lying("/object_info", |_| r#"{"SaveImage": Infinity, "SaveImage": {}, "": -0}"#.into_response())
        .lying("/history", |asked| {
            let entry = history(&asked.prompt_id, &files(&[PICTURE]))[&asked.prompt_id].to_string();
            let numbers = r#"{"meta": 1e400, "outputs": 18446744073709551616, "\u0000": -1e-400, "#;
            let entry = entry.replacen('{', numbers, 1);
            format!(r#"{{"other": NaN, "{}": {entry}}}"#, asked.prompt_id).into_response()
        });
    let ended = siege.run(impostor.serve().await).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    // A box that does not tell what it has is believed when it takes the prompt.
    assert!(ended["warnings"].to_string().contains("node definitions could not be read"), "{ended:#}");
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_a_million_are_taken_in_part_or_not_at_all() {
    let siege = Siege::begin().await;
    let queue = |_: &Asked| {
        let entry = r#"[1,"somebody else's",{},{},[]]"#;
        format!(r#"{{"queue_running":[],"queue_pending":[{entry}{}]}}"#, format!(",{entry}").repeat(999_999))
            .into_response()
    };
    let done = siege.run(Impostor::new().lying("/queue", queue).serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    let nodes = |asked: &Asked| {
        let outputs: String = (0..1_000_000).map(|node| format!(r#""{node}":{{"images":[]}},"#)).collect();
        format!(r#"{{"{}": {{"outputs": {{{outputs} "3": {{}}}}}}}}"#, asked.prompt_id).into_response()
    };
    let failed = siege.run(Impostor::new().lying("/history", nodes).serve().await).await;
    siege.assert_failed(&failed, &["comfyui_unreachable"]);
    // One long key, and many files that each are listed under it.
    let multiplied = |asked: &Asked| {
        let names: Vec<String> = (0..4000).map(|at| format!("{at}.png")).collect();
        let list = files(&names.iter().map(String::as_str).collect::<Vec<_>>())["images"].take();
        let outputs = json!({"k".repeat(8 << 20): list});
        json!({asked.prompt_id.as_str(): {"outputs": {"n".repeat(8 << 20): &outputs, "3": outputs}}})
            .to_string()
            .into_response()
    };
    let missing = |_: &Asked| StatusCode::NOT_FOUND.into_response();
    let impostor = Impostor::new().lying("/history", multiplied).lying("/view", missing);
    siege.assert_failed(&siege.run(impostor.serve().await).await, &["download_failed"]);
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_megabytes_and_commands_for_terminals_are_made_readable() {
    let siege = Siege::begin().await;
    let evil = "\u{1b}[2J\r\n2026-01-01T00:00:00Z ERROR all keys are lost\n\u{9b}31m\u{7}\0\u{202e}";
    let text = evil.repeat(50_000);
    let (first, second, third, fourth) = (text.clone(), text.clone(), text.clone(), text.clone());
    let failing = Impostor::new().lying("/history", move |asked| {
        let error = json!({"node_id": first, "node_type": first, "exception_type": first, "exception_message": first,
                           "traceback": [first]});
        let status = json!({"status_str": "error", "completed": false, "messages": [["execution_error", error]]});
        json!({asked.prompt_id.as_str(): {"outputs": {}, "status": status}}).to_string().into_response()
    });
    let refusing = Impostor::new().lying("/prompt", move |_| {
        let error = json!({"type": second, "message": second, "details": second, "extra_info": {"input_name": second}});
        let node = json!({"class_type": second, "errors": [error]});
        let body = json!({"error": error, "node_errors": {second.as_str(): node}});
        (StatusCode::BAD_REQUEST, body.to_string()).into_response()
    });
    let renaming = Impostor::new().lying("/prompt", move |_| json!({"prompt_id": third}).to_string().into_response());
    let breaking =
        Impostor::new().lying("/history", move |_| (StatusCode::INTERNAL_SERVER_ERROR, fourth.clone()).into_response());
    // A small call, which has 10 s.
    let text = evil.repeat(5_000);
    let versioned = Impostor::new().lying("/system_stats", move |_| {
        json!({"system": {"comfyui_version": text, "argv": [text]}, "devices": [{"name": text}]})
            .to_string()
            .into_response()
    });
    let ended = run_all(&siege, vec![failing, refusing, renaming, breaking, versioned]).await;
    siege.assert_failed(&ended[0], &["node_error"]);
    siege.assert_failed(&ended[1], &["invalid_workflow"]);
    siege.assert_failed(&ended[2], &["comfyui_unreachable", "job_lost", "invalid_workflow"]);
    siege.assert_failed(&ended[3], &["comfyui_unreachable"]);
    assert_eq!(ended[4]["status"], "completed", "{:#}", ended[4]);
    for progress in &ended {
        assert!(progress.to_string().len() < 100_000, "{} bytes", progress.to_string().len());
    }
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_led_elsewhere() {
    let siege = Siege::begin().await;
    let elsewhere = loopback::listener().await;
    let address = elsewhere.local_addr().unwrap();
    let visits = Arc::new(AtomicUsize::new(0));
    let counter = visits.clone();
    tokio::spawn(async move {
        while elsewhere.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut impostors = Vec::new();
    for path in ["/system_stats", "/object_info", "/prompt", "/queue", "/history", "/view"] {
        for status in [StatusCode::MOVED_PERMANENTLY, StatusCode::TEMPORARY_REDIRECT] {
            impostors.push(Impostor::new().lying(path, move |asked| {
                let location = format!("http://{address}{}", asked.path);
                let refresh = format!("0; url={location}");
                (status, [(header::LOCATION, location), (header::REFRESH, refresh)]).into_response()
            }));
        }
    }
    for (number, ended) in run_all(&siege, impostors).await.into_iter().enumerate() {
        // Without definitions a run goes on.
        match number {
            2 | 3 => assert_eq!(ended["status"], "completed", "{ended:#}"),
            _ => {
                siege.assert_failed(&ended, &["comfyui_unreachable", "job_lost", "invalid_workflow", "download_failed"])
            }
        }
    }
    assert_eq!(visits.load(Ordering::SeqCst), 0);
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_of_one_box_wait_for_each_other_and_hold_up_no_connection() {
    let siege = Siege::begin().await;
    let large = || {
        Impostor::new().lying("/history", |asked| {
            // More than a channel keeps for a reader that waits.
            let mut entries = history(&asked.prompt_id, &files(&[PICTURE]));
            entries[&asked.prompt_id]["prompt"][2] = json!({"1": {"inputs": {"text": "a".repeat(24 << 20)}}});
            entries.to_string().into_response()
        })
    };
    for ended in run_all(&siege, vec![large(), large(), large()]).await {
        assert_eq!(ended["status"], "completed", "{ended:#}");
    }
    let log = siege.stage.service.log();
    let stalled = log.lines().find(|line| line.contains("nobody took") || line.contains("reading again"));
    assert_eq!(stalled, None);
}

/// A file of 64 MiB, of which the first part comes at once and the rest as soon as the queue is asked for. The queue is
/// told when most of the file is taken: somebody who lets it lie meanwhile waits in vain.
fn telling_its_queue_beside_a_large_file() -> Impostor {
    const MIB: usize = 1 << 20;
    let (taken, is_asked) = (watch::Sender::new(0_usize), watch::Sender::new(false));
    let (taken_of, asked_for) = (taken.clone(), is_asked.clone());
    let body = move || {
        let (taken, is_asked) = (taken.clone(), is_asked.subscribe());
        let pieces = stream::unfold((0, taken, is_asked), |(at, taken, mut is_asked)| async move {
            if at == 8 {
                is_asked.wait_for(|is_asked| *is_asked).await.ok()?;
            }
            taken.send_replace(at * MIB);
            (at < 64).then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![7; MIB])), (at + 1, taken, is_asked)))
        });
        Body::from_stream(pieces).into_response()
    };
    Impostor::with_outputs(files(&["big.bin"]))
        .lying("/view?filename=big", move |asked| if asked.is_head { of_size("67108864") } else { body() })
        .lying("/queue", move |asked| {
            let mut taken = taken_of.subscribe();
            asked_for.send_replace(*taken.borrow() > 0);
            let is_here = *taken.borrow() >= 64 * MIB;
            let running = if is_here { json!([]) } else { json!([[1, asked.prompt_id, {}, {}, []]]) };
            let queue = json!({"queue_running": running, "queue_pending": []}).to_string();
            Body::from_stream(stream::once(async move {
                taken.wait_for(|taken| *taken == 0 || *taken >= 48 * MIB).await.ok();
                Ok::<_, std::io::Error>(queue)
            }))
            .into_response()
        })
        .talking(|mut socket, impostor| async move {
            let prompt = impostor.prompted().await;
            let output =
                json!({"type": "executed", "data": {"node": "3", "output": files(&["big.bin"]), "prompt_id": prompt}});
            socket.send(Message::text(output.to_string())).await.ok();
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_output_comes_while_the_box_is_asked_about_the_run() {
    let siege = Siege::begin().await;
    let ended = siege.run(telling_its_queue_beside_a_large_file().serve().await).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    let log = siege.stage.service.log();
    assert!(log.contains("fetched while the run goes on file=\"big.bin\""), "{log}");
    let stalled = log.lines().find(|line| line.contains("nobody took") || line.contains("connecting again"));
    assert_eq!(stalled, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_never_tells_its_nodes_keeps_no_look_at_another_waiting() {
    let siege = Siege::begin().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let mute = Impostor::new().lying("/object_info", move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()).into_response()
    });
    let mut request = siege.request(mute.serve().await);
    request["dry_run"] = json!(true);
    let mut looks = JoinSet::new();
    // More than boxes are looked at at once.
    for _ in 0..20 {
        let (client, request) = (siege.stage.service.client(), request.clone());
        looks.spawn(async move { client.execute(&request).await });
    }
    eventually("questions", async || (asked.load(Ordering::SeqCst) >= 4).then_some(())).await;
    let mut honest = siege.stage.request(&graphs::slow(&tag(), 1, 1));
    honest["dry_run"] = json!(true);
    let (status, answer) = siege.stage.service.client().execute(&honest).await;
    assert_eq!((status, &answer["valid"]), (StatusCode::OK, &json!(true)), "{answer}");
    assert!(looks.try_join_next().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lets_large_answers_trickle_holds_up_nobody_else() {
    let siege = Siege::begin().await;
    let begun = Arc::new(AtomicUsize::new(0));
    let client = siege.stage.service.client();
    for _ in 0..4 {
        let counter = begun.clone();
        let trickle = move |_: &Asked| {
            counter.fetch_add(1, Ordering::SeqCst);
            let start = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 4 << 20]))]);
            let drops = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Some((Ok(Bytes::from_static(b" ")), ()))
            });
            ([(header::CONTENT_LENGTH, "60000000")], Body::from_stream(start.chain(drops))).into_response()
        };
        client.accepted(&siege.request(Impostor::new().lying("/history", trickle).serve().await)).await;
    }
    eventually("all four", async || (begun.load(Ordering::SeqCst) >= 4).then_some(())).await;
    // The honest box has a large answer to give too.
    let mut request = siege.stage.request(&graphs::slow(&tag(), 1, 1));
    let large = |asked: &Asked| {
        let mut answer = history(&asked.prompt_id, &files(&[PICTURE]));
        answer[&asked.prompt_id]["prompt"][3] = json!({"extra": "x".repeat(3 << 20)});
        answer.to_string().into_response()
    };
    request["comfyui_port"] = json!(Impostor::new().lying("/history", large).serve().await);
    let id = client.accepted(&request).await;
    // Sooner than the first of them is given up.
    client.wait_for_status(&id, "completed", Duration::from_secs(40)).await;
    siege.assert_held(&[PICTURE]);
}

/// Serves bytes that are no HTTP, or HTTP without an end.
async fn raw(start: &'static [u8], then_for_ever: &'static [u8]) -> u16 {
    let listener = loopback::listener().await;
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_raw(stream, start, then_for_ever));
        }
    });
    port
}

async fn answer_raw(mut stream: TcpStream, start: &[u8], then_for_ever: &[u8]) {
    let mut request = [0; 4096];
    if !matches!(stream.read(&mut request).await, Ok(1..)) || stream.write_all(start).await.is_err() {
        return;
    }
    let many = then_for_ever.repeat(64 * 1024 / then_for_ever.len().max(1));
    while !many.is_empty() && stream.write_all(&many).await.is_ok() {}
    // What is complete waits for the other side to hang up.
    tokio::time::timeout(Duration::from_secs(60), stream.read(&mut request)).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_that_never_comes_to_its_point_is_cut_off() {
    let siege = Siege::begin().await;
    let ports = [
        raw(b"", b"x").await,
        raw(b"HTTP/1.1 200 ", b"OK").await,
        raw(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n").await,
        raw(b"HTTP/1.1 200 OK\r\nX: ", b"x").await,
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"").await,
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", b"{").await,
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", b"{}").await,
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X-Trailer: x\r\n").await,
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", b"x").await,
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"extension").await,
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n").await,
        raw(b"\0\xff\x16\x03\x01", b"").await,
    ];
    for failed in join_all(ports.map(|port| siege.run(port))).await {
        siege.assert_failed(&failed, &["comfyui_unreachable", "wedged"]);
    }
    siege.assert_held(&[]);
}
