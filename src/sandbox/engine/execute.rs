//! Runs one prompt: which nodes, in which order, and what is said about it.
//!
//! Used by the worker in [`process`](super::process). Messages and their order follow `PromptExecutor` in ComfyUI's
//! `execution.py` and `comfy_execution/progress.py`. The history entry is written by the worker after this returns.

use std::sync::{Arc, Mutex};

use indexmap::{IndexMap, IndexSet};
use serde_json::{Number, Value, json};

use super::cache::{Cached, Ui};
use super::graph::{Plan, link};
use super::json::{INFINITY, NAN, Object};
use super::nodes::{Class, Data, Failure, Inputs, Product, find};
use super::preview;
use super::queue::{Item, Outcome};
use super::socket::Hub;
use super::{Folders, Shared, lock};
use crate::sandbox::hold::Point;

/// Runs `item` to its end, whatever that is.
pub(super) async fn execute(shared: &Shared, item: &Item) -> Outcome {
    let run = Run {
        shared,
        item,
        client: item.client(),
        progress: Mutex::default(),
        messages: Mutex::default(),
        ui: Mutex::default(),
        executed: Mutex::default(),
    };
    run.prompt().await
}

/// One prompt under way. Everything happens on the worker's task; they are never held across an await.
struct Run<'a> {
    shared: &'a Shared,
    item: &'a Item,
    client: Option<String>,
    progress: Mutex<IndexMap<String, Progress>>,
    messages: Mutex<Vec<Value>>,
    /// What the history will show, in the order it came.
    ui: Mutex<IndexMap<String, Ui>>,
    executed: Mutex<IndexSet<String>>,
}

struct Progress {
    value: Number,
    max: Number,
    state: &'static str,
}

/// An exception that ended the run.
struct Ended {
    node: String,
    failure: Failure,
    inputs: Value,
}

