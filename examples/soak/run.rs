//! Workflows at work: asked for, looked at all the time, now and then cancelled or run again.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{case::Case, chaos::Chaos, client::Client, look::Seen, report::Violations};

/// A workflow that is not over this long after the last fault never will be.
pub(crate) const TO_THE_END: Duration = Duration::from_secs(300);

/// Longest time that a finished workflow is sure to stay on record.
const ON_RECORD: Duration = Duration::from_secs(600);

/// What all workflows share.
pub(crate) struct Stage {
    pub(crate) client: Client,
    pub(crate) chaos: Chaos,
    pub(crate) violations: Violations,
    /// Where graphs and pictures are written.
    pub(crate) cases: PathBuf,
    /// How the service gets to the box.
    pub(crate) ssh_connection: String,
    pub(crate) runs: Mutex<Vec<Run>>,
}

/// One workflow of the service.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) case: Arc<Case>,
    pub(crate) asked: Instant,
    /// When it was seen to be over.
    pub(crate) over: Option<Instant>,
    pub(crate) seen: Seen,
    pub(crate) cancel: Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    NotAsked,
    /// It was accepted, so there is one end only.
    Accepted,
    /// It came too late.
    Late,
}

impl Run {
    pub(crate) fn progress(&self) -> &Value {
        self.seen.last.as_ref().unwrap_or(&Value::Null)
    }

    pub(crate) fn status(&self) -> &str {
        self.progress()["status"].as_str().unwrap_or("unknown")
    }

    pub(crate) fn attempts(&self) -> usize {
        self.progress()["attempt"].as_u64().and_then(|attempt| usize::try_from(attempt).ok()).unwrap_or(1)
    }

    pub(crate) fn prompts(&self) -> &BTreeSet<String> {
        &self.seen.prompts
    }
}

impl Stage {
    pub(crate) fn runs(&self) -> MutexGuard<'_, Vec<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a case to its end, and once in a while the same once more.
    pub(crate) async fn perform(&self, case: Case, mut rng: fastrand::Rng) {
        let case = Arc::new(case);
        let asked = Instant::now();
        let Some(id) = self.execute(&case).await else { return };
        let status = self.follow(id.clone(), &case, asked, &mut rng).await;
        if status.as_deref() == Some("completed") && rng.u32(0..10) == 0 {
            let asked = Instant::now();
            if let Some(again) = self.retry(&id, &case).await {
                self.follow(again, &case, asked, &mut rng).await;
            }
        }
    }

    async fn execute(&self, case: &Case) -> Option<String> {
        let (file, pictures) = match case.write(&self.cases) {
            Ok(written) => written,
            Err(error) => {
                self.violations.add(format!("could not write {}: {error}", case.tag));
                return None;
            }
        };
        let sandbox = &self.chaos.sandbox;
        let body = json!({
            "ssh_connection": self.ssh_connection,
            "workflow_file": file,
            "input_images": pictures,
            "comfyui_port": sandbox.comfyui_port(),
            "comfyui_input_dir": sandbox.input_dir(),
            "comfyui_output_dir": sandbox.output_dir(),
        });
        self.start("/comfyui/workflow/execute", &case.tag, Some(&body)).await
    }

    async fn retry(&self, id: &str, case: &Case) -> Option<String> {
        let path = format!("/comfyui/workflow/{id}/retry");
        self.start(&path, &format!("{}-again", case.tag), None).await
    }

    /// Asks for a workflow until it is known under which id it was accepted. The key makes repeats harmless.
    async fn start(&self, path: &str, key: &str, body: Option<&Value>) -> Option<String> {
        let shape = |request: reqwest::RequestBuilder| {
            let request = request.header("Idempotency-Key", key);
            match body {
                Some(body) => request.json(body),
                None => request,
            }
        };
        let answer = self.client.ask(&self.violations, Method::POST, path, shape).await?;
        let no_tunnel = answer.status == StatusCode::INTERNAL_SERVER_ERROR
            && answer.body["message"].as_str().is_some_and(|text| text.starts_with("Failed to create SSH tunnel: "));
        match answer.body["workflow_id"].as_str() {
            Some(id) if answer.status == StatusCode::OK || no_tunnel => Some(id.to_owned()),
            _ => {
                self.violations.add(format!("{key} was not accepted: {} {}", answer.status, answer.body));
                None
            }
        }
    }

