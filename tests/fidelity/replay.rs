//! Does to a server what was done to the recorded one, and records what it says.
//!
//! A line of the recording is either something the client did, which is done again, or something the server said, for
//! which the replay waits before it goes on. So each action happens in the same situation as in the recording, without
//! sleeping. What was said is kept whole and compared afterwards.

use std::collections::HashMap;
use std::io::Cursor;

use serde_json::{Value, json};

use crate::normal::Recording;
use crate::server::{Server, Socket};
use crate::trace::{Line, Trace, What};

/// Stands for `rig_up` in names of uploads, so that a replay never meets files of an earlier one.
const UPLOAD_STEM: &str = "rig_up";

/// What the recorded server said.
pub(crate) fn recorded(trace: &Trace) -> Recording {
    let mut recording = Recording::default();
    for line in plan(trace) {
        match line.what {
            What::Connected { client_id } => {
                if let Some(id) = client_id {
                    recording.names.add(&id, "client");
                }
                recording.streams.entry(line.source).or_default();
            }
            What::Message(message) => {
                if let Some(sid) = message["data"]["sid"].as_str() {
                    recording.names.add(sid, "client");
                }
                recording.streams.entry(line.source).or_default().push(message);
            }
            What::Binary(frame) => recording.streams.entry(line.source).or_default().push(frame),
            What::Http(http) => {
                if let Some(id) = http["response"]["prompt_id"].as_str() {
                    recording.names.add(id, "prompt");
                }
                // Only good answers were kept as mere shapes.
                let status = http["status"].as_u64().unwrap_or(200);
                let answer = described(&http, status, response(&http));
                recording.answers.push(answer);
            }
            What::Closed | What::Sent(_) | What::Note(_) => {}
        }
    }
    recording
}

/// Replays `trace` on `server` and says what it said.
pub(crate) async fn replay(trace: &Trace, server: &Server) -> Recording {
    prepare(trace, server).await;
    let mut replay = Replay {
        trace: trace.name,
        order_is_open: recorded(trace).has_several_outputs(),
        server,
        sockets: HashMap::new(),
        finished: HashMap::new(),
        ids: HashMap::new(),
        recording: Recording::default(),
    };
    if trace.name == "x_upload" {
        let unique = format!("{UPLOAD_STEM}_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        replay.ids.insert(UPLOAD_STEM.into(), unique.clone());
        replay.recording.names.alias(&unique, UPLOAD_STEM);
    }
    for line in plan(trace) {
        replay.line(line).await;
    }
    server.wait_until_idle().await;
    for (source, mut socket) in std::mem::take(&mut replay.sockets) {
        socket.drain().await;
        replay.finished.entry(source).or_default().append(&mut socket.heard);
    }
    replay.recording.streams = replay.finished.into_iter().collect();
    replay.recording
}

struct Replay<'a> {
    trace: &'static str,
    /// Which of several outputs comes first depends on the order of a Python set, new with each start of ComfyUI.
    order_is_open: bool,
    server: &'a Server,
    sockets: HashMap<String, Socket>,
    finished: HashMap<String, Vec<Value>>,
    /// Recorded id to ours.
    ids: HashMap<String, String>,
    recording: Recording,
}

