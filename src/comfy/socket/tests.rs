//! Tests of the socket against the far end of a pipe.

#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::{accept_async_with_config, tungstenite::protocol::frame::coding::CloseCode};

use super::*;

/// Set only once connected: a ping in the middle of the greeting would be in the way.
const QUICK: Patience = Patience { ping_every: Duration::from_millis(10), pong_within: Duration::from_millis(10) };

type Server = WebSocketStream<DuplexStream>;

async fn accept(stream: DuplexStream) -> Server {
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    accept_async_with_config(stream, Some(config)).await.unwrap()
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}

fn status() -> Value {
    json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "c", "credential_key": "k"}})
}

/// A socket and its far end, which has greeted it and has read our feature flags.
async fn connected() -> (Socket, Server) {
    let (near, far) = duplex(1 << 16);
    let server = async {
        let mut server = accept(far).await;
        server.send(text(&status())).await.unwrap();
        let flags = json!({"type": "feature_flags", "data": {"supports_preview_metadata": false}});
        assert_eq!(server.next().await.unwrap().unwrap(), text(&flags));
        server
    };
    let client = ClientId::from("ünï c");
    let (socket, server) = tokio::join!(Socket::connect(near, &client), server);
    let mut socket = socket.unwrap();
    assert_eq!(socket.next().await.unwrap(), SocketMessage::Text(status().to_string().into()));
    (socket, server)
}

/// A greeted socket that is sent `count` copies of a text as fast as it takes them, and how many it has taken so far.
pub(crate) async fn told(text: String, count: usize) -> (Socket, Arc<AtomicUsize>) {
    let (socket, mut server) = connected().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        for _ in 0..count {
            server.send(Message::text(text.clone())).await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
        }
        std::future::pending::<()>().await;
    });
    (socket, sent)
}

#[tokio::test]
async fn messages_come_in_order_and_the_key_is_kept() {
    let (mut socket, mut server) = connected().await;
    assert_eq!(socket.credential_key(), Some("k"));
    server.send(Message::text("one")).await.unwrap();
    server.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    server.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.next().await.unwrap(), SocketMessage::Text("one".into()));
    assert_eq!(socket.next().await.unwrap(), SocketMessage::Binary(Bytes::from_static(&[1, 2])));
    assert_eq!(server.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"?")));
}

#[tokio::test]
async fn the_key_is_shown_before_anything_else() {
    let (near, far) = duplex(1 << 16);
    let server = async {
        let mut server = accept(far).await;
        let auth = json!({"type": "credential_auth", "data": {"credential_key": "k"}});
        assert_eq!(server.next().await.unwrap().unwrap(), text(&auth));
        // Another message before the status is nothing to worry about.
        server.send(text(&json!({"type": "executing", "data": {"node": "5"}}))).await.unwrap();
        server.send(text(&status())).await.unwrap();
        server
    };
    let client = ClientId::fresh();
    let (socket, _server) = tokio::join!(Socket::connect_again(near, &client, Some("k")), server);
    let mut socket = socket.unwrap();
    for kind in ["executing", "status"] {
        let SocketMessage::Text(text) = socket.next().await.unwrap() else { panic!("a text was sent") };
        assert!(text.contains(kind), "{text}");
    }
}

#[tokio::test]
async fn a_refused_key_is_told_by_its_code() {
    let (near, far) = duplex(1 << 16);
    let server = async {
        let mut server = accept(far).await;
        let frame = CloseFrame { code: CloseCode::Policy, reason: "".into() };
        server.close(Some(frame)).await.unwrap();
        server
    };
    let client = ClientId::fresh();
    let (socket, _server) = tokio::join!(Socket::connect(near, &client), server);
    assert!(matches!(socket, Err(SocketError::Closed { code: Some(1008) })), "{socket:?}");
}

#[tokio::test]
async fn another_answer_than_an_upgrade_is_named() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let error = Socket::connect(near, &ClientId::fresh()).await.unwrap_err();
    assert_eq!(error.to_string(), "what answers on /ws is not ComfyUI: HTTP 302");
    let mut request = [0; 12];
    far.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"GET /ws?clie");
}

#[tokio::test]
async fn the_upgrade_names_the_client_and_no_origin() {
    let (near, mut far) = duplex(1 << 16);
    let connecting = tokio::spawn(async move { Socket::connect(near, &"ünï c".into()).await });
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(far.read_u8().await.unwrap());
    }
    drop(far);
    let request = String::from_utf8(request).unwrap();
    assert!(request.starts_with("GET /ws?clientId=%C3%BCn%C3%AF%20c HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("Host: 127.0.0.1\r\n") && !request.to_lowercase().contains("origin"), "{request}");
    assert!(matches!(connecting.await.unwrap(), Err(SocketError::Broken(_))));
}

#[tokio::test]
async fn silence_is_asked_about_and_death_is_noticed() {
    let (mut socket, server) = connected().await;
    socket.heartbeat = Heartbeat::new(QUICK);
    // The far end stays open and reads nothing, so no pong comes.
    assert!(matches!(socket.next().await, Err(SocketError::Dead)));
    drop(server);
}

#[tokio::test]
async fn an_answered_ping_keeps_it_alive() {
    let (mut socket, mut server) = connected().await;
    socket.heartbeat = Heartbeat::new(Patience { pong_within: Duration::from_secs(60), ..QUICK });
    let far = async {
        for _ in 0..3 {
            // Reading answers it.
            assert!(matches!(server.next().await.unwrap().unwrap(), Message::Ping(_)));
        }
        server.send(Message::text("still here")).await.unwrap();
        server
    };
    let (message, _server) = tokio::join!(socket.next(), far);
    assert_eq!(message.unwrap(), SocketMessage::Text("still here".into()));
}

#[tokio::test]
async fn a_dropped_call_loses_nothing() {
    let (mut socket, mut server) = connected().await;
    let far = tokio::spawn(async move {
        for number in 0..200 {
            server.send(Message::text(format!("{number} {}", "x".repeat(1000)))).await.unwrap();
        }
        server
    });
    let mut number = 0;
    while number < 200 {
        tokio::select! {
            biased;
            message = socket.next() => {
                let SocketMessage::Text(text) = message.unwrap() else { panic!("texts were sent") };
                assert!(text.starts_with(&format!("{number} ")), "{number}: {}", &text[..8]);
                number += 1;
            }
            () = tokio::task::yield_now() => {}
        }
    }
    drop(far.await.unwrap());
    assert!(matches!(socket.next().await, Err(SocketError::Broken(_) | SocketError::Closed { .. })));
}

#[tokio::test]
async fn big_messages_pass_and_bigger_ones_do_not() {
    let (mut socket, mut server) = connected().await;
    let far = tokio::spawn(async move {
        server.send(Message::text("x".repeat(20 << 20))).await.unwrap();
        // The near end gives up while this is sent.
        let _ = server.send(Message::text("x".repeat(MAX_MESSAGE_BYTES + 1))).await;
    });
    assert!(matches!(socket.next().await.unwrap(), SocketMessage::Text(text) if text.len() == 20 << 20));
    assert!(matches!(socket.next().await, Err(SocketError::TooBig)));
    drop(socket);
    far.await.unwrap();
}

#[tokio::test]
async fn closing_says_goodbye() {
    let (socket, mut server) = connected().await;
    let far = async { (server.next().await, server.next().await) };
    let ((), (close, end)) = tokio::join!(socket.close(), far);
    assert!(matches!(close, Some(Ok(Message::Close(_)))) && end.is_none());
}
