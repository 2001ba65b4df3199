//! Recordings of real servers, as lines.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// One recording, named as its file.
pub(crate) struct Trace {
    pub(crate) name: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// Something that happened on one socket or over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Which socket, or `http`.
    pub(crate) source: String,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Connected {
        client_id: Option<String>,
    },
    Closed,
    Sent(Value),
    Message(Value),
    /// A binary frame, described.
    Binary(Value),
    Http(Value),
    Note(String),
}

impl Trace {
    pub(crate) fn load(server: &'static str, name: &'static str) -> Self {
        let path = fixtures().join(server).join(format!("{name}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| Line::parse(&serde_json::from_str(line).unwrap())).collect();
        Self { name, lines }
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Value> {
        self.lines.iter().filter_map(|line| match &line.what {
            What::Message(message) => Some(message),
            _ => None,
        })
    }

    pub(crate) fn http(&self) -> impl Iterator<Item = &Value> {
        self.lines.iter().filter_map(|line| match &line.what {
            What::Http(http) => Some(http),
            _ => None,
        })
    }

    /// Whether `progress_state` lines were left out to keep the file small.
    pub(crate) fn is_thinned(&self) -> bool {
        let count = |wanted: &dyn Fn(&Value) -> bool| self.messages().filter(|message| wanted(message)).count();
        let states = count(&|message| message["type"] == "progress_state");
        // A node can fail after it was announced, so each has at least one.
        states < count(&|message| message["type"] == "executing" && message["data"]["display_node"].is_string())
    }
}

impl Line {
    fn parse(line: &Value) -> Self {
        let what = if let Some(message) = line.get("msg") {
            What::Message(message.clone())
        } else if let Some(frame) = line.get("binary") {
            What::Binary(describe_recorded_frame(frame))
        } else if let Some(sent) = line.get("sent") {
            What::Sent(sent.clone())
        } else if let Some(note) = line.get("note").filter(|_| line.get("status").is_none()) {
            What::Note(note.as_str().unwrap_or_default().to_owned())
        } else if line["event"] == "connected" {
            What::Connected { client_id: line["client_id"].as_str().map(str::to_owned) }
        } else if line["event"] == "closed" {
            What::Closed
        } else {
            What::Http(line.clone())
        };
        Self { source: line["src"].as_str().unwrap_or_default().to_owned(), what }
    }
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces")
}

fn describe_recorded_frame(frame: &Value) -> Value {
    let head = hex::decode(frame["head_hex"].as_str().unwrap()).unwrap();
    match frame.get("metadata") {
        Some(metadata) => {
            let image = hex::decode(frame["image_head_hex"].as_str().unwrap()).unwrap();
            describe(4, Some(metadata.clone()), None, &image)
        }
        None => describe(1, None, Some(u32::from_be_bytes(head[4..8].try_into().unwrap())), &head[8..]),
    }
}

/// What is compared of a preview frame: everything but the pixels.
pub(crate) fn describe(event: u32, metadata: Option<Value>, format: Option<u32>, image: &[u8]) -> Value {
    let kind = match image {
        [0xff, 0xd8, 0xff, ..] => "jpeg",
        [0x89, b'P', b'N', b'G', ..] => "png",
        _ => "unknown",
    };
    serde_json::json!({"type": "binary", "event": event, "metadata": metadata, "format": format, "image": kind})
}
