//! What ComfyUI's history says about a finished run: how it ended and what it left. Pure.
//!
//! History has the last word on a run. Its `status` calls an interrupted run an error, its messages tell the two
//! apart; in a fork (0.10.0 line) messages are bare strings and the details of an error are lost.

use std::{collections::HashMap, time::Duration};

use serde::de::{IgnoredAny, MapAccess};
use serde_json::Value;

use super::{
    client::text_of,
    node_failure::NodeFailure,
    outputs::{Budget, Reported},
    queue::{MAX_ID_BYTES, Marker, RawEntry, id_of},
    tolerant::{self, Parts, Tolerant},
};
use crate::{
    json::Bounded,
    workflow::{NodeId, NodeOutput, PromptId, WorkflowId},
};

/// Most entries that are kept of one answer; we ask for twenty at most.
const MAX_ENTRIES: usize = 1000;

/// One finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryEntry {
    /// The id by which the server knows it.
    pub prompt_id: PromptId,
    /// Which workflow it belongs to, if it is one of ours.
    pub marker: Option<Marker>,
    /// The output nodes that it ran for, where the server says so; the invalid ones were left out.
    pub targets: Option<Vec<NodeId>>,
    /// How it ended.
    pub outcome: Outcome,
    /// What its nodes reported, under ids of the graph. A failed run has what ended before.
    pub outputs: Vec<(NodeId, NodeOutput)>,
    /// Nodes whose results came from an earlier run.
    pub cached: Vec<NodeId>,
    /// Nodes that ran to their end before the run failed or was stopped, where the server says so.
    pub finished: Vec<NodeId>,
    /// From start to end by the server's clock, where it says so.
    pub run_time: Option<Duration>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every node ran. There may be no outputs all the same.
    Succeeded,
    /// A node failed.
    Failed(NodeFailure),
    /// Somebody stopped it.
    Interrupted,
}

impl HistoryEntry {
    /// Whether this is the prompt with that id, by its id or by its marker.
    pub fn belongs_to(&self, prompt: &PromptId, workflow: &WorkflowId) -> bool {
        let marked = |marker: &Marker| marker.workflow_id == *workflow && marker.prompt_id == *prompt;
        self.prompt_id == *prompt || self.marker.as_ref().is_some_and(marked)
    }
}

/// Reads the answer to `GET /history` or `GET /history/{id}`, in its order.
///
/// # Errors
/// Says what is wrong when it is no history at all.
pub(super) fn parse(text: &[u8]) -> Result<Vec<HistoryEntry>, String> {
    let Tolerant(document) = tolerant::parse::<Tolerant<Document>>(text)?;
    if document.entries.is_empty() && text.trim_ascii().first() != Some(&b'{') {
        return Err("not an object".into());
    }
    Ok(document.entries)
}

#[derive(Debug, Default)]
struct Document {
    entries: Vec<HistoryEntry>,
}

impl Parts for Document {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let Tolerant(raw) = map.next_value::<Tolerant<RawHistory>>()?;
        if raw.is_object && self.entries.len() < MAX_ENTRIES {
            self.entries.push(raw.read(key));
        }
        Ok(())
    }
}

/// An entry of which everything may be missing.
#[derive(Debug, Default)]
struct RawHistory {
    is_object: bool,
    submission: RawEntry,
    outputs: Value,
    status: Value,
    meta: Value,
}