impl Run<'_> {
    async fn prompt(self) -> Outcome {
        self.shared.interrupted.send_replace(false);
        self.hub().begin_prompt(self.client.clone());
        self.note("execution_start", json!({"prompt_id": self.item.id}), false);

        self.open_cache().await;
        let cached: Vec<&String> = self.item.prompt.keys().filter(|id| self.cached(id).is_some()).collect();
        self.note("execution_cached", json!({"nodes": cached, "prompt_id": self.item.id}), false);

        let succeeded = match self.nodes().await {
            Ok(()) => {
                if !self.shared.faults.omits_success() {
                    self.note("execution_success", json!({"prompt_id": self.item.id}), false);
                }
                true
            }
            Err(ended) => {
                self.report(ended);
                false
            }
        };
        self.hub().set_last_node(None);
        self.outcome(succeeded)
    }

    async fn nodes(&self) -> Result<(), Ended> {
        let prompt = &self.item.prompt;
        let is_output = |id: &str| class_of(prompt, id).is_some_and(|class| class.is_output);
        let mut plan = Plan::new(prompt, &self.item.outputs, &is_output, &|id| self.cached(id).is_some());
        loop {
            match plan.pick() {
                Ok(Some(id)) => {
                    self.node(&id).await?;
                    plan.complete(&id);
                }
                Ok(None) => return Ok(()),
                Err(node) => {
                    let failure = Failure::exception("graph.DependencyCycleError", "Dependency cycle detected");
                    return Err(Ended { node, failure, inputs: json!([]) });
                }
            }
        }
    }

    async fn node(&self, id: &str) -> Result<(), Ended> {
        if let Some(cached) = self.cached(id) {
            self.announce_cached(id, &cached);
            return Ok(());
        }
        self.shared.faults.thawed().await;
        self.shared.faults.pass(&Point::BeforeNode(id.to_owned()), &self.shared.interrupted).await;
        self.set_progress(id, float(0.0), float(1.0), "running");
        let inputs = self.inputs(id);
        if self.client.is_some() {
            self.hub().set_last_node(Some(id));
            self.tell("executing", &json!({"node": id, "display_node": id, "prompt_id": self.item.id}));
        }

        let reported = reported(&inputs);
        let step = Step { run: self, id };
        let ended = |failure| Ended { node: id.to_owned(), failure, inputs: reported.clone() };
        step.check().map_err(ended)?;
        let class = class_of(&self.item.prompt, id).ok_or_else(|| {
            // Validation has seen every class of the prompt.
            ended(Failure::exception("KeyError", id))
        })?;
        let product = class.run(&step, inputs).await.map_err(ended)?;
        self.keep(id, product);

        let max = lock(&self.progress).get(id).map_or_else(|| float(1.0), |progress| progress.max.clone());
        self.set_progress(id, max.clone(), max, "finished");
        lock(&self.executed).insert(id.to_owned());
        Ok(())
    }

    /// A cached node that is wanted all the same shows its old result again.
    fn announce_cached(&self, id: &str, cached: &Cached) {
        if self.client.is_some() {
            let output = cached.ui.as_ref().map_or(&Value::Null, |ui| &ui.output);
            self.tell("executed", &self.executed_message(id, output));
        }
        if let Some(ui) = &cached.ui
            && (self.client.is_some() || self.shared.version.lists_cached_without_client())
        {
            lock(&self.ui).insert(id.to_owned(), ui.clone());
        }
        self.set_progress(id, 1.into(), 1.into(), "finished");
    }

    fn keep(&self, id: &str, product: Product) {
        let ui = product.ui.map(|output| Ui { output, made_by: id.to_owned() });
        if let Some(ui) = &ui {
            lock(&self.ui).insert(id.to_owned(), ui.clone());
            if self.client.is_some() {
                self.tell("executed", &self.executed_message(id, &ui.output));
            }
        }
        let result = Arc::new(Cached { outputs: product.outputs, ui });
        self.shared.cache().set(id, result);
    }

    fn executed_message(&self, id: &str, output: &Value) -> Value {
        let mut output = output.clone();
        self.spoil(&mut output);
        json!({"node": id, "display_node": id, "output": output, "prompt_id": self.item.id})
    }

    fn inputs(&self, id: &str) -> Inputs {
        let given = self.item.prompt.get(id).and_then(|node| node.get("inputs")).and_then(Value::as_object);
        let Some(class) = class_of(&self.item.prompt, id) else { return Inputs(IndexMap::new()) };
        let known = class.inputs(&self.shared.folders);
        let resolved = given.into_iter().flatten().filter(|(name, _)| known.iter().any(|input| input.name == *name));
        let resolved = resolved.filter_map(|(name, value)| {
            let data = match link(value) {
                Some((source, output)) => self.cached(source)?.outputs.get(output)?.clone(),
                None => Data::Value(value.clone()),
            };
            Some((name.clone(), data))
        });
        Inputs(resolved.collect())
    }

    /// Ends the run with `execution_error` or `execution_interrupted`.
    fn report(&self, ended: Ended) {
        let node_type = self.item.prompt.get(&ended.node).and_then(|node| node.get("class_type"));
        let mut message = json!({
            "prompt_id": self.item.id,
            "node_id": ended.node,
            "node_type": node_type,
            "executed": *lock(&self.executed),
        });
        match ended.failure {
            Failure::Interrupted => self.note("execution_interrupted", message, true),
            Failure::Exception { kind, message: text, tips } => {
                let more = json!({
                    "exception_message": format!("{text}\n{tips}"),
                    "exception_type": kind,
                    "traceback": [
                        "  File \"/srv/ComfyUI/execution.py\", line 510, in execute\n",
                        "  File \"/srv/ComfyUI/execution.py\", line 324, in get_output_data\n",
                    ],
                    "current_inputs": ended.inputs,
                    "current_outputs": self.item.prompt.keys().collect::<Vec<_>>(),
                });
                extend(&mut message, more);
                self.note("execution_error", message, false);
            }
        }
    }

    fn outcome(self, succeeded: bool) -> Outcome {
        let mut ui = std::mem::take(&mut *lock(&self.ui));
        if self.shared.version.lists_all_cached_outputs() {
            for id in self.item.prompt.keys() {
                if let Some(cached) = self.cached(id).and_then(|cached| cached.ui.clone()) {
                    ui.entry(id.clone()).or_insert(cached);
                }
            }
        }
        let meta = |ui: &Ui| {
            let id = &ui.made_by;
            json!({"node_id": id, "display_node": id, "parent_node": null, "real_node_id": id})
        };
        let meta: Object = ui.iter().map(|(id, ui)| (id.clone(), meta(ui))).collect();
        let outputs: Object = ui
            .into_iter()
            .map(|(id, mut ui)| {
                self.spoil(&mut ui.output);
                (id, ui.output)
            })
            .collect();
        Outcome {
            outputs: outputs.into(),
            meta: meta.into(),
            succeeded,
            messages: std::mem::take(&mut *lock(&self.messages)),
        }
    }

    /// Computing keys reads files, so it goes to a blocking thread.
    async fn open_cache(&self) {
        let (cache, folders) = (Arc::clone(&self.shared.cache), self.shared.folders.clone());
        let prompt = self.item.prompt.clone();
        // A failed task leaves the cache as it was, which costs nothing but work.
        let _ = tokio::task::spawn_blocking(move || lock(&cache).begin(&prompt, &folders)).await;
    }

    fn cached(&self, id: &str) -> Option<Arc<Cached>> {
        self.shared.cache().get(id)
    }

    fn set_progress(&self, id: &str, value: Number, max: Number, state: &'static str) {
        lock(&self.progress).insert(id.to_owned(), Progress { value, max, state });
        if self.shared.version.has_progress_state() {
            let nodes: Object =
                lock(&self.progress).iter().map(|(id, progress)| (id.clone(), self.node_state(id, progress))).collect();
            self.tell("progress_state", &json!({"prompt_id": self.item.id, "nodes": nodes}));
        }
    }

    fn node_state(&self, id: &str, progress: &Progress) -> Value {
        json!({
            "value": progress.value, "max": progress.max, "state": progress.state, "node_id": id,
            "prompt_id": self.item.id, "display_node_id": id, "parent_node_id": null, "real_node_id": id,
        })
    }

    /// Sends a message and keeps it for the history.
    fn note(&self, kind: &str, mut data: Value, to_everybody: bool) {
        extend(&mut data, json!({"timestamp": chrono::Utc::now().timestamp_millis()}));
        if self.client.is_some() || to_everybody {
            self.tell(kind, &data);
        }
        lock(&self.messages).push(json!([kind, data]));
    }

    /// Sends to the client, or to everybody if the prompt has none.
    fn tell(&self, kind: &str, data: &Value) {
        self.hub().send(kind, data, self.client.as_deref());
    }

    fn spoil(&self, output: &mut Value) {
        if self.shared.faults.has_nan() {
            extend(output, json!({"sandbox_scores": [NAN, INFINITY, 0.5]}));
        }
    }

    fn hub(&self) -> &Hub {
        &self.shared.hub
    }
}

