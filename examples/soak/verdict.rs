//! The reckoning: every workflow at an end that it may have, every picture right, every prompt run once, nothing left
//! over.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    case::Kind,
    chaos::Fault,
    run::{Cancel, Run, Stage},
};

/// By which a start of ComfyUI is known again; one whose upload was cut off and repeated may leave a second.
const MARK: &str = "comfy-remote-server-mark";

/// Everything that can only be said at the end.
pub(crate) fn judge(stage: &Stage, output_dir: &Path, state_file: &Path) {
    let runs = stage.runs();
    for run in runs.iter() {
        for what in wrong_end(run, stage).into_iter().chain(wrong_outputs(run)) {
            stage.violations.add(format!(
                "{} ({:?}, {}): {what}\n  {}",
                run.id,
                run.case.kind,
                run.case.tag,
                run.progress()
            ));
        }
    }
    let found = [
        wrong_runs_on_box(&runs, stage),
        wrong_files_here(&runs, output_dir),
        wrong_files_on_box(&runs, stage),
        wrong_state_folder(state_file),
    ];
    found.into_iter().flatten().for_each(|what| stage.violations.add(what));
}

/// Whether a workflow may have come to its end, given what happened meanwhile.
fn wrong_end(run: &Run, stage: &Stage) -> Option<String> {
    let Some(over) = run.over else { return Some("it has come to no end".to_owned()) };
    let meanwhile = stage.chaos.during(run.asked, over);
    let any = |is: fn(Fault) -> bool| meanwhile.iter().any(|fault| is(*fault));
    let progress = run.progress();
    if run.attempts() > 1 && !any(Fault::forgets) {
        return Some("it ran more than once, though ComfyUI was up all the time".to_owned());
    }
    if run.cancel == Cancel::Accepted && run.status() != "cancelled" {
        return Some("its cancel was accepted".to_owned());
    }
    let sends_lost = meanwhile.iter().filter(|fault| matches!(fault, Fault::LosePrompt | Fault::BadGateway)).count();
    let never_ran = || run.prompts().is_disjoint(&stage.chaos.sandbox.engine().runs().into_keys().collect());
    let fine = match (run.status(), progress["error_code"].as_str().unwrap_or_default()) {
        ("completed", _) => run.case.kind != Kind::Failing,
        ("cancelled", _) => run.cancel != Cancel::NotAsked,
        ("failed", "node_error") => {
            let message = progress["error_message"].as_str().unwrap_or_default();
            run.case.kind == Kind::Failing && message == format!("Node execution failed: {}", run.case.tag)
        }
        ("failed", "job_lost") => any(Fault::forgets),
        ("failed", "ssh_unreachable") => any(Fault::closes_road) && never_ran(),
        ("failed", "comfyui_unreachable") => (any(Fault::silences_comfyui) || sends_lost > 2) && never_ran(),
        // What is shown only lies in ComfyUI's temp folder, which a restart empties.
        ("failed", "download_failed") => run.case.kind == Kind::Preview && any(Fault::forgets),
        _ => false,
    };
    (!fine).then(|| format!("it must not end so; meanwhile: {meanwhile:?}"))
}

