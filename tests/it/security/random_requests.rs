//! Random requests, more or less well-formed: whatever comes, the answer is one of those that docs/API.md names, in the
//! envelope, and the service goes on.
//!
//! `RANDOM_REQUESTS=100000 cargo test --test it random_requests` for a long run.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    graphs::{self, tag},
    loopback::Deaf,
    support::service::Service,
};

const DEFAULT_COUNT: usize = 3000;

/// Longest wait for one answer, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

const METHODS: [&str; 9] = ["GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"];
const PATHS: [&str; 12] = [
    "/comfyui/workflow/execute",
    "/comfyui/workflow/execute",
    "/comfyui/workflow/state",
    "/comfyui/workflow/comfyui_workflow_1_00000000/progress",
    "/comfyui/workflow/../../etc/passwd/outputs",
    "/comfyui/workflow/%2e%2e%2f%00/cancel",
    "/comfyui/workflow/ü/active",
    "/comfyui/workflow//retry",
    "/comfyui/workflow/a/b/c/download",
    "/health",
    "*",
    "http://localhost/comfyui/workflow/state?x=%ff",
];
const FIELDS: [&str; 9] = [
    "ssh_connection",
    "workflow_file",
    "workflow_name",
    "input_images",
    "output_dir",
    "comfyui_port",
    "comfyui_input_dir",
    "comfyui_output_dir",
    "no_such_field",
];
const HEADERS: [&str; 12] = [
    "Origin: null",
    "Origin: http://evil.example",
    "Host: evil.example",
    "Host: localhost",
    "Authorization: Bearer x",
    "Idempotency-Key: again",
    "Idempotency-Key: ",
    "Expect: 100-continue",
    "Transfer-Encoding: chunked",
    "Content-Length: 5",
    "Access-Control-Request-Method: POST",
    "Upgrade: websocket",
];

/// Makes requests; the same seed makes the same ones.
struct Author {
    random: fastrand::Rng,
    workflow_file: String,
    ssh_connection: String,
}

struct Written {
    bytes: Vec<u8>,
    /// No answer at all is right where it is not HTTP.
    is_http: bool,
}

impl Author {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    /// One that is accepted, for a box that is not there.
    fn flawless(&self) -> Written {
        let body = json!({"ssh_connection": self.ssh_connection, "workflow_file": self.workflow_file}).to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            PATHS[0],
            body.len()
        );
        Written { bytes: (head + &body).into_bytes(), is_http: true }
    }

    fn write(&mut self) -> Written {
        if self.random.u8(..32) == 0 {
            return self.flawless();
        }
        let body = if self.random.u8(..4) == 0 { self.garbage() } else { self.body().to_string().into_bytes() };
        let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", self.pick(&METHODS), self.pick(&PATHS));
        if self.random.u8(..8) != 0 {
            head += "Host: localhost\r\n";
        }
        if self.random.u8(..4) != 0 {
            head += "Content-Type: application/json\r\n";
        }
        for _ in 0..self.random.u8(..3) {
            head = head + self.pick(&HEADERS) + "\r\n";
        }
        let head_lies = head.contains("Transfer-Encoding") || head.contains("Content-Length");
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        let mut bytes = [head.into_bytes(), body].concat();
        let mut is_http = !head_lies;
        if self.random.u8(..4) == 0 {
            is_http = false;
            for _ in 0..self.random.usize(1..8) {
                let at = self.random.usize(..bytes.len());
                bytes[at] = self.random.u8(..);
            }
        }
        Written { bytes, is_http }
    }

    fn garbage(&mut self) -> Vec<u8> {
        let length = self.random.usize(..300);
        match self.random.u8(..3) {
            0 => "[".repeat(length * 100).into_bytes(),
            1 => (0..length).map(|_| self.random.u8(..)).collect(),
            _ => self.body().to_string().into_bytes().into_iter().take(length).collect(),
        }
    }

    /// A request to execute. What would be accepted names our own closed port, nobody else's machine.
    fn body(&mut self) -> Value {
        let mut body = json!({"ssh_connection": "ssh", "workflow_file": "/nowhere/workflow.json"});
        if self.random.bool() {
            body["workflow_file"] = json!(self.workflow_file);
            body["ssh_connection"] = json!(self.ssh_connection);
        }
        for _ in 0..self.random.usize(..4) {
            let field = self.pick(&FIELDS);
            // Never another box, and no folder but by chance of a wrong type.
            if !matches!(field, "ssh_connection" | "output_dir") {
                body[field] = self.value(3);
            }
        }
        if self.random.u8(..6) == 0 {
            body[self.pick(&["ssh_connection", "output_dir"])] = json!([null, 7]);
        }
        body
    }

    fn value(&mut self, depth: u8) -> Value {
        match self.random.u8(..if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.random.bool()),
            2 => json!(self.random.i64(..)),
            3 => json!(self.random.u8(..)),
            4 => json!((0..self.random.usize(..40)).map(|_| self.random.char(..)).collect::<String>()),
            5 => json!("../".repeat(self.random.usize(..2000))),
            6 => (0..self.random.usize(..4)).map(|_| self.value(depth - 1)).collect(),
            _ => (0..self.random.usize(..4)).map(|i| (i.to_string(), self.value(depth - 1))).collect(),
        }
    }
}