    /// Looks until it is over, cancels it perhaps, and enters it in the book. The status at the end.
    async fn follow(&self, id: String, case: &Arc<Case>, asked: Instant, rng: &mut fastrand::Rng) -> Option<String> {
        let run = Run {
            id: id.clone(),
            case: case.clone(),
            asked,
            over: None,
            seen: Seen::default(),
            cancel: Cancel::NotAsked,
        };
        let index = {
            let mut runs = self.runs();
            runs.push(run);
            runs.len() - 1
        };
        let mut cancel_at = (rng.u32(0..12) == 0).then(|| Instant::now() + Duration::from_millis(rng.u64(0..3_000)));
        let every = Duration::from_millis(rng.u64(40..200));
        while !self.look(index, &id).await {
            if cancel_at.take_if(|at| *at <= Instant::now()).is_some() {
                self.cancel(index, &id).await;
            }
            sleep(every).await;
        }
        self.check_other_views(index, &id).await;
        self.runs().get(index).map(|run| run.status().to_owned())
    }

    /// One look; says whether it is over.
    async fn look(&self, index: usize, id: &str) -> bool {
        let Some(answer) = self.client.get(&self.violations, &format!("/comfyui/workflow/{id}/progress")).await else {
            return true;
        };
        let mut runs = self.runs();
        let Some(run) = runs.get_mut(index) else { return true };
        let dropped = run.over.is_some_and(|over| over.elapsed() >= ON_RECORD);
        if answer.status == StatusCode::NOT_FOUND && dropped {
            return true;
        }
        let over = run.seen.take_in(id, &answer, &self.violations);
        if over {
            run.over.get_or_insert_with(Instant::now);
        }
        over || answer.status == StatusCode::NOT_FOUND
    }

    async fn cancel(&self, index: usize, id: &str) {
        let path = format!("/comfyui/workflow/{id}/cancel");
        let Some(answer) = self.client.ask(&self.violations, Method::POST, &path, |request| request).await else {
            return;
        };
        let cancel = match answer.status {
            StatusCode::OK => Cancel::Accepted,
            StatusCode::NOT_FOUND => Cancel::Late,
            other => return self.violations.add(format!("{id}: the cancel was answered {other} {}", answer.body)),
        };
        if let Some(run) = self.runs().get_mut(index) {
            run.cancel = cancel;
        }
    }

    /// The other routes must say the same of a finished workflow.
    async fn check_other_views(&self, index: usize, id: &str) {
        for (path, key) in [("outputs", "outputs"), ("active", "active")] {
            let path = format!("/comfyui/workflow/{id}/{path}");
            let Some(answer) = self.client.get(&self.violations, &path).await else { return };
            let expected = match key {
                "active" => Value::Bool(false),
                _ => self.runs().get(index).map(|run| run.progress()[key].clone()).unwrap_or_default(),
            };
            if answer.status != StatusCode::OK || answer.body[key] != expected {
                self.violations.add(format!("{path} is {} {}, not {expected}", answer.status, answer.body));
            }
        }
    }

    /// Looks at workflows that are over, one after the other for ever: nothing of them may change.
    pub(crate) async fn look_back(&self, mut rng: fastrand::Rng) {
        loop {
            sleep(Duration::from_millis(100)).await;
            let known = {
                let runs = self.runs();
                let index = rng.usize(0..runs.len().max(1));
                runs.get(index).filter(|run| run.over.is_some()).map(|run| (index, run.id.clone()))
            };
            if let Some((index, id)) = known {
                self.look(index, &id).await;
            }
        }
    }
}
