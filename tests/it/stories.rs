//! Whole runs, told on every far end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    support::{LOOK_EVERY, client::ApiClient, service::Service},
};

/// A run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Declares a test of each story on each far end.
macro_rules! told_on_every_far_end {
    ($($story:ident)*) => {
        mod sandbox { $(#[tokio::test] async fn $story() { super::tell(super::Kind::Sandbox, super::$story).await; })* }
        mod old_sandbox { $(#[tokio::test] async fn $story() { super::tell(super::Kind::OldSandbox, super::$story).await; })* }
        mod new_sandbox { $(#[tokio::test] async fn $story() { super::tell(super::Kind::NewSandbox, super::$story).await; })* }
        mod openssh { $(#[tokio::test] async fn $story() { super::tell(super::Kind::OpenSsh, super::$story).await; })* }
        mod comfyui { $(#[tokio::test] async fn $story() { super::tell(super::Kind::ComfyUi, super::$story).await; })* }
    };
}

told_on_every_far_end! {
    a_picture_goes_to_the_box_and_comes_back_inverted
    a_second_run_comes_from_the_cache_and_delivers_its_files_again
    steps_of_a_running_node_are_seen
    a_failing_node_is_named_and_what_ran_before_is_kept
    running_out_of_memory_is_told_apart
    what_comfyui_refuses_fails_with_node_and_reason
    previews_come_when_there_is_nothing_else
    files_texts_and_unneeded_nodes_are_told_apart
    batches_and_subfolders_arrive_as_they_are_on_the_box
    same_named_inputs_at_once_each_get_their_own_picture
    the_same_input_is_sent_once_and_another_is_never_overwritten
    a_waiting_prompt_is_cancelled_and_the_running_one_goes_on
    a_running_prompt_is_cancelled_and_a_waiting_foreign_one_goes_on
    a_name_that_is_taken_is_not_overwritten
    a_file_gone_from_a_cached_run_is_made_again
    somebody_elses_stop_button_is_said
    the_service_is_killed_mid_run_and_goes_on
    a_stopped_service_leaves_the_run_alone
    wrong_folders_are_survived_through_comfyuis_own_routes
    an_output_is_here_before_the_run_is_over
}

/// Only a real ComfyUI makes these.
#[tokio::test]
async fn animations_sound_and_video_of_a_real_comfyui_arrive() {
    tell(Kind::ComfyUi, |stage: Stage| async move {
        let tag = tag();
        let id = stage.start(&graphs::media(&tag)).await;
        let done = stage.completed(&id).await;
        assert_eq!(files(&done).len(), 5);
        let mut kinds: Vec<_> = done["outputs"].as_array().unwrap().iter().map(kind_and_extension).collect();
        kinds.sort();
        let expected = [("audio", "flac"), ("audio", "mp3"), ("image", "webp"), ("video", "mp4"), ("video", "webm")];
        assert_eq!(kinds, expected.map(|(kind, extension)| (kind.to_owned(), extension.to_owned())));
    })
    .await;
}

fn kind_and_extension(output: &Value) -> (String, String) {
    let text = |field: &str| output[field].as_str().unwrap().to_owned();
    (text("file_type"), text("filename").rsplit_once('.').unwrap().1.to_owned())
}

/// A service, a far end, and a folder for the user's files.
struct Stage {
    far: FarEnd,
    service: Service,
    files: tempfile::TempDir,
}

async fn tell<F: Future<Output = ()>>(kind: Kind, story: impl FnOnce(Stage) -> F) {
    let Some(far) = FarEnd::start(kind).await else { return };
    let service = Service::start(&[]);
    let files = tempfile::Builder::new().prefix("user files ünï ").tempdir().unwrap();
    story(Stage { far, service, files }).await;
}

impl Stage {
    fn client(&self) -> ApiClient {
        self.service.client()
    }

    fn request(&self, graph: &Value) -> Value {
        self.far.request(self.files.path(), graph)
    }

    async fn start(&self, graph: &Value) -> String {
        self.client().accepted(&self.request(graph)).await
    }

    async fn start_with(&self, graph: &Value, images: &[&Path]) -> String {
        let mut request = self.request(graph);
        request["input_images"] = json!(images);
        self.client().accepted(&request).await
    }

    async fn completed(&self, id: &str) -> Value {
        self.client().wait_for_status(id, "completed", PATIENCE).await
    }

    async fn ended(&self, id: &str) -> Value {
        self.client().wait_for_end(id, PATIENCE).await
    }

    async fn running(&self, id: &str) -> Value {
        let steps = |progress: &Value| progress["nodes"][1]["progress"].as_f64().is_some_and(|percent| percent > 0.0);
        self.client().wait_for(id, "steps of its node", PATIENCE, steps).await
    }

    /// A picture of one colour, in a folder of its own.
    fn picture(&self, name: &str, colour: [u8; 3]) -> PathBuf {
        let folder = self.files.path().join(tag());
        fs::create_dir(&folder).unwrap();
        let path = folder.join(name);
        RgbImage::from_pixel(8, 6, Rgb(colour)).save(&path).unwrap();
        path
    }
}

/// The local files of a finished workflow, in order; each must be there.
fn files(progress: &Value) -> Vec<PathBuf> {
    let outputs = progress["outputs"].as_array().expect("outputs are a list");
    let file = |output: &Value| {
        assert_eq!(output["downloaded"], true, "{output}");
        let path = PathBuf::from(output["local_path"].as_str().expect("a local path"));
        assert_eq!(fs::metadata(&path).unwrap().len(), output["size"].as_u64().unwrap(), "{output}");
        path
    };
    outputs.iter().map(file).collect()
}

/// Whether every pixel is the inverse of `colour`. ComfyUI's way over floats may be one step off.
fn is_inverse(path: &Path, colour: [u8; 3]) -> bool {
    let picture = image::open(path).unwrap().to_rgb8();
    let close = |pixel: &Rgb<u8>| pixel.0.iter().zip(colour).all(|(is, was)| is.abs_diff(255 - was) <= 1);
    picture.dimensions() == (8, 6) && picture.pixels().all(close)
}

async fn a_picture_goes_to_the_box_and_comes_back_inverted(stage: Stage) {
    let (tag, photo) = (tag(), stage.picture("photo ünï.png", [250, 10, 60]));
    let id = stage.start_with(&graphs::invert(&tag, "photo ünï.png"), &[&photo]).await;

    let accepted = stage.client().progress(&id).await;
    for (field, is_right) in FIELDS {
        assert!(is_right(&accepted[*field]), "{field} of {accepted:#}");
    }

    let done = stage.completed(&id).await;
    let [inverted] = files(&done).try_into().unwrap();
    assert_eq!(inverted, stage.service.output_dir().join(format!("{tag}_inverted_00001_.png")));
    assert!(is_inverse(&inverted, [250, 10, 60]));

    assert_eq!(done["progress_percent"], 100.0);
    assert_eq!((&done["total_nodes"], &done["completed_nodes"]), (&json!(3), &json!(3)));
    let nodes: Vec<_> = done["nodes"].as_array().unwrap().iter().map(|node| node["node_type"].clone()).collect();
    assert_eq!(nodes, ["LoadImage", "ImageInvert", "SaveImage"]);
    assert_eq!(done["nodes"][0]["title"], "The photo");
    assert_eq!((&done["current_node"], &done["error_message"]), (&Value::Null, &Value::Null));
    assert!(done["start_time"].as_str() <= done["end_time"].as_str() && done["start_time"].is_string());
    let output = &done["outputs"][0];
    assert_eq!(output["file_type"], "image");
    let remote = stage.far.output_dir().join(format!("{tag}_inverted_00001_.png"));
    assert_eq!(output["remote_path"], json!(remote));

    let (_, answer) = stage.client().outputs(&id).await;
    assert_eq!(answer["outputs"], done["outputs"]);
    assert_eq!(stage.client().active(&id).await.1, json!({"success": true, "active": false}));
    assert_eq!(stage.client().state().await.1["state"], done);
    assert_eq!(done["warnings"], json!([]), "the direct ways were open");
}

/// A field and what it must be.
type Field = (&'static str, fn(&Value) -> bool);

/// The reference's fields, and what each must be from the first moment on.
const FIELDS: &[Field] = &[
    ("workflow_id", Value::is_string),
    ("workflow_name", Value::is_string),
    ("prompt_id", Value::is_string),
    ("ssh_connection", Value::is_string),
    ("workflow_file", Value::is_string),
    ("status", Value::is_string),
    ("queue_position", |value| value.is_null() || value.is_u64()),
    ("current_node", |value| value.is_null() || value.is_string()),
    ("total_nodes", |value| *value == 3),
    ("completed_nodes", Value::is_u64),
    ("progress_percent", Value::is_f64),
    ("nodes", |value| value.as_array().is_some_and(|nodes| nodes.len() == 3)),
    ("queue_time", |value| value.as_str().is_some_and(|time| time.ends_with('Z'))),
    ("start_time", |value| value.is_null() || value.is_string()),
    ("end_time", |value| value.is_null() || value.is_string()),
    ("last_update", |value| value.as_str().is_some_and(|time| time.ends_with('Z'))),
    ("outputs", Value::is_array),
    ("error_message", Value::is_null),
    ("failed_node", Value::is_null),
];

async fn a_second_run_comes_from_the_cache_and_delivers_its_files_again(stage: Stage) {
    let tag = tag();
    let graph = graphs::batch(&tag, 1, &format!("{tag}_cached"));
    let first = stage.start(&graph).await;
    let first = files(&stage.completed(&first).await);
    let elsewhere = stage.files.path().join("elsewhere");
    let mut request = stage.request(&graph);
    request["output_dir"] = json!(elsewhere);
    let second = stage.client().accepted(&request).await;
    let second = stage.completed(&second).await;
    for node in second["nodes"].as_array().unwrap() {
        assert_eq!((&node["status"], &node["message"]), (&json!("executed"), &json!("cached")), "{node}");
    }
    let again = files(&second);
    assert_eq!(again, [elsewhere.join(first[0].file_name().unwrap())]);
    assert_eq!(fs::read(&again[0]).unwrap(), fs::read(&first[0]).unwrap());
    assert_eq!(second["attempt"], 1);
}

async fn steps_of_a_running_node_are_seen(stage: Stage) {
    let id = stage.start(&graphs::slow(&tag(), 20, 100)).await;
    let mut seen = Vec::new();
    let mut last = (0.0, 0.0);
    loop {
        let progress = stage.client().progress(&id).await;
        let percents = (progress["progress_percent"].as_f64().unwrap(), progress["overall_percent"].as_f64().unwrap());
        assert!(percents.0 >= last.0 && percents.1 >= last.1, "progress fell: {last:?} {percents:?}");
        last = percents;
        if progress["status"] == "completed" {
            break;
        }
        assert!(percents.0 < 100.0, "{progress:#}");
        let node = &progress["nodes"][1];
        if node["status"] == "executing" && node["message"].is_string() {
            assert_eq!(progress["current_node"], "RigSlowSteps");
            assert_eq!(progress["current_node_id"], "2");
            assert_eq!(progress["status"], "executing");
            seen.push(node["message"].as_str().unwrap().to_owned());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    seen.dedup();
    assert!(seen.len() >= 3 && seen.iter().all(|text| text.starts_with("Step ") && text.ends_with("/20")), "{seen:?}");
}

async fn a_failing_node_is_named_and_what_ran_before_is_kept(stage: Stage) {
    let tag = tag();
    let id = stage.start(&graphs::fail(&tag)).await;
    let failed = stage.ended(&id).await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["error_message"], "Node execution failed: boom: the wires are crossed");
    assert_eq!((&failed["failed_node"], &failed["failed_node_id"]), (&json!("RigFail"), &json!("3")));
    assert_eq!(failed["error_code"], "node_error");
    assert_eq!(failed["error_detail"]["exception_type"], "RuntimeError");
    let node = failed["nodes"].as_array().unwrap().iter().find(|node| node["node_id"] == "3").unwrap();
    assert_eq!((&node["status"], &node["message"]), (&json!("failed"), &json!("boom: the wires are crossed")));
    let kept = files(&failed);
    assert_eq!(kept, [stage.service.output_dir().join(format!("{tag}_before_00001_.png"))]);
    assert_ne!(failed["progress_percent"], 100.0);
}

async fn running_out_of_memory_is_told_apart(stage: Stage) {
    let id = stage.start(&graphs::out_of_memory(&tag())).await;
    let failed = stage.ended(&id).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("out_of_memory")));
    let message = failed["error_message"].as_str().unwrap();
    assert!(message.starts_with("Node execution failed: ") && message.contains("out of memory"), "{message}");
    assert_eq!(failed["failed_node"], "RigOOM");
}

async fn what_comfyui_refuses_fails_with_node_and_reason(stage: Stage) {
    for (graph, expected) in graphs::refused() {
        let (status, answer) = stage.client().execute(&stage.request(&graph)).await;
        assert_eq!(status, 400, "{answer:#}");
        let findings = answer["findings"].as_array().unwrap();
        assert!(findings.iter().any(|finding| finding["severity"] == "error"), "{answer:#}");
        let failed = stage.ended(answer["workflow_id"].as_str().unwrap()).await;
        assert_eq!(failed["error_detail"]["findings"], answer["findings"]);
        assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("invalid_workflow")));
        let message = failed["error_message"].as_str().unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
        assert_eq!(stage.far.prompts_in_line().await, Vec::<String>::new());
    }
    // What a node of a pack allows, only the box can say.
    for (graph, expected) in graphs::refused_by_the_box_alone() {
        let id = stage.start(&graph).await;
        let failed = stage.ended(&id).await;
        assert!(failed["warnings"].to_string().contains(expected), "{failed:#}");
        assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("invalid_workflow")));
        assert!(failed["error_message"].as_str().unwrap().contains("(RigSlowSteps)"), "{failed:#}");
        assert_eq!(failed["error_detail"]["findings"][0]["code"], "value_smaller_than_min");
        assert_eq!(stage.far.prompts_in_line().await, Vec::<String>::new());
    }
}

async fn previews_come_when_there_is_nothing_else(stage: Stage) {
    let id = stage.start(&graphs::preview(&tag())).await;
    let done = stage.completed(&id).await;
    assert_eq!(files(&done).len(), 2);
    let temp = stage.far.output_dir().with_file_name("temp");
    for output in done["outputs"].as_array().unwrap() {
        assert_eq!(output["remote_path"], json!(temp.join(output["filename"].as_str().unwrap())));
    }
}

async fn files_texts_and_unneeded_nodes_are_told_apart(stage: Stage) {
    let tag = tag();
    let id = stage.start(&graphs::mixed(&tag)).await;
    let done = stage.completed(&id).await;
    assert_eq!(done["texts"], json!([{"node_id": "4", "text": format!("a caption, ünï {tag}")}]));
    assert_eq!(done["total_nodes"], 4, "node 5 feeds no output: {done:#}");
    let mut nodes: Vec<_> = done["outputs"].as_array().unwrap().iter().map(|output| &output["node_id"]).collect();
    nodes.sort_by_key(|id| id.to_string());
    assert_eq!(nodes, ["2", "3"], "the preview node has nothing but previews");
}

async fn batches_and_subfolders_arrive_as_they_are_on_the_box(stage: Stage) {
    let tag = tag();
    let id = stage.start(&graphs::batch(&tag, 12, &format!("{tag}/ünï cödé/a b%c&d"))).await;
    let done = stage.completed(&id).await;
    let folder = stage.service.output_dir().join(&tag).join("ünï cödé");
    let expected: Vec<PathBuf> = (1..=12).map(|n| folder.join(format!("a b%c&d_{n:05}_.png"))).collect();
    assert_eq!(files(&done), expected);
    for (local, output) in expected.iter().zip(done["outputs"].as_array().unwrap()) {
        assert_eq!(fs::read(local).unwrap(), fs::read(output["remote_path"].as_str().unwrap()).unwrap());
        assert_eq!(output["subfolder"], format!("{tag}/ünï cödé"));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 12, "no temporary file stays");
}

async fn same_named_inputs_at_once_each_get_their_own_picture(stage: Stage) {
    let name = format!("{}.png", tag());
    let colours = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 0]];
    let mut started = Vec::new();
    for colour in colours {
        let picture = stage.picture(&name, colour);
        let mut request = stage.request(&graphs::invert(&tag(), &name));
        request["input_images"] = json!([picture]);
        started.push(request);
    }
    let client = stage.client();
    let ids = futures_util::future::join_all(started.iter().map(|request| client.accepted(request))).await;
    for (id, colour) in ids.iter().zip(colours) {
        let done = stage.completed(id).await;
        assert!(is_inverse(&files(&done)[0], colour), "{done:#}");
    }
}

async fn the_same_input_is_sent_once_and_another_is_never_overwritten(stage: Stage) {
    let name = format!("{}.png", tag());
    let there = stage.far.input_dir().join(&name);
    let picture = stage.picture(&name, [1, 2, 3]);
    for _ in 0..2 {
        let id = stage.start_with(&graphs::invert(&tag(), &name), &[&picture]).await;
        stage.completed(&id).await;
    }
    let of_that_name = || {
        let stem = name.trim_end_matches(".png");
        let names = fs::read_dir(stage.far.input_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains(stem)).count()
    };
    assert_eq!(of_that_name(), 1);
    assert_eq!(fs::read(&there).unwrap(), fs::read(&picture).unwrap());

    let other = stage.picture(&name, [7, 8, 9]);
    let id = stage.start_with(&graphs::invert(&tag(), &name), &[&other]).await;
    let done = stage.completed(&id).await;
    assert!(is_inverse(&files(&done)[0], [7, 8, 9]));
    assert_eq!(fs::read(&there).unwrap(), fs::read(&picture).unwrap(), "the first picture is as it was");
    assert_eq!(of_that_name(), 2);
}

async fn a_waiting_prompt_is_cancelled_and_the_running_one_goes_on(stage: Stage) {
    let foreign = stage.far.submit_foreign(&graphs::slow(&tag(), 60, 100)).await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let queued = |progress: &Value| progress["queue_position"] == 1 && progress["phase"] == "queued";
    let waiting = stage.client().wait_for(&id, "its place in line", PATIENCE, queued).await;
    assert_eq!(waiting["status"], "queued");
    assert_eq!(stage.client().cancel(&id).await.1["message"], "Workflow cancellation initiated");
    stage.client().wait_for_status(&id, "cancelled", PATIENCE).await;
    assert_eq!(stage.far.prompts_in_line().await, [foreign.as_str()]);
    assert_eq!(stage.far.history(&foreign).await["status"]["status_str"], "success");
}

async fn a_running_prompt_is_cancelled_and_a_waiting_foreign_one_goes_on(stage: Stage) {
    let id = stage.start(&graphs::slow(&tag(), 600, 100)).await;
    let running = stage.running(&id).await;
    let foreign = stage.far.submit_foreign(&graphs::slow(&tag(), 2, 50)).await;
    let (status, answer) = stage.client().cancel(&id).await;
    assert_eq!((status.as_u16(), &answer["success"]), (200, &json!(true)));
    let cancelled = stage.client().wait_for_status(&id, "cancelled", PATIENCE).await;
    assert!(cancelled["end_time"].is_string() && cancelled["current_node"].is_null());
    assert_eq!(stage.far.history(&foreign).await["status"]["status_str"], "success");
    let prompt = running["prompt_id"].as_str().unwrap();
    assert_eq!(stage.far.history(prompt).await["status"]["status_str"], "error", "interrupted on the box");
    let (status, answer) = stage.client().cancel(&id).await;
    assert_eq!(status.as_u16(), 404);
    assert_eq!(answer["message"], format!("Workflow not found or already completed: {id}"));
}

async fn a_name_that_is_taken_is_not_overwritten(stage: Stage) {
    let tag = tag();
    let output = stage.service.output_dir();
    fs::create_dir_all(&output).unwrap();
    let taken = output.join(format!("{tag}_taken_00001_.png"));
    fs::write(&taken, "precious").unwrap();
    let id = stage.start(&graphs::batch(&tag, 1, &format!("{tag}_taken"))).await;
    let done = stage.completed(&id).await;
    assert_eq!(files(&done), [output.join(format!("{tag}_taken_00001_-2.png"))]);
    assert_eq!(done["outputs"][0]["filename"], format!("{tag}_taken_00001_.png"));
    assert_eq!(fs::read_to_string(taken).unwrap(), "precious");
}

async fn a_file_gone_from_a_cached_run_is_made_again(stage: Stage) {
    let tag = tag();
    let graph = graphs::batch(&tag, 1, &format!("{tag}_gone"));
    let first = stage.start(&graph).await;
    let first = stage.completed(&first).await;
    let original = fs::read(&files(&first)[0]).unwrap();
    fs::remove_file(first["outputs"][0]["remote_path"].as_str().unwrap()).unwrap();
    let mut request = stage.request(&graph);
    request["output_dir"] = json!(stage.files.path().join("again"));
    let second = stage.client().accepted(&request).await;
    let second = stage.completed(&second).await;
    assert_eq!(fs::read(&files(&second)[0]).unwrap(), original);
    assert_eq!(second["attempt"], 2);
    assert!(second["warnings"][0].as_str().unwrap().contains("runs once more"), "{second:#}");
    assert_ne!(second["prompt_id"], first["prompt_id"]);
}

async fn somebody_elses_stop_button_is_said(stage: Stage) {
    let id = stage.start(&graphs::slow(&tag(), 600, 100)).await;
    stage.running(&id).await;
    stage.far.interrupt_whatever_runs().await;
    let failed = stage.ended(&id).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("interrupted")));
    assert_eq!(failed["error_message"], "The run was interrupted on the box, not by this service");
}

async fn the_service_is_killed_mid_run_and_goes_on(mut stage: Stage) {
    let tag = tag();
    let id = stage.start(&graphs::slow(&tag, 40, 100)).await;
    let before = stage.running(&id).await;
    stage.service.kill();
    stage.service.launch();
    let again = stage.client().wait_for(&id, "the run again", PATIENCE, |now| now["status"] == "executing").await;
    assert_eq!(again["prompt_id"], before["prompt_id"]);
    let done = stage.completed(&id).await;
    assert_eq!((&done["prompt_id"], &done["attempt"]), (&before["prompt_id"], &json!(1)));
    assert_eq!(files(&done), [stage.service.output_dir().join(format!("{tag}_slow_00001_.png"))]);
}

async fn a_stopped_service_leaves_the_run_alone(mut stage: Stage) {
    let id = stage.start(&graphs::slow(&tag(), 30, 100)).await;
    let running = stage.running(&id).await;
    assert!(stage.service.terminate(Duration::from_secs(5)).success());
    let prompt = running["prompt_id"].as_str().unwrap();
    assert_eq!(stage.far.prompts_in_line().await, [prompt]);
    assert_eq!(stage.far.history(prompt).await["status"]["status_str"], "success");
    stage.service.launch();
    let done = stage.completed(&id).await;
    assert_eq!((files(&done).len(), &done["attempt"]), (1, &json!(1)));
}

async fn wrong_folders_are_survived_through_comfyuis_own_routes(stage: Stage) {
    let (tag, wrong) = (tag(), stage.files.path().join("wrong"));
    fs::create_dir(&wrong).unwrap();
    let name = format!("{tag}.png");
    let photo = stage.picture(&name, [255, 0, 0]);
    let mut request = stage.request(&graphs::invert(&tag, &name));
    request["input_images"] = json!([photo]);
    request["comfyui_input_dir"] = json!(wrong);
    request["comfyui_output_dir"] = json!(wrong);
    let id = stage.client().accepted(&request).await;
    let done = stage.completed(&id).await;
    assert!(is_inverse(&files(&done)[0], [255, 0, 0]));
    let warnings: Vec<_> = done["warnings"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert!(warnings.iter().any(|text| text.contains("uploaded through ComfyUI")), "{warnings:?}");
    assert!(warnings.iter().any(|text| text.contains("downloaded through ComfyUI")), "{warnings:?}");
    assert_eq!(fs::read_dir(&wrong).unwrap().count(), 0, "nothing stays in the wrong folder");
}

async fn an_output_is_here_before_the_run_is_over(stage: Stage) {
    let id = stage.start(&graphs::early(&tag())).await;
    let early = |progress: &Value| {
        let outputs = progress["outputs"].as_array().unwrap();
        progress["status"] == "executing" && outputs.iter().any(|output| output["downloaded"] == true)
    };
    let running = stage.client().wait_for(&id, "the first output", PATIENCE, early).await;
    assert_eq!(running["current_node"], "RigSlowSteps");
    let first = files(&running);
    stage.client().cancel(&id).await;
    let cancelled = stage.client().wait_for_status(&id, "cancelled", PATIENCE).await;
    assert_eq!(files(&cancelled), first, "what is here stays, and is listed");
}
