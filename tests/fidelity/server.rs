//! The server under test: the sandbox, or a real ComfyUI named by `COMFYUI_URL`.

use std::time::Duration;

use comfy_remote::sandbox::{Sandbox, SandboxOptions, Version};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::trace::describe;

/// Far longer than anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    /// `127.0.0.1:8188`.
    pub(crate) authority: String,
    pub(crate) http: reqwest::Client,
    pub(crate) sandbox: Option<Sandbox>,
    /// Keeps others away from the real ComfyUI.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// The real ComfyUI has one queue, which one test at a time can have for itself.
static REAL: Mutex<()> = Mutex::const_new(());

/// An answer: status and body, parsed if it is JSON.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) async fn sandbox(version: Version) -> Self {
        let sandbox = Sandbox::start(SandboxOptions { version, ..SandboxOptions::default() }).await.unwrap();
        let authority = format!("127.0.0.1:{}", sandbox.comfyui_port());
        Self { authority, http: client(), sandbox: Some(sandbox), _alone: None }
    }

    /// A real ComfyUI, if the environment names one. Waits for the test that has it.
    pub(crate) async fn real() -> Option<Self> {
        let url = std::env::var("COMFYUI_URL").ok().filter(|url| !url.is_empty())?;
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Some(Self { authority, http: client(), sandbox: None, _alone: Some(REAL.lock().await) })
    }

    /// Brings the server into the state of a fresh one, as far as results are concerned.
    pub(crate) async fn reset(&self) {
        self.wait_until_idle().await;
        let answer = self.post("/free", &json!({"free_memory": true, "unload_models": true})).await;
        assert_eq!(answer.status, 200);
        // ComfyUI acts on it between prompts, some time after it answered. When a second prompt begins, it has.
        for text in ["one", "two"] {
            let prompt = json!({"1": {"class_type": "RigText", "inputs": {"text": text}}});
            assert_eq!(self.post("/prompt", &json!({"prompt": prompt})).await.status, 200);
            self.wait_until_idle().await;
        }
    }

    pub(crate) async fn stop(self) {
        if let Some(sandbox) = self.sandbox {
            sandbox.stop().await;
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.http.get(self.url(path))).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, body.to_string()).await
    }

    pub(crate) async fn post_raw(&self, path: &str, body: String) -> Answer {
        answer(self.http.post(self.url(path)).body(body)).await
    }

    pub(crate) async fn upload(&self, filename: &str, content: Vec<u8>, fields: &[(&str, &str)]) -> Answer {
        let part = reqwest::multipart::Part::bytes(content).file_name(filename.to_owned());
        let mut form = reqwest::multipart::Form::new().part("image", part);
        for (name, value) in fields {
            form = form.text((*name).to_owned(), (*value).to_owned());
        }
        answer(self.http.post(self.url("/upload/image")).multipart(form)).await
    }

    pub(crate) async fn wait_until_idle(&self) {
        within("the queue to become empty", async {
            while self.get("/prompt").await.body["exec_info"]["queue_remaining"] != 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(crate) async fn connect(&self, client_id: Option<&str>) -> Socket {
        let query = client_id.map(|id| format!("?clientId={id}")).unwrap_or_default();
        let url = format!("ws://{}/ws{query}", self.authority);
        let (stream, _) = within("a websocket", tokio_tungstenite::connect_async(url)).await.unwrap();
        Socket { stream, heard: vec![], cursor: 0, over: false }
    }
}

/// Puts a deadline on a wait.
pub(crate) async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(DEADLINE).build().unwrap()
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    let text = String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, content_type, body }
}

/// A websocket that remembers all it heard.
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) heard: Vec<Value>,
    /// What [`wait_for`](Self::wait_for) has not looked at yet begins here.
    cursor: usize,
    over: bool,
}

impl Socket {
    pub(crate) async fn send(&mut self, message: &Value) {
        self.stream.send(Message::text(message.to_string())).await.unwrap();
    }

    /// Listens until something matches; what came in between counts as seen.
    pub(crate) async fn wait_for(&mut self, what: &str, matches: impl Fn(&Value) -> bool) {
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                while let Some(message) = self.heard.get(self.cursor) {
                    self.cursor += 1;
                    if matches(message) {
                        return true;
                    }
                }
                if !self.hear().await {
                    return false;
                }
            }
        })
        .await;
        if !matches!(found, Ok(true)) {
            let tail: Vec<String> = self.heard.iter().rev().take(5).map(Value::to_string).collect();
            panic!("the socket never heard {what}; the last messages, newest first: {tail:#?}");
        }
    }

    /// Reads whatever the server has sent so far. The answer to a ping comes after it.
    pub(crate) async fn drain(&mut self) {
        if self.over {
            return;
        }
        self.stream.send(Message::Ping(b"drain"[..].into())).await.unwrap();
        within("a pong", async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Pong(payload))) if payload == b"drain"[..] => return,
                    Some(Ok(message)) => self.keep(message),
                    _ => return,
                }
            }
        })
        .await;
    }

    /// Closes with a handshake, so the server knows when this returns.
    pub(crate) async fn close(&mut self) {
        if self.over {
            return;
        }
        self.stream.send(Message::Close(None)).await.unwrap();
        within("the close handshake", async { while self.hear().await {} }).await;
    }

    /// Whether the connection ended without a close frame.
    pub(crate) async fn breaks_off(&mut self) -> bool {
        within("the end of the socket", async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Close(_))) => return false,
                    Some(Ok(message)) => self.keep(message),
                    Some(Err(_)) | None => return true,
                }
            }
        })
        .await
    }

    async fn hear(&mut self) -> bool {
        match self.stream.next().await {
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                self.over = true;
                false
            }
            Some(Ok(message)) => {
                self.keep(message);
                true
            }
        }
    }

    fn keep(&mut self, message: Message) {
        match message {
            Message::Text(text) => self.heard.push(serde_json::from_str(&text).unwrap()),
            Message::Binary(frame) => self.heard.push(describe_frame(&frame)),
            _ => {}
        }
    }
}

fn describe_frame(frame: &[u8]) -> Value {
    let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    match number(0) {
        4 => {
            let end = 8 + number(4) as usize;
            describe(4, Some(serde_json::from_slice(&frame[8..end]).unwrap()), None, &frame[end..])
        }
        event => describe(event, None, Some(number(4)), &frame[8..]),
    }
}
