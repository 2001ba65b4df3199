//! Prompts made from files in UI format, judged by a real ComfyUI.
//!
//! Every recorded file whose node classes it has is converted with its own definitions and posted to `/prompt`. Up to
//! models and media, which nobody has here, it must take each, or refuse it as it refuses what the front end itself made
//! of the file: mutants lack inputs because nodes were muted. A prompt in front holds up the queue, so that none runs.

use std::collections::BTreeMap;

use comfy_remote::convert::{Code, ConvertError, NodeDefinitions, Options, Severity, convert};
use serde_json::{Map, Value, json};

use crate::cases::{Case, cases};
use crate::server::{Server, within};

const SETS: [&str; 7] =
    ["handmade", "templates", "mutants", "old-templates", "skewed", "fe127-templates", "fe127-mutants"];

/// How many files must be accepted in the end.
const ENOUGH: usize = 90;

/// The front end of 1.27 sent links through muted reroutes, today's does not; so more inputs lack a link.
const OF_AN_OLDER_FRONT_END: [(&str, &str); 1] = [("fe127-mutants", "hidream_e1_full__m0")];

/// What the names of models end with.
const MODELS: [&str; 8] = [".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf"];

/// What ComfyUI adds to its lists of models.
const NO_FILES: [&str; 5] = ["pixel_space", "taesd", "taesdxl", "taesd3", "taef1"];

/// What became of a file.
enum Verdict {
    /// A class of it is not there.
    Unknown,
    /// Taken, but for models and media.
    Accepted,
    /// Refused for what is wrong with the file; why.
    Refused(Vec<String>),
    /// Refused for what the conversion did; why.
    Failed(Vec<String>),
}