/// Whether a completed workflow made just what its graph makes.
fn wrong_outputs(run: &Run) -> Vec<String> {
    if run.status() != "completed" {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let mut missing = run.case.expected.clone();
    for output in run.progress()["outputs"].as_array().into_iter().flatten() {
        let path = output["local_path"].as_str().unwrap_or_default();
        let picture = match image::open(path) {
            Ok(picture) => picture.into_rgb8(),
            Err(error) => {
                wrong.push(format!("{path} is no picture: {error}"));
                continue;
            }
        };
        let place = [&output["subfolder"], &output["filename"]].map(|part| part.as_str().unwrap_or_default()).join("/");
        match missing.iter().position(|expected| expected.is(&place, &picture)) {
            Some(index) => drop(missing.swap_remove(index)),
            None => wrong.push(format!("{place} has other pixels than it must, or must not be")),
        }
    }
    wrong.extend(missing.iter().map(|expected| format!("no output {:?}", expected.prefix)));
    if let Some(text) = run.case.text()
        && !run.progress()["texts"].to_string().contains(&Value::from(text.as_str()).to_string())
    {
        wrong.push(format!("no text {text}"));
    }
    wrong
}

/// Whether the box ran each attempt once at most, and each attempt that counts.
fn wrong_runs_on_box(runs: &[Run], stage: &Stage) -> Vec<String> {
    let on_box = stage.chaos.sandbox.engine().runs();
    let mut wrong: Vec<String> =
        repeated(&on_box).map(|(id, count)| format!("prompt {id} ran {count} times")).collect();
    let attempts: usize = runs.iter().map(Run::attempts).sum();
    let submissions = stage.chaos.sandbox.engine().submissions();
    if submissions > attempts || on_box.len() > attempts {
        wrong.push(format!("{attempts} attempts, but {submissions} prompts were accepted and {} ran", on_box.len()));
    }
    for run in runs.iter().filter(|run| run.status() == "completed") {
        let prompt = run.progress()["prompt_id"].as_str().unwrap_or_default();
        if !on_box.contains_key(prompt) {
            wrong.push(format!("{} is completed, but its prompt {prompt} never ran", run.id));
        }
    }
    wrong
}

fn repeated(on_box: &HashMap<String, usize>) -> impl Iterator<Item = (&String, &usize)> {
    on_box.iter().filter(|(_, count)| **count != 1)
}

/// Whether there is a file here that is no output. Of workflows that did not come to a good end at the first attempt,
/// files may be here that nobody took note of.
fn wrong_files_here(runs: &[Run], output_dir: &Path) -> Vec<String> {
    let outputs = |run: &Run| run.progress()["outputs"].as_array().cloned().unwrap_or_default();
    let known: HashSet<PathBuf> =
        runs.iter().flat_map(outputs).filter_map(|output| output["local_path"].as_str().map(PathBuf::from)).collect();
    let loose: Vec<&Run> = runs.iter().filter(|run| run.status() != "completed" || run.attempts() > 1).collect();
    let excused = |place: &Path| {
        let first = place.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let first = first.unwrap_or_default();
        loose
            .iter()
            .any(|run| run.case.tag == first || (run.case.kind == Kind::Preview && first.starts_with("ComfyUI_temp_")))
    };
    let is_part = |path: &Path| path.extension().is_some_and(|extension| extension == "part");
    let stray = |path: &PathBuf| {
        is_part(path) || !(known.contains(path) || excused(path.strip_prefix(output_dir).unwrap_or(path)))
    };
    files(output_dir).into_iter().filter(stray).map(|path| format!("left over here: {}", path.display())).collect()
}

fn wrong_files_on_box(runs: &[Run], stage: &Stage) -> Vec<String> {
    let sandbox = &stage.chaos.sandbox;
    let mut wrong = Vec::new();
    let digest = |path: &Path| fs::read(path).map(|bytes| Sha256::digest(bytes).to_vec()).unwrap_or_default();
    let inputs: HashSet<Vec<u8>> = files(&stage.cases).iter().map(|path| digest(path)).collect();
    for path in files(sandbox.input_dir()) {
        let name = name(&path);
        if !name.starts_with("photo") || !name.ends_with(".png") || !inputs.contains(&digest(&path)) {
            wrong.push(format!("left over in the box's input folder, or broken: {name}"));
        }
    }
    for path in files(sandbox.temp_dir()) {
        let name = name(&path);
        if !name.starts_with("ComfyUI_temp_") && !name.starts_with(MARK) {
            wrong.push(format!("left over in the box's temp folder: {name}"));
        }
    }
    wrong.extend(wrong_marks(runs, sandbox.output_dir()));
    wrong
}

/// Each run that is not taken from the cache leaves one more file of this name in the folder of its case.
fn wrong_marks(runs: &[Run], output_dir: &Path) -> Vec<String> {
    let mut groups: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.case.kind != Kind::Preview) {
        let group = groups.entry(&run.case.tag).or_default();
        group.0 += run.attempts();
        group.1 |= run.status() == "completed";
    }
    let marks = |tag: &str| files(&output_dir.join(tag)).iter().filter(|path| name(path).starts_with("main_")).count();
    let wrong = |(tag, (attempts, completed)): (&str, (usize, bool))| {
        let marks = marks(tag);
        let fine = marks <= attempts && (marks > 0 || !completed);
        (!fine).then(|| format!("{tag}: {attempts} attempts left {marks} marks on the box"))
    };
    groups.into_iter().filter_map(wrong).collect()
}

fn wrong_state_folder(state_file: &Path) -> Vec<String> {
    let folder = state_file.parent().unwrap_or(Path::new("/"));
    let on_record: BTreeSet<String> = fs::read(state_file)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|state| Some(state["workflows"].as_object()?.keys().map(|id| format!("{id}.json")).collect()))
        .unwrap_or_default();
    let stray = |path: &PathBuf| {
        let name = name(path);
        !matches!(name.as_str(), "state.json" | "state.json.lock") && !on_record.contains(&name)
    };
    let in_folder = files(folder);
    let mut wrong: Vec<String> = in_folder
        .iter()
        .filter(|path| stray(path))
        .map(|path| format!("left over beside the state: {}", path.display()))
        .collect();
    let graphs = in_folder.iter().filter(|path| on_record.contains(&name(path))).count();
    if graphs != on_record.len() {
        wrong.push(format!("{} workflows on record have {graphs} graphs", on_record.len()));
    }
    wrong
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// How many incidents of each kind there were, and how long they lasted together, in seconds.
pub(crate) fn incidents_by_kind(stage: &Stage) -> BTreeMap<Fault, (usize, f64)> {
    let mut kinds: BTreeMap<Fault, (usize, f64)> = BTreeMap::new();
    for incident in stage.chaos.log().iter() {
        let kind = kinds.entry(incident.fault).or_default();
        kind.0 += 1;
        kind.1 += incident.to.unwrap_or_else(Instant::now).duration_since(incident.from).as_secs_f64();
    }
    kinds
}
