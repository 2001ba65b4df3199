//! What a box can do to the one who listens to its websocket.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::body::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use super::{
    impostor::{Impostor, PICTURE, Socket},
    siege::Siege,
};
use crate::{sandbox_stage::PATIENCE, support::LOOK_EVERY};

/// Says one thing after the other, and stays until everything has been heard or the other side hangs up.
async fn say(socket: &mut Socket, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        if socket.send(message).await.is_err() {
            return;
        }
    }
    // Answered behind all that was said.
    if socket.send(Message::Ping(Bytes::from_static(b"the end"))).await.is_ok() {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(&message, Message::Pong(text) if &text[..] == b"the end") {
                return;
            }
        }
    }
}

fn fragment(opcode: Data, content: &Bytes) -> Message {
    Message::Frame(Frame::message(content.clone(), OpCode::Data(opcode), false))
}

async fn assert_survived(siege: &Siege, impostor: Impostor) {
    let done = siege.run(impostor.serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_fragments_without_end_is_hung_up_on() {
    let siege = Siege::begin().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let impostor = Impostor::new().talking(move |mut socket, impostor| {
        let counter = counter.clone();
        async move {
            impostor.prompted().await;
            if counter.load(Ordering::SeqCst) > 0 {
                // Who comes again has hung up before.
                return;
            }
            let piece = Bytes::from(vec![b'x'; 1 << 20]);
            let mut opcode = Data::Text;
            while socket.send(fragment(opcode, &piece)).await.is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
                opcode = Data::Continue;
            }
        }
    });
    assert_survived(&siege, impostor).await;
    let sent = sent.load(Ordering::SeqCst);
    assert!((30..200).contains(&sent), "{sent} MiB were sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_frames_and_pings_in_hosts_cost_nothing() {
    let siege = Siege::begin().await;
    let impostor = Impostor::new().talking(|mut socket, impostor| async move {
        impostor.prompted().await;
        let pings = (0..50_000).map(|_| Message::Ping(Bytes::from(vec![0; 125])));
        say(&mut socket, pings).await;
        let empty = Bytes::new();
        say(&mut socket, (0..50_000).map(|at| fragment(if at == 0 { Data::Text } else { Data::Continue }, &empty)))
            .await;
    });
    assert_survived(&siege, impostor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_lie_about_themselves_are_hung_up_on() {
    // A frame of 2^63 - 1 bytes; a frame with reserved bits; text that is no UTF-8; a continuation of nothing.
    let frames: [&'static [u8]; 4] =
        [b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xf1\x02{}", b"\x81\x02\xff\xfe", b"\x80\x02{}"];
    let siege = Siege::begin().await;
    for frame in frames {
        let impostor = Impostor::new().talking(move |mut socket, impostor| async move {
            impostor.prompted().await;
            let stream = socket.get_mut();
            tokio::io::AsyncWriteExt::write_all(stream, frame).await.ok();
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        });
        assert_survived(&siege, impostor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_and_keys_of_megabytes_are_not_kept() {
    const BIG: usize = 1 << 20;
    let siege = Siege::begin().await;
    let impostor = Impostor::new().talking(|mut socket, impostor| async move {
        let prompt = impostor.prompted().await;
        let big = |number: usize| format!("{number}{}", "9".repeat(BIG));
        let tell = |kind: &str, mut data: Value| {
            data["prompt_id"] = json!(prompt);
            Message::text(json!({"type": kind, "data": data}).to_string())
        };
        for at in 0..70 {
            let state = json!({"state": "running", "value": 1, "max": 9, "real_node_id": big(at)});
            let states = tell("progress_state", json!({"nodes": {big(at): state}}));
            let executing = tell("executing", json!({"node": big(at), "display_node": big(at + 1000)}));
            let step = tell("progress", json!({"node": "2", "value": at, "max": 70}));
            say(&mut socket, [states, executing, step]).await;
        }
        // Every file has a copy of the key under which it is listed, and of its node's id.
        let files: Vec<Value> = (0..2000).map(|at| json!({"filename": format!("{at}.png")})).collect();
        say(&mut socket, [tell("executed", json!({"node": big(1), "output": {big(1): files}}))]).await;
        let texts: Vec<String> = (0..2000).map(|at| format!("text {at}")).collect();
        say(&mut socket, [tell("executed", json!({"node": "1", "display_node": big(2), "output": {"text": texts}}))])
            .await;
    });
    assert_survived(&siege, impostor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_that_makes_no_sense_stays_between_0_and_100() {
    let siege = Siege::begin().await;
    let said = Arc::new(AtomicUsize::new(0));
    let told = said.clone();
    let impostor = Impostor::new().talking(move |mut socket, impostor| {
        let told = told.clone();
        async move {
            let prompt = impostor.prompted().await;
            let steps = [
                ("NaN", "NaN"),
                ("-1", "10"),
                ("1", "-10"),
                ("1", "0"),
                ("1e308", "1e-308"),
                ("1e308", "1e308"),
                ("1e999999", "1"),
                ("Infinity", "-Infinity"),
                ("184467440737095516160000000000000", "1"),
                ("\"5\"", "[]"),
            ];
            for (value, max) in steps {
                for node in ["\"2\"", "null", "{}"] {
                    let progress =
                        format!(r#"{{"prompt_id": "{prompt}", "node": {node}, "value": {value}, "max": {max}}}"#);
                    let nodes = format!(r#"{{"2": {{"state": "running", "value": {value}, "max": {max}}}, "": 3}}"#);
                    let states = format!(r#"{{"prompt_id": "{prompt}", "nodes": {nodes}, "nodes": {nodes}}}"#);
                    for (kind, data) in [("progress", progress), ("progress_state", states)] {
                        say(&mut socket, [Message::text(format!(r#"{{"type": "{kind}", "data": {data}}}"#))]).await;
                    }
                }
            }
            told.store(1, Ordering::SeqCst);
            // Looked at before it is over.
            while told.load(Ordering::SeqCst) == 1 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    });
    let client = siege.stage.service.client();
    let id = client.accepted(&siege.request(impostor.serve().await)).await;
    client.wait_for(&id, "everything said", PATIENCE, |_| said.load(Ordering::SeqCst) == 1).await;
    let progress = client.progress(&id).await;
    said.store(2, Ordering::SeqCst);
    for percent in ["progress_percent", "overall_percent"] {
        let percent = progress[percent].as_f64().unwrap_or_else(|| panic!("{progress:#}"));
        assert!((0.0..100.0).contains(&percent), "{progress:#}");
    }
    for node in progress["nodes"].as_array().unwrap() {
        assert!((0.0..=100.0).contains(&node["progress"].as_f64().unwrap()), "{progress:#}");
    }
    let done = siege.ended(&id).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    siege.assert_held(&[PICTURE]);
}