#[derive(Default)]
struct Count {
    files: usize,
    known: usize,
    accepted: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn converted_files_are_accepted() {
    let Some(real) = Server::real().await else {
        println!("skipped: set COMFYUI_URL to have a real ComfyUI judge what is converted");
        return;
    };
    let judge = Judge::new(real).await;
    let (mut counts, mut refused, mut failed) = (BTreeMap::new(), Vec::new(), Vec::new());
    for set in SETS {
        let count: &mut Count = counts.entry(set).or_default();
        for case in cases(set) {
            count.files += 1;
            let verdict = judge.file(set, &case).await;
            count.known += usize::from(!matches!(verdict, Verdict::Unknown));
            count.accepted += usize::from(matches!(verdict, Verdict::Accepted));
            let named = |why: &String| format!("{set}/{}: {why}", case.name);
            match verdict {
                Verdict::Refused(why) => refused.extend(why.iter().map(named)),
                Verdict::Failed(why) => failed.extend(why.iter().map(named)),
                Verdict::Unknown | Verdict::Accepted => {}
            }
        }
    }
    judge.let_go().await;
    println!("refused for what is in the file:\n  {}", refused.join("\n  "));
    for (set, Count { files, known, accepted }) in &counts {
        println!("{set}: {accepted} accepted of {known} whose classes are known, of {files}");
    }
    let accepted: usize = counts.values().map(|count| count.accepted).sum();
    println!("in total: {accepted} accepted of {}", counts.values().map(|count| count.known).sum::<usize>());
    assert!(failed.is_empty(), "the conversion is to blame for:\n  {}", failed.join("\n  "));
    assert!(accepted >= ENOUGH, "only {accepted} are accepted");
}

/// A ComfyUI that is kept from running anything.
struct Judge {
    server: Server,
    object_info: Value,
    definitions: NodeDefinitions,
    /// The prompt that holds up the queue.
    blocker: String,
}

impl Judge {
    async fn new(server: Server) -> Self {
        server.wait_until_idle().await;
        let object_info = server.get("/object_info").await.body;
        let definitions = NodeDefinitions::read(&object_info);
        // Ends by itself after ten minutes, should this test not get to its end.
        let prompt = json!({
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
            "2": {"class_type": "RigSlowSteps", "inputs": {"image": ["1", 0], "steps": 12_000, "step_ms": 50}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
        });
        let answer = server.post("/prompt", &json!({"prompt": prompt})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let blocker = answer.body["prompt_id"].as_str().unwrap().to_owned();
        let judge = Self { server, object_info, definitions, blocker };
        within("the prompt in front to run", async {
            while judge.queue().await.0 != [judge.blocker.clone()] {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        judge
    }

    /// The ids of the prompts that run, and of those that wait.
    async fn queue(&self) -> (Vec<String>, Vec<String>) {
        let queue = self.server.get("/queue").await.body;
        let id = |entry: &Value| entry[1].as_str().unwrap().to_owned();
        let ids = |key: &str| queue[key].as_array().unwrap().iter().map(id).collect();
        (ids("queue_running"), ids("queue_pending"))
    }

    /// Ends the prompt in front, once it is certain that nothing was run behind it.
    async fn let_go(&self) {
        let queue = self.queue().await;
        assert_eq!(self.server.post("/queue", &json!({"clear": true})).await.status, 200);
        let answer = self.server.post("/interrupt", &json!({"prompt_id": self.blocker})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.server.wait_until_idle().await;
        assert_eq!(queue, (vec![self.blocker.clone()], Vec::new()), "something else was run");
    }

    async fn file(&self, set: &str, case: &Case) -> Verdict {
        let nodes = case.api.as_object().unwrap();
        if !nodes.values().all(|node| self.definition(node).is_some()) {
            return Verdict::Unknown;
        }
        let prompt = match convert(&case.ui, &self.definitions, &Options::default()) {
            Ok(conversion) => conversion.prompt,
            Err(error) => return not_converted(&error),
        };
        let refusals = self.refusals(&prompt).await;
        if refusals.is_empty() {
            return Verdict::Accepted;
        }
        let of_front_end = self.refusals(nodes).await;
        let to_blame: Vec<String> = refusals.iter().filter(|why| !of_front_end.contains(why)).cloned().collect();
        if to_blame.is_empty() || OF_AN_OLDER_FRONT_END.contains(&(set, &case.name)) {
            Verdict::Refused(refusals)
        } else {
            Verdict::Failed(to_blame)
        }
    }

    fn definition(&self, node: &Value) -> Option<&Value> {
        self.object_info.get(node["class_type"].as_str()?)
    }

    /// What `/prompt` has against a prompt besides missing models and media.
    async fn refusals(&self, prompt: &Map<String, Value>) -> Vec<String> {
        let answer = self.server.post("/prompt", &json!({"prompt": prompt})).await;
        if answer.status == 200 {
            let delete = json!({"delete": [answer.body["prompt_id"]]});
            assert_eq!(self.server.post("/queue", &delete).await.status, 200);
        }
        let Some(errors) = answer.body["node_errors"].as_object() else {
            return vec![format!("status {} with {}", answer.status, answer.body)];
        };
        let mut refusals = Vec::new();
        let whole = answer.body["error"]["type"].as_str();
        refusals.extend(whole.filter(|kind| *kind != "prompt_outputs_failed_validation").map(str::to_owned));
        for (id, node) in errors {
            for error in node["errors"].as_array().into_iter().flatten() {
                let (input, value) = input(prompt, id, error);
                if !self.only_misses_a_model(&node["class_type"], input, value, error)
                    && !only_misses_a_medium(input, value, error)
                {
                    let kind = error["type"].as_str().unwrap_or_default();
                    let (class, details) = (&node["class_type"], &error["details"]);
                    refusals.push(format!("node {id} ({class}), input {input}: {kind}: {details}"));
                }
            }
        }
        refusals
    }

    /// Whether a list of models lacks a model. A model's name in another list, or another value in a list of models, is
    /// something else.
    fn only_misses_a_model(&self, class: &Value, input: &str, value: &Value, error: &Value) -> bool {
        let inputs = &self.object_info[class.as_str().unwrap_or_default()]["input"];
        let choices = ["required", "optional"].iter().find_map(|section| inputs[section][input][0].as_array());
        let is_model = |name: &Value| name.as_str().is_some_and(|name| MODELS.iter().any(|end| name.ends_with(end)));
        let is_entry = |name: &Value| is_model(name) || NO_FILES.iter().any(|other| name == other);
        error["type"] == "value_not_in_list" && is_model(value) && choices.is_some_and(|list| list.iter().all(is_entry))
    }
}

/// The input that an error is about, and what the prompt has there.
fn input<'a>(prompt: &'a Map<String, Value>, id: &str, error: &'a Value) -> (&'a str, &'a Value) {
    let input = error["extra_info"]["input_name"].as_str().unwrap_or_default();
    (input, prompt.get(id).map_or(&Value::Null, |node| &node["inputs"][input]))
}

/// Whether a node only says that the file is not there that the prompt names.
fn only_misses_a_medium(input: &str, value: &Value, error: &Value) -> bool {
    let of_kind = |kind: &str| format!("{input} - Invalid {kind} file: {}", value.as_str().unwrap_or_default());
    error["type"] == "custom_validation_failed"
        && ["image", "video", "audio"].iter().any(|kind| error["details"] == of_kind(kind))
}

/// A choice that this version does not have is the file's fault; all else is not.
fn not_converted(error: &ConvertError) -> Verdict {
    let ConvertError::Refused(findings) = error else { return Verdict::Failed(vec![error.to_string()]) };
    let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    let why = errors.iter().map(ToString::to_string).collect();
    let of_file = errors.iter().all(|finding| finding.code == Code::UnknownChoice);
    if of_file { Verdict::Refused(why) } else { Verdict::Failed(why) }
}
