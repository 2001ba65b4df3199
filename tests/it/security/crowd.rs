//! Crowds: slow senders, idle connections, thousands of pollers. The service answers others meanwhile.

use std::time::Duration;

use futures_util::future::select_all;
use reqwest::StatusCode;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    graphs::{self, tag},
    support::{SOON, service::Service},
};

/// How long somebody else's request may take meanwhile, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

async fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap()
}

async fn crowd(service: &Service, count: usize, says: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(service).await;
        stream.write_all(says).await.unwrap();
        crowd.push(stream);
    }
    crowd
}

async fn answers_others(service: &Service) {
    let (status, _) = timeout(PATIENCE, service.client().state()).await.expect("an answer while others crowd");
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn those_who_hold_connections_without_using_them_push_out_only_themselves() {
    let service = Service::start(&[("server.max_connections", 50.into())]);
    let slow_body = "POST /comfyui/workflow/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                     Content-Length: 1000\r\n\r\n{";
    for says in ["", "GET /comfyui/work", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow:", slow_body] {
        let mut crowd = crowd(&service, 200, says.as_bytes()).await;
        answers_others(&service).await;
        let closed = timeout(SOON, crowd[0].read(&mut [0; 64])).await.expect("the first one to be closed");
        assert!(matches!(closed, Ok(0) | Err(_)), "{says}: {closed:?}");
    }
}

#[tokio::test]
async fn slow_large_bodies_hold_up_no_other() {
    let service = Service::start(&[]);
    let head = |sent: usize| {
        let mut says =
            b"POST /comfyui/workflow/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                         Content-Length: 1048576\r\n\r\n{"
                .to_vec();
        says.resize(says.len() + sent, b' ');
        says
    };
    // Those that announce much, and those that hold all room for what they have sent.
    for (count, sent) in [(40, 0), (20, 1_000_000)] {
        let mut crowd = crowd(&service, count, &head(sent)).await;
        let request = json!({ "note": "x".repeat(200_000) });
        let (status, body) = timeout(PATIENCE, service.client().execute(&request)).await.expect("an answer");
        assert_eq!(
            (status, &body["message"]),
            (StatusCode::BAD_REQUEST, &json!("Missing required field: ssh_connection"))
        );
        if sent > 0 {
            // Who has been sending longest is for the service to say: it may have come to a later one first.
            let answers = crowd.iter_mut().map(|stream| {
                Box::pin(async {
                    let mut answer = [0; 64];
                    let count = stream.read(&mut answer).await.unwrap();
                    String::from_utf8_lossy(&answer[..count]).into_owned()
                })
            });
            let (answer, ..) = timeout(PATIENCE, select_all(answers)).await.expect("one of them to be let go");
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_request_that_is_being_answered_keeps_its_place() {
    let service = Service::start(&[("server.max_connections", 5.into()), ("ssh.execute_wait_s", 5.into())]);
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let file = service.folder().join("w.json");
    std::fs::write(&file, graphs::slow(&tag(), 1, 1).to_string()).unwrap();
    let ssh = format!("ssh -p {} root@127.0.0.1", silent.local_addr().unwrap().port());
    let request = json!({"ssh_connection": ssh, "workflow_file": file});
    let client = service.client();
    let execute = tokio::spawn(async move { client.execute(&request).await });
    let _held = timeout(SOON, silent.accept()).await.expect("the service to reach out").unwrap();
    let _crowd = crowd(&service, 50, b"GET ").await;
    answers_others(&service).await;
    let (status, body) = execute.await.unwrap();
    assert_eq!((status, &body["success"]), (StatusCode::OK, &json!(true)));
}

#[tokio::test]
async fn headers_without_end_and_silence_are_cut_off() {
    let service = Service::start(&[("server.header_timeout_s", 1.into())]);
    for says in ["", "GET /comfyui/workflow/state HTTP/1.1\r\nHost: localhost\r\n"] {
        let mut stream = connect(&service).await;
        stream.write_all(says.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection to be closed").ok();
    }
    let mut stream = connect(&service).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    let endless = async {
        loop {
            let line = format!("X-More: {}\r\n", "x".repeat(1000));
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    timeout(SOON, endless).await.expect("the connection to be closed");
    answers_others(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pollers_are_answered() {
    const POLLERS: usize = 10_000;
    const POLL: &[u8] = b"GET /comfyui/workflow/x/active HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let enough = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if enough.maximum.is_some_and(|most| most < POLLERS as u64 + 2000) {
        return crate::support::skip("descriptors", "the limit of open files is too low for ten thousand connections");
    }
    let raised = rustix::process::Rlimit { current: enough.maximum, maximum: enough.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let service = Service::start(&[]);
    let before = service.memory("VmRSS");
    let mut pollers = crowd(&service, POLLERS, POLL).await;
    for round in 0..3 {
        for poller in &mut pollers {
            let mut answer = [0; 1024];
            let count = timeout(SOON, poller.read(&mut answer)).await.expect("an answer in time").unwrap();
            let answer = String::from_utf8_lossy(&answer[..count]);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#""active":false}"#), "{round}: {answer}");
        }
        answers_others(&service).await;
        for poller in &mut pollers {
            poller.write_all(POLL).await.unwrap();
        }
    }
    let each = service.memory("VmHWM").saturating_sub(before) / POLLERS as u64;
    assert!(each < 64 << 10, "{each} bytes for each connection");
}