impl Parts for RawHistory {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        self.is_object = true;
        match key {
            "prompt" => self.submission = map.next_value::<Tolerant<RawEntry>>()?.0,
            "outputs" => self.outputs = map.next_value::<Bounded>()?.0,
            "status" => self.status = map.next_value::<Bounded>()?.0,
            "meta" => self.meta = map.next_value::<Bounded>()?.0,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

impl RawHistory {
    fn read(self, key: &str) -> HistoryEntry {
        let messages = Messages::read(&self.status);
        let (marker, targets) = self.submission.checked().map_or((None, None), |entry| (entry.marker, entry.targets));
        HistoryEntry {
            prompt_id: key.into(),
            marker,
            targets,
            outputs: outputs(&self.outputs, &self.meta),
            cached: messages.cached.clone(),
            finished: messages.finished.clone(),
            run_time: messages.run_time(),
            outcome: messages.outcome(&self.status),
        }
    }
}

/// What `status.messages` says, in pairs or in bare strings.
#[derive(Debug, Default)]
struct Messages {
    failure: Option<NodeFailure>,
    interrupted: bool,
    cached: Vec<NodeId>,
    finished: Vec<NodeId>,
    started_ms: Option<i64>,
    ended_ms: Option<i64>,
}

impl Messages {
    fn read(status: &Value) -> Self {
        let mut read = Self::default();
        for message in status.get("messages").and_then(Value::as_array).into_iter().flatten() {
            match message {
                Value::String(sentence) => {
                    let (kind, rest) = sentence.split_once(':').unwrap_or((sentence, ""));
                    read.take_sentence(kind.trim(), rest);
                }
                pair => {
                    let kind = pair.get(0).and_then(Value::as_str).unwrap_or_default();
                    read.take_pair(kind, pair.get(1).unwrap_or(&Value::Null));
                }
            }
        }
        read
    }

    fn take_pair(&mut self, kind: &str, data: &Value) {
        let at = data.get("timestamp").and_then(Value::as_f64).map(|ms| ms as i64);
        match kind {
            "execution_start" => self.started_ms = at,
            "execution_cached" => self.cached = nodes(data, "nodes"),
            "execution_success" => self.ended_ms = at,
            "execution_interrupted" => {
                (self.interrupted, self.ended_ms, self.finished) = (true, at, nodes(data, "executed"));
            }
            "execution_error" => {
                (self.failure, self.ended_ms, self.finished) = (NodeFailure::read(data), at, nodes(data, "executed"));
            }
            _ => {}
        }
    }

    fn take_sentence(&mut self, kind: &str, rest: &str) {
        match kind {
            "execution_interrupted" => self.interrupted = true,
            "execution_error" => self.failure = Some(NodeFailure::from_sentence(rest)),
            _ => {}
        }
    }

    /// An error among the messages wins over a status of success, which ComfyUI writes for some cyclic graphs.
    fn outcome(self, status: &Value) -> Outcome {
        if self.interrupted {
            return Outcome::Interrupted;
        }
        match self.failure {
            Some(failure) => Outcome::Failed(failure),
            None if text_of(status, "status_str").as_deref() == Some("error") => {
                Outcome::Failed(NodeFailure::from_sentence(""))
            }
            None => Outcome::Succeeded,
        }
    }

    fn run_time(&self) -> Option<Duration> {
        let ms = self.ended_ms?.checked_sub(self.started_ms?)?;
        u64::try_from(ms).ok().map(Duration::from_millis)
    }
}

fn nodes(data: &Value, key: &str) -> Vec<NodeId> {
    let ids = data.get(key).and_then(Value::as_array).into_iter().flatten();
    ids.filter_map(id_of).map(NodeId::from).collect()
}

/// Outputs of expanded children count for the node of the graph that they came from.
fn outputs(outputs: &Value, meta: &Value) -> Vec<(NodeId, NodeOutput)> {
    let (mut order, mut by_node) = (Vec::new(), HashMap::<NodeId, Reported>::new());
    let mut budget = Budget::default();
    let reports = outputs.as_object().into_iter().flatten();
    for (id, output) in reports.filter(|(id, _)| id.len() <= MAX_ID_BYTES) {
        let node = NodeId::from(real_id(id, meta));
        let reported = by_node.entry(node.clone()).or_insert_with(|| {
            order.push(node);
            Reported::default()
        });
        reported.add(output, &mut budget);
    }
    let finished = order.into_iter().filter_map(|node| {
        let output = by_node.remove(&node)?.finish();
        (output != NodeOutput::default()).then_some((node, output))
    });
    finished.collect()
}

fn real_id(id: &str, meta: &Value) -> String {
    let named =
        |meta: &Value| ["real_node_id", "display_node"].into_iter().find_map(|key| meta.get(key).and_then(id_of));
    meta.get(id).and_then(named).unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::comfy::traces;
    use serde_json::json;

    fn one(entry: Value) -> HistoryEntry {
        parse(json!({ "p": entry }).to_string().as_bytes()).unwrap().remove(0)
    }

    fn outcome(status: Value) -> Outcome {
        one(json!({"outputs": {}, "status": status})).outcome
    }

    #[test]
    fn outcomes_follow_the_messages() {
        assert_eq!(outcome(json!(null)), Outcome::Succeeded);
        assert_eq!(outcome(json!({"status_str": "success", "messages": null})), Outcome::Succeeded);
        let interrupted = json!({"status_str": "error", "messages": [["execution_interrupted", {}]]});
        assert_eq!(outcome(interrupted), Outcome::Interrupted);
        assert_eq!(
            outcome(json!({"status_str": "error", "messages": ["execution_interrupted"]})),
            Outcome::Interrupted
        );
        let error = json!(["execution_error", {"node_id": "5", "exception_type": "graph.DependencyCycleError"}]);
        let Outcome::Failed(failure) = outcome(json!({"status_str": "success", "messages": [[], 3, error]})) else {
            panic!("an error wins over success");
        };
        assert_eq!(failure.node_id, Some("5".into()));
        assert_eq!(outcome(json!({"status_str": "error"})), Outcome::Failed(NodeFailure::from_sentence("")));
        assert_eq!(one(json!({"status": {}})), one(json!({"prompt": "x", "outputs": null, "meta": []})));
    }

    #[test]
    fn children_count_for_their_node() {
        let file = |name: &str, kind: &str| json!({"images": [{"filename": name, "subfolder": "", "type": kind}]});
        let entry = one(json!({
            "outputs": {"12.0.0.3": file("a.png", "output"), "7": file("b.png", "output"), "12": file("t.png", "temp"),
                        "13": {"text": []}, "14": null},
            "meta": {"12.0.0.3": {"real_node_id": "12"}, "7": {"display_node": "7"}, "12": null},
        }));
        let names: Vec<_> = entry
            .outputs
            .iter()
            .map(|(node, output)| {
                (node.as_str(), output.files.iter().map(|file| file.filename.as_str()).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(names, [("12", vec!["a.png"]), ("7", vec!["b.png"])]);
    }

    #[test]
    fn the_marker_is_found_and_what_is_no_history_is_refused() {
        let extra = json!({"comfy_remote": {"workflow_id": "w", "prompt_id": "ours"}});
        let entry = one(json!({"prompt": [1, "p", {}, extra, []]}));
        assert!(entry.belongs_to(&"ours".into(), &"w".into()) && entry.belongs_to(&"p".into(), &"x".into()));
        assert!(!entry.belongs_to(&"ours".into(), &"x".into()));
        assert_eq!(parse(b"{}"), Ok(vec![]));
        assert_eq!(parse(br#"{"p": null}"#), Ok(vec![]));
        for text in ["[]", "null", "3", "<html>", ""] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn recorded_histories_are_read() {
        let (mut seen, mut failed, mut interrupted) = (0, 0, 0);
        for trace in traces::all() {
            for answer in trace.http("GET", "/history") {
                let Some(body) = answer.get("response").filter(|body| body.is_object()) else { continue };
                for entry in parse(body.to_string().as_bytes()).unwrap() {
                    seen += 1;
                    let raw = &body[entry.prompt_id.as_str()];
                    let is_error = raw["status"]["status_str"] == "error";
                    assert_eq!(entry.outcome != Outcome::Succeeded, is_error, "{}", trace.name);
                    let files = raw["outputs"].to_string().matches("\"filename\"").count();
                    let kept: usize = entry.outputs.iter().map(|(_, output)| output.files.len()).sum();
                    assert_eq!(kept, files, "{}", trace.name);
                    assert_eq!(entry.run_time.is_some(), !trace.name.contains("fork"), "{}", trace.name);
                    match entry.outcome {
                        Outcome::Failed(failure) => {
                            failed += 1;
                            assert_eq!(failure.is_out_of_memory(), trace.name.contains("oom"), "{}", trace.name);
                        }
                        Outcome::Interrupted => interrupted += 1,
                        Outcome::Succeeded => {}
                    }
                }
            }
        }
        assert!(seen >= 60 && failed >= 10 && interrupted >= 6, "{seen} {failed} {interrupted}");
    }

    #[test]
    fn failures_are_told_as_far_as_the_server_tells_them() {
        let failure = |server: &str| {
            let trace = traces::one(server, "c_fail_mid");
            let body = trace.http("GET", "/history").last().unwrap()["response"].to_string();
            let entry = parse(body.as_bytes()).unwrap().remove(0);
            match entry.outcome {
                Outcome::Failed(failure) => (failure, entry.finished),
                other => panic!("{other:?}"),
            }
        };
        for server in ["comfyui-0.3.64", "comfyui-0.3.75-pypi"] {
            let (failure, finished) = failure(server);
            assert!(finished.contains(&"2".into()) && !finished.contains(&"3".into()), "{finished:?}");
            assert_eq!(failure.message(), "node 3 (RigFail) raised RuntimeError: rig: forced failure");
            assert!(failure.traceback_tail.last().is_some_and(|line| line.contains("rig_nodes")), "{failure:?}");
        }
        let expected = "a node (this ComfyUI does not say which) raised an error: rig: forced failure";
        assert_eq!(failure("comfyui-0.10.0-fork").0.message(), expected);
    }
}