impl Replay<'_> {
    async fn line(&mut self, line: Line) {
        match line.what {
            What::Connected { client_id } => {
                let ours = client_id.map(|recorded| self.client(&recorded));
                let socket = self.server.connect(ours.as_deref()).await;
                self.sockets.insert(line.source, socket);
            }
            What::Sent(message) => self.socket(&line.source).send(&message).await,
            // States repeat what other messages say, and long recordings lack some.
            What::Message(message) if message["type"] == "progress_state" => {}
            What::Message(message) if self.order_is_open && message["data"]["node"].is_string() => {}
            // Whether the worker takes the first prompt before or after the second arrives is a matter of luck.
            What::Message(message) if self.trace == "x_cancel_pending" && message["type"] == "status" => {}
            What::Message(expected) | What::Binary(expected) => {
                let token = token(&expected);
                self.socket(&line.source).wait_for(&token, |message| crate::replay::token(message) == token).await;
                self.learn_sid(&line.source);
            }
            What::Http(http) => self.http(&http).await,
            What::Closed => {
                if self.server.get("/prompt").await.body["exec_info"]["queue_remaining"] == 0 {
                    self.socket(&line.source).drain().await;
                }
                self.socket(&line.source).close().await;
                if let Some(mut socket) = self.sockets.remove(&line.source) {
                    self.finished.entry(line.source).or_default().append(&mut socket.heard);
                }
            }
            What::Note(_) => {}
        }
    }

    fn socket(&mut self, source: &str) -> &mut Socket {
        self.sockets.get_mut(source).unwrap_or_else(|| panic!("no socket {source}"))
    }

    fn client(&mut self, recorded: &str) -> String {
        let fresh = || uuid::Uuid::new_v4().simple().to_string();
        let ours = self.ids.entry(recorded.to_owned()).or_insert_with(fresh).clone();
        self.recording.names.add(&ours, "client");
        ours
    }

    /// A server gives a nameless client an id.
    fn learn_sid(&mut self, source: &str) {
        let sid =
            self.socket(source).heard.iter().find_map(|message| message["data"]["sid"].as_str().map(str::to_owned));
        if let Some(sid) = sid {
            self.recording.names.add(&sid, "client");
        }
    }

    async fn http(&mut self, http: &Value) {
        let path = self.ours(http["path"].as_str().unwrap_or_default());
        let answer = match http["method"].as_str() {
            Some("GET") => self.server.get(&path).await,
            Some("POST") if path == "/upload/image" => self.upload(http).await,
            Some("POST") if http["request"].is_null() => self.server.post_raw(&path, String::new()).await,
            Some("POST") => {
                let body = self.ours_json(&http["request"]);
                self.server.post(&path, &body).await
            }
            other => panic!("method {other:?}"),
        };
        if let (Some(recorded), Some(ours)) =
            (http["response"]["prompt_id"].as_str(), answer.body["prompt_id"].as_str())
        {
            self.ids.insert(recorded.to_owned(), ours.to_owned());
            self.recording.names.add(ours, "prompt");
        }
        self.recording.answers.push(described(http, answer.status.into(), answer.body));
    }

    async fn upload(&self, http: &Value) -> crate::server::Answer {
        let note = http["note"].as_str().unwrap_or_default();
        let content = picture(if note.contains("other") || note == "overwrite" { 9 } else { 7 });
        let filename = self.ours(&http["filename"].as_str().unwrap_or_default().replace('/', "%2F"));
        let fields = http["fields"].as_object().into_iter().flatten();
        let fields: Vec<(&str, &str)> = fields.map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
        self.server.upload(&filename, content, &fields).await
    }

    fn ours(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (recorded, ours) in &self.ids {
            if recorded.len() >= UPLOAD_STEM.len() {
                text = text.replace(recorded.as_str(), ours);
            }
        }
        text
    }

    fn ours_json(&mut self, value: &Value) -> Value {
        if let Some(client) = value["client_id"].as_str() {
            self.client(client);
        }
        let mut ours: Value = serde_json::from_str(&self.ours(&value.to_string())).unwrap();
        if ours["prompt"] == CHAIN {
            ours["prompt"] = chain();
        }
        ours
    }
}

/// The lines that are replayed, with each request before the messages it caused.
fn plan(trace: &Trace) -> Vec<Line> {
    let mut lines: Vec<Line> = vec![];
    for (index, line) in trace.lines.iter().enumerate() {
        let What::Http(http) = &line.what else {
            lines.push(line.clone());
            continue;
        };
        if !is_replayed(trace, index, http) {
            continue;
        }
        // The recorder wrote a request down when its answer was complete, often after the first messages.
        let id = http["response"]["prompt_id"].as_str();
        // An id that was used before says nothing.
        let is_new =
            |line: &Line| !matches!(&line.what, What::Http(http) if http["response"]["prompt_id"].as_str() == id);
        let id = id.filter(|_| lines.iter().all(is_new));
        let is_effect = |line: &Line| match &line.what {
            What::Message(message) => {
                let data = &message["data"];
                (message["type"] == "status" && data["sid"].is_null())
                    || (id.is_some() && data["prompt_id"].as_str() == id)
            }
            _ => false,
        };
        let moves = http["method"] == "POST";
        let effects = lines.iter().rev().take_while(|line| moves && is_effect(line)).count();
        lines.insert(lines.len() - effects, line.clone());
    }
    lines
}

