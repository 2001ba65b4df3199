//! Recordings of real servers, for the tests of the parsers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path, sync::LazyLock};

use serde_json::Value;

/// One recording: what was sent and received, in order.
pub(super) struct Trace {
    /// `<server>/<situation>`.
    pub(super) name: String,
    pub(super) lines: Vec<Value>,
}

impl Trace {
    /// Answers to calls of a route. The query does not count.
    pub(super) fn http(&self, method: &str, path: &str) -> impl Iterator<Item = &Value> {
        self.lines.iter().filter(move |line| {
            let route = line["path"].as_str().unwrap_or_default().split('?').next().unwrap_or_default();
            line["src"] == "http"
                && line["method"] == method
                && (route == path || route.starts_with(&format!("{path}/")))
        })
    }

    /// Text frames that a socket received.
    pub(super) fn messages(&self, socket: &str) -> impl Iterator<Item = &Value> {
        self.lines.iter().filter(move |line| line["src"] == socket).filter_map(|line| line.get("msg"))
    }

    /// Names of the recorded sockets.
    pub(super) fn sockets(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .lines
            .iter()
            .filter(|line| line.get("msg").is_some())
            .filter_map(|line| line["src"].as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

static ALL: LazyLock<Vec<Trace>> = LazyLock::new(load);

/// Every recording there is.
pub(super) fn all() -> &'static [Trace] {
    &ALL
}

/// The recording of one situation on one server.
pub(super) fn one(server: &str, situation: &str) -> &'static Trace {
    all().iter().find(|trace| trace.name == format!("{server}/{situation}")).unwrap()
}

fn load() -> Vec<Trace> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/traces"));
    let mut traces = Vec::new();
    for server in fs::read_dir(root).expect("the recordings are there") {
        let server = server.unwrap();
        if !server.path().is_dir() {
            continue;
        }
        for file in fs::read_dir(server.path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let name =
                format!("{}/{}", server.file_name().to_string_lossy(), path.file_stem().unwrap().to_string_lossy());
            traces.push(Trace { name, lines: text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() });
        }
    }
    assert!(traces.len() > 50, "only {} recordings", traces.len());
    traces.sort_by(|a, b| a.name.cmp(&b.name));
    traces
}