async fn ask(service: &Service, request: &Written) -> Vec<u8> {
    let mut stream = TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap();
    // Who is refused at the first line need not take the rest.
    stream.write_all(&request.bytes).await.ok();
    if !request.is_http {
        stream.shutdown().await.ok();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    answer
}

fn check(request: &Written, answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    let shown = || format!("{}\n--- answered\n{text}", String::from_utf8_lossy(&request.bytes));
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    if text.is_empty() {
        assert!(!request.is_http, "no answer to\n{}", shown());
        return 0;
    }
    let status: u16 =
        text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{}", shown()));
    // What follows is the answer to what the server took for a second request.
    let body = text.split_once("\r\n\r\n").map_or("", |(_, rest)| rest.split("HTTP/1.1 ").next().unwrap());
    // What is not HTTP never comes to us: the server of HTTP refuses it without a body. HEAD has none, nor 204.
    let bare = matches!(status, 400 | 431 | 204) || request.bytes.starts_with(b"HEAD ");
    if !(body.is_empty() && bare) {
        let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{}", shown()));
        assert_eq!(body["success"], json!(status < 300), "{}", shown());
        assert!(status < 300 || body["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", shown());
        let tunnel =
            body["message"].as_str().is_some_and(|message| message.starts_with("Failed to create SSH tunnel: "));
        assert!(status < 500 || (status == 500 && tunnel), "{}", shown());
    }
    status
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "seed and figures, for whoever looks")]
async fn whatever_comes_the_answer_is_one_that_is_documented() {
    let count = std::env::var("RANDOM_REQUESTS").map_or(DEFAULT_COUNT, |count| count.parse().expect("a number"));
    let service = Service::start(&[("ssh.connect_attempts", 1.into()), ("limits.max_waiting", 100_000.into())]);
    let closed = Deaf::new();
    let workflow_file = service.folder().join("w.json");
    fs::write(&workflow_file, graphs::slow(&tag(), 1, 1).to_string()).unwrap();
    let seed = std::env::var("RANDOM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    println!("RANDOM_SEED={seed}");
    let mut author = Author {
        random: fastrand::Rng::with_seed(seed),
        workflow_file: workflow_file.display().to_string(),
        ssh_connection: format!("ssh -p {} root@127.0.0.1", closed.port),
    };
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    for _ in 0..count {
        let request = author.write();
        let answer = timeout(PATIENCE, ask(&service, &request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no end to\n{}", String::from_utf8_lossy(&request.bytes)));
        *counts.entry(check(&request, &answer)).or_default() += 1;
    }
    println!("{count} requests, answered: {counts:?}");
    assert_eq!(service.client().get("/health").await.0, 200);
    assert!(!service.log().contains("panicked"), "a handler panicked");
    for expected in [200, 400, 403, 404, 405, 415, 500] {
        assert!(counts.contains_key(&expected), "{expected} never came: {counts:?}");
    }
}
