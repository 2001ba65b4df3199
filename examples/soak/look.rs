//! What must hold at every look at a workflow, and from one look to the next.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{client::Answer, report::Violations};

/// What has been seen of one workflow so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) last: Option<Value>,
    /// The names of all its attempts.
    pub(crate) prompts: BTreeSet<String>,
    kills: u64,
}

impl Seen {
    /// Takes in an answer about the progress of `id`, and reports what must not be. Says whether it is final.
    pub(crate) fn take_in(&mut self, id: &str, answer: &Answer, violations: &Violations) -> bool {
        let progress = &answer.body["progress"];
        if answer.status != 200 || answer.body["success"] != true || progress["workflow_id"] != id {
            violations.add(format!("{id}: the progress is {} {}", answer.status, answer.body));
            return false;
        }
        let faults = faults_of(progress);
        let reset = answer.asked_in.kills != self.kills;
        self.kills = answer.asked_in.kills;
        let worse = self.last.as_ref().and_then(|before| step_back(before, progress, reset));
        for what in faults.into_iter().chain(worse) {
            violations.add(format!(
                "{id}: {what}\n  now:    {progress}\n  before: {:?}",
                self.last.as_ref().map(Value::to_string)
            ));
        }
        self.prompts.extend(progress["prompt_id"].as_str().map(str::to_owned));
        self.last = Some(progress.clone());
        is_final(progress)
    }
}

pub(crate) fn is_final(progress: &Value) -> bool {
    matches!(progress["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// What is wrong with one progress by itself.
fn faults_of(progress: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let status = progress["status"].as_str().unwrap_or_default();
    let phases: &[Option<&str>] = match status {
        "queued" => &[Some("waiting"), Some("connecting"), Some("uploading"), Some("queued")],
        "executing" => &[Some("running"), Some("downloading")],
        "completed" | "failed" | "cancelled" => &[None],
        _ => &[],
    };
    if !phases.contains(&progress["phase"].as_str()) {
        wrong.push(format!("status {} does not go with phase {}", progress["status"], progress["phase"]));
    }
    let percent = progress["progress_percent"].as_f64().unwrap_or(-1.0);
    if !(0.0..=100.0).contains(&percent) || (percent == 100.0) != (status == "completed") {
        wrong.push(format!("progress_percent is {percent} while {status}"));
    }
    let (Some(nodes), Some(outputs)) = (progress["nodes"].as_array(), progress["outputs"].as_array()) else {
        wrong.push("nodes or outputs is no list".to_owned());
        return wrong;
    };
    let done = nodes.iter().filter(|node| node["status"] == "executed").count();
    if progress["total_nodes"] != nodes.len() || progress["completed_nodes"] != done {
        wrong.push(format!(
            "{} of {} nodes, but the list has {done} of {}",
            progress["completed_nodes"],
            progress["total_nodes"],
            nodes.len()
        ));
    }
    for output in outputs {
        let path = output["local_path"].as_str();
        let size = path.and_then(|path| fs::metadata(path).ok()).map(|meta| meta.len());
        if output["downloaded"] != path.is_some() || (path.is_some() && size != output["size"].as_u64()) {
            wrong.push(format!("an output's file is {size:?} bytes: {output}"));
        }
        if status == "completed" && path.is_none() {
            wrong.push(format!("completed without an output: {output}"));
        }
    }
    if status == "failed" && (progress["error_code"].is_null() || progress["error_message"].is_null()) {
        wrong.push("failed without saying why".to_owned());
    }
    wrong
}

/// What has gone back from one look to the next. After a kill, progress that was not written yet may be forgotten.
fn step_back(before: &Value, now: &Value, killed_between: bool) -> Option<String> {
    if is_final(before) {
        let changed =
            ["status", "end_time", "outputs", "error_code", "attempt"].into_iter().find(|key| before[key] != now[key]);
        return changed.map(|key| format!("{key} has changed after the end"));
    }
    let number = |progress: &Value, key: &str| progress[key].as_f64().unwrap_or_default();
    if number(now, "attempt") < number(before, "attempt") && !killed_between {
        return Some("attempt has fallen".to_owned());
    }
    let same_attempt = before["attempt"] == now["attempt"] && !killed_between;
    for key in ["progress_percent", "overall_percent", "completed_nodes"] {
        if same_attempt && number(now, key) < number(before, key) {
            return Some(format!("{key} has fallen within one attempt"));
        }
    }
    if same_attempt && before["status"] == "executing" && now["status"] == "queued" {
        return Some("status has gone back within one attempt".to_owned());
    }
    None
}