/// Left out: looks at the state in the middle of a run, which depend on the moment.
fn is_replayed(trace: &Trace, index: usize, http: &Value) -> bool {
    let path = http["path"].as_str().unwrap_or_default();
    if http["method"] == "POST" {
        return true;
    }
    // These run for seconds, so the moment does not matter.
    let is_slow = ["b_slow", "l_block"].contains(&trace.name);
    match path {
        "/queue" if http.get("response_shape").is_some() => is_slow,
        "/queue" => true,
        path if path.starts_with("/history/") => {
            let id = path.trim_start_matches("/history/");
            let ends_later = trace.lines[index..].iter().any(|line| {
                matches!(&line.what, What::Message(message)
                    if message["type"] == "executing" && message["data"]["node"].is_null() && message["data"]["prompt_id"] == id)
            });
            !ends_later
        }
        _ => false,
    }
}

fn described(http: &Value, status: u64, body: Value) -> Value {
    // The recorder kept the text of uploads, and nothing for empty bodies.
    let body = match body {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        other => other,
    };
    // Ids in paths are taken back to nothing: the body tells which one it was.
    let path = http["path"].as_str().unwrap_or_default();
    let path = if path.starts_with("/history/") { "/history/ID" } else { path };
    json!({"request": [http["method"], path], "status": status, "body": body})
}

fn response(http: &Value) -> Value {
    http.get("response").or(http.get("response_shape")).cloned().unwrap_or_default()
}

/// What makes a message the one the replay waits for.
fn token(message: &Value) -> String {
    let data = &message["data"];
    format!("{} {} {} {}", message["type"], data["node"], data["value"], data["status"]["exec_info"]["queue_remaining"])
}

/// Puts files in place and fills the cache as it was when the recording began.
async fn prepare(trace: &Trace, server: &Server) {
    server.reset().await;
    for name in ["rig_in.png", "rig_in.jpg"] {
        let answer = server.upload(name, picture(3), &[("overwrite", "true")]).await;
        assert_eq!(answer.status, 200);
    }
    let cached = trace.messages().find(|message| message["type"] == "execution_cached");
    let cached: Vec<&str> = cached
        .and_then(|message| message["data"]["nodes"].as_array())
        .map(|nodes| nodes.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let prompt = trace.http().find(|http| http["path"] == "/prompt" && http["status"] == 200);
    let Some(prompt) = prompt.filter(|_| !cached.is_empty()) else { return };
    let mut warm = json!({});
    for id in cached {
        warm[id] = prompt["request"]["prompt"][id].clone();
        warm[format!("warm {id}")] = json!({"class_type": "PreviewImage", "inputs": {"images": [id, 0]}});
    }
    let answer = server.post("/prompt", &json!({"prompt": warm})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    server.wait_until_idle().await;
}

/// What the recorder wrote instead of the graph of `i_chain100`.
pub(crate) const CHAIN: &str = "<100 nodes>";

fn chain() -> Value {
    let mut nodes = serde_json::Map::new();
    for id in 0..100 {
        let source = json!([(id - 1).to_string(), 0]);
        let (class, inputs) = match id {
            0 => ("EmptyImage", json!({"width": 32, "height": 32, "batch_size": 1, "color": 255})),
            99 => ("SaveImage", json!({"images": source, "filename_prefix": "rig_chain"})),
            _ => ("ImageInvert", json!({"image": source})),
        };
        nodes.insert(id.to_string(), json!({"class_type": class, "inputs": inputs, "_meta": {"title": class}}));
    }
    nodes.into()
}

/// A small PNG; different for different shades.
pub(crate) fn picture(shade: u8) -> Vec<u8> {
    let image = image::RgbImage::from_fn(16, 12, |x, y| image::Rgb([shade, x as u8, y as u8]));
    let mut bytes = Cursor::new(vec![]);
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