/// What a node sees of its run.
pub(super) struct Step<'a> {
    run: &'a Run<'a>,
    id: &'a str,
}

impl Step<'_> {
    pub(super) fn folders(&self) -> &Folders {
        &self.run.shared.folders
    }

    /// Ends the node if somebody asked for it. The request is used up.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.run.shared.interrupted.send_replace(false) { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Reports that `done` of `steps` are done, with a picture if there is one.
    pub(super) async fn tick(&self, done: u64, steps: u64, picture: Option<image::RgbImage>) -> Result<(), Failure> {
        let (run, client) = (self.run, self.run.client.as_deref());
        self.check()?;
        run.shared.faults.thawed().await;
        let preview = match picture {
            Some(picture) => self.blocking(move || Ok(preview::encode(picture))).await?,
            None => None,
        };
        let with_metadata = run.hub().wants_metadata(client);
        run.set_progress(self.id, done.into(), steps.into(), "running");
        if let Some(preview) = preview.as_ref().filter(|_| with_metadata) {
            let metadata = json!({
                "node_id": self.id, "prompt_id": run.item.id, "display_node_id": self.id,
                "parent_node_id": null, "real_node_id": self.id,
            });
            run.hub().send_preview_with_metadata(preview, metadata, client);
        }
        run.tell("progress", &json!({"value": done, "max": steps, "prompt_id": run.item.id, "node": self.id}));
        if let Some(preview) = preview.filter(|_| !with_metadata) {
            run.hub().send_preview(&preview, client);
        }
        run.shared.faults.pass(&Point::AtStep(self.id.to_owned(), done), &run.shared.interrupted).await;
        Ok(())
    }

    /// Does `work` on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(Failure::exception("RuntimeError", error.to_string())),
        }
    }
}

fn class_of(prompt: &Object, id: &str) -> Option<&'static Class> {
    find(prompt.get(id)?.get("class_type")?.as_str()?)
}

fn reported(inputs: &Inputs) -> Value {
    inputs.0.iter().map(|(name, data)| (name.clone(), json!([data.to_report()]))).collect::<Object>().into()
}

fn float(value: f64) -> Number {
    Number::from_f64(value).unwrap_or_else(|| 0.into())
}

fn extend(value: &mut Value, more: Value) {
    if let (Some(map), Value::Object(more)) = (value.as_object_mut(), more) {
        map.extend(more);
    }
}
