//! Outputs on their way here: cut, killed, changed meanwhile, without room, and fetched later.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfy_remote::sandbox::{Hold, SandboxOptions};
use serde_json::{Value, json};

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::{eventually, service::Service, tmpfs::Tmpfs},
};

/// Takes a while to move, also on loopback.
const BIG: usize = 40_000_000;

/// Where a test lets the way break.
const CUT: u64 = 30_000_000;

/// What may pass twice: what was on the way when it broke, and the rest of the run.
const SLACK: u64 = 18_000_000;

/// Bytes of which no two blocks are alike.
fn content(seed: u64) -> Vec<u8> {
    let mut content = vec![seed as u8; BIG];
    for (number, block) in (seed..).zip(content.chunks_exact_mut(4096)) {
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
    content
}

/// A workflow whose one node reports a file that lies in the output folder already.
fn reporting(name: &str) -> Value {
    let report = json!({"images": [{"filename": name, "subfolder": "", "type": "output"}]});
    json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report.to_string()}}})
}

impl Stage {
    /// Starts a workflow with a big output; results go to `output_dir`.
    async fn start_with_output(&self, content: &[u8], output_dir: &Path) -> String {
        fs::write(self.sandbox.output_dir().join("big.bin"), content).unwrap();
        let mut request = self.request(&reporting("big.bin"));
        request["output_dir"] = json!(output_dir);
        self.service.client().accepted(&request).await
    }

    /// Lets the way stand still once a part of some size is in the folder.
    async fn stall_half_way(&self, folder: &Path) -> PathBuf {
        let part = half_way(folder).await;
        self.sandbox.faults().stall_ssh(true);
        part
    }

    async fn ended(&self, id: &str) -> Value {
        self.service.client().wait_for_end(id, PATIENCE).await
    }

    /// Asks to download, and waits until the workflow is completed.
    async fn completed_later(&self, id: &str) -> Value {
        let (status, answer) = self.service.client().download(id).await;
        assert_eq!((status.as_u16(), &answer["message"]), (200, &json!("Download started")), "{answer}");
        assert_eq!(answer["outputs"][0]["filename"], "big.bin", "{answer}");
        let is_completed = |progress: &Value| progress["status"] == "completed";
        self.service.client().wait_after_the_end(id, "completed", PATIENCE, is_completed).await
    }
}

/// Waits for a part that has begun to grow.
async fn half_way(folder: &Path) -> PathBuf {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for part in parts(folder) {
            if fs::metadata(&part).is_ok_and(|meta| meta.len() > 3_000_000) {
                return part;
            }
        }
        assert!(Instant::now() < deadline, "no part comes into being");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn parts(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().ends_with(".part")).collect()
}

fn assert_is_here(done: &Value, content: &[u8]) {
    let local = PathBuf::from(done["outputs"][0]["local_path"].as_str().unwrap_or_else(|| panic!("{done:#}")));
    assert!(fs::read(&local).unwrap() == content, "{} has other content", local.display());
    assert_eq!(parts(local.parent().unwrap()), Vec::<PathBuf>::new());
}

fn assert_failed(failed: &Value, code: &str, words: &[&str]) {
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!(code)), "{failed:#}");
    let message = failed["error_message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{word} in {message}");
    }
}

/// As [`assert_failed`], after a download that failed; what is listed is not here, and nothing half-done is either.
fn assert_not_here(failed: &Value, folder: &Path, code: &str, words: &[&str]) {
    assert_failed(failed, code, words);
    let (output, hint) = (&failed["outputs"][0], format!("POST /comfyui/workflow/{}/download", id_of(failed)));
    assert_eq!((&output["downloaded"], &output["local_path"]), (&json!(false), &Value::Null));
    assert!(failed["error_message"].as_str().unwrap().contains(&hint), "{failed:#}");
    assert_eq!(parts(folder), Vec::<PathBuf>::new());
}

fn id_of(progress: &Value) -> &str {
    progress["workflow_id"].as_str().unwrap()
}

/// The default asks for more room than a small tmpfs has.
async fn stage_that_looks_for_no_room() -> Stage {
    Stage::configured(SandboxOptions::default(), &[("limits.min_free_bytes", 0.into())]).await
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    for with_sftp in [true, false] {
        let stage = Stage::with(SandboxOptions { sftp: with_sftp, ..SandboxOptions::default() }).await;
        stage.sandbox.faults().cut_ssh_after(CUT);
        let content = content(1);
        let id = stage.start_with_output(&content, &stage.service.output_dir()).await;
        assert_is_here(&stage.completed(&id).await, &content);
        let passed = stage.sandbox.ssh_bytes();
        assert!(passed < BIG as u64 + SLACK, "{passed} bytes passed for a file of {BIG}, with SFTP: {with_sftp}");
    }
}

#[tokio::test]
async fn a_killed_service_goes_on_with_a_download_where_it_was() {
    let mut stage = Stage::new().await;
    let (content, folder) = (content(1), stage.service.output_dir());
    let id = stage.start_with_output(&content, &folder).await;
    let part = stage.stall_half_way(&folder).await;
    stage.service.kill();
    let (here, passed) = (fs::metadata(&part).unwrap().len(), stage.sandbox.ssh_bytes());
    stage.sandbox.faults().stall_ssh(false);
    stage.service.launch();
    assert_is_here(&stage.completed(&id).await, &content);
    assert_eq!(stage.sandbox.engine().submissions(), 1);
    let passed = stage.sandbox.ssh_bytes() - passed;
    assert!(passed < BIG as u64 - here + 2_000_000, "{passed} bytes passed, and {here} of {BIG} were here");
}

#[tokio::test]
async fn a_file_that_changed_on_the_box_is_fetched_anew() {
    for with_sftp in [true, false] {
        let mut stage = Stage::with(SandboxOptions { sftp: with_sftp, ..SandboxOptions::default() }).await;
        let folder = stage.service.output_dir();
        let id = stage.start_with_output(&content(1), &folder).await;
        stage.stall_half_way(&folder).await;
        stage.service.kill();
        let other = content(2);
        fs::write(stage.sandbox.output_dir().join("big.bin"), &other).unwrap();
        stage.sandbox.faults().stall_ssh(false);
        stage.service.launch();
        assert_is_here(&stage.completed(&id).await, &other);
    }
}

#[tokio::test]
async fn a_file_that_changes_under_way_is_fetched_anew_also_without_checksums() {
    for with_sftp in [true, false] {
        let stage = Stage::with(SandboxOptions { sftp: with_sftp, ..SandboxOptions::default() }).await;
        let (folder, other) = (stage.service.output_dir(), content(2));
        let id = stage.start_with_output(&content(1), &folder).await;
        stage.stall_half_way(&folder).await;
        let file = stage.sandbox.output_dir().join("big.bin");
        fs::write(&file, &other).unwrap();
        // SFTP tells whole seconds: within one of them, and of one size, two contents look the same.
        let later = std::time::SystemTime::now() + Duration::from_secs(2);
        fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        stage.sandbox.faults().stall_ssh(false);
        assert_is_here(&stage.completed(&id).await, &other);
    }
}

#[tokio::test]
async fn bytes_that_do_not_belong_together_are_noticed_by_the_boxs_checksum() {
    let Some(far) = FarEnd::start(Kind::OpenSsh).await else { return };
    let mut service = Service::start(&[]);
    let (content, folder) = (content(1), service.output_dir());
    fs::write(far.output_dir().join("big.bin"), &content).unwrap();
    let id = service.client().accepted(&far.request(service.folder(), &reporting("big.bin"))).await;
    half_way(&folder).await;
    service.kill();
    let [part] = parts(&folder).try_into().expect("killed before it was whole");
    let mut begun = fs::read(&part).unwrap();
    assert!(begun.len() < BIG);
    begun[1_000_000] ^= 1;
    fs::write(&part, begun).unwrap();
    service.launch();
    let done = service.client().wait_for_status(&id, "completed", PATIENCE).await;
    assert_is_here(&done, &content);
    // It was noticed on the way.
    service.says("differs from the file on the box").await;
}

#[tokio::test]
async fn a_cut_upload_goes_on_where_it_was() {
    let stage = Stage::new().await;
    stage.sandbox.faults().cut_ssh_after(CUT);
    let (content, input) = (content(1), stage.service.folder().join("big.bin"));
    fs::write(&input, &content).unwrap();
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["input_images"] = json!([input]);
    let id = stage.service.client().accepted(&request).await;
    stage.completed(&id).await;
    assert!(fs::read(stage.sandbox.input_dir().join("big.bin")).unwrap() == content);
    assert_eq!(parts(stage.sandbox.input_dir()), Vec::<PathBuf>::new());
    let passed = stage.sandbox.ssh_bytes();
    assert!(passed < BIG as u64 + SLACK, "{passed} bytes passed for a file of {BIG}");
}

#[tokio::test]
async fn a_file_without_room_fails_at_once_and_comes_when_there_is() {
    let Some(disk) = Tmpfs::mount(20) else { return };
    let stage = stage_that_looks_for_no_room().await;
    let content = content(1);
    let id = stage.start_with_output(&content, disk.path()).await;
    let failed = stage.ended(&id).await;
    assert_not_here(&failed, disk.path(), "disk_full", &["big.bin", "38.15 MiB", disk.path().to_str().unwrap()]);
    assert!(stage.sandbox.ssh_bytes() < 3_000_000, "none of it was fetched");

    // Still no room: the reason stays in sight.
    disk.remount("size=30m");
    stage.service.client().download(&id).await;
    let told =
        |progress: &Value| progress["error_message"].as_str().is_some_and(|text| text.contains("30.00 MiB free"));
    let still = stage.service.client().wait_after_the_end(&id, "the reason", PATIENCE, told).await;
    assert_eq!(still["error_code"], "disk_full");

    disk.remount("size=100m");
    let done = stage.completed_later(&id).await;
    assert_is_here(&done, &content);
    assert_eq!((&done["error_code"], &done["progress_percent"]), (&Value::Null, &json!(100.0)));
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_ends_in_disk_full() {
    let Some(disk) = Tmpfs::mount(60) else { return };
    let stage = stage_that_looks_for_no_room().await;
    let content = content(1);
    let id = stage.start_with_output(&content, disk.path()).await;
    stage.stall_half_way(disk.path()).await;
    let filler = disk.fill();
    stage.sandbox.faults().stall_ssh(false);
    assert_not_here(&stage.ended(&id).await, disk.path(), "disk_full", &["big.bin", disk.path().to_str().unwrap()]);
    fs::remove_file(filler).unwrap();
    assert_is_here(&stage.completed_later(&id).await, &content);
}

#[tokio::test]
async fn a_folder_that_became_unwritable_ends_in_download_failed() {
    let Some(disk) = Tmpfs::mount(60) else { return };
    let stage = stage_that_looks_for_no_room().await;
    let content = content(1);
    let hold = stage.sandbox.faults().hold_before("1");
    let id = stage.start_with_output(&content, disk.path()).await;
    hold.reached().await;
    disk.remount("ro");
    hold.release();
    let words = ["big.bin", disk.path().to_str().unwrap(), "Read-only"];
    assert_not_here(&stage.ended(&id).await, disk.path(), "download_failed", &words);
    disk.remount("rw");
    assert_is_here(&stage.completed_later(&id).await, &content);
}

#[tokio::test]
async fn a_folder_that_vanished_ends_in_download_failed() {
    let stage = Stage::new().await;
    let (content, folder) = (content(1), stage.service.folder().join("mine"));
    let id = stage.start_with_output(&content, &folder).await;
    stage.stall_half_way(&folder).await;
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "a file in its place").unwrap();
    stage.sandbox.faults().stall_ssh(false);
    assert_not_here(&stage.ended(&id).await, &folder, "download_failed", &["big.bin", folder.to_str().unwrap()]);
    fs::remove_file(&folder).unwrap();
    assert_is_here(&stage.completed_later(&id).await, &content);
}

#[tokio::test]
async fn a_full_disk_here_is_refused_before_anything_is_on_record() {
    let Some(disk) = Tmpfs::mount(20) else { return };
    let stage = Stage::new().await;
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["output_dir"] = json!(disk.path());
    let (status, answer) = stage.service.client().execute(&request).await;
    let message = answer["message"].as_str().unwrap();
    assert_eq!(status.as_u16(), 400, "{answer}");
    assert!(message.contains(disk.path().to_str().unwrap()) && message.contains("100.00 MiB must be"), "{message}");
    assert_eq!(stage.service.client().state().await.1["state"], Value::Null);
    // A dry run tells it with everything else, also of a folder that is still to be made.
    request["output_dir"] = json!(disk.path().join("new"));
    request["dry_run"] = json!(true);
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!(
        (status.as_u16(), &answer["valid"], &answer["findings"][0]["code"]),
        (200, &json!(false), &json!("disk_full")),
        "{answer}"
    );
}

#[tokio::test]
async fn a_disk_here_that_is_full_by_the_time_of_submission_is_noticed() {
    let Some(disk) = Tmpfs::mount(150) else { return };
    let stage = Stage::new().await;
    stage.sandbox.faults().stall_ssh(true);
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["output_dir"] = json!(disk.path());
    let id = stage.service.client().accepted(&request).await;
    disk.fill();
    stage.sandbox.faults().stall_ssh(false);
    let failed = stage.ended(&id).await;
    assert_failed(&failed, "disk_full", &[disk.path().to_str().unwrap(), "100.00 MiB must be"]);
    assert_eq!(stage.sandbox.engine().submissions(), 0);
}

#[tokio::test]
async fn a_full_disk_on_the_box_is_noticed_before_the_submission() {
    let Some(disk) = Tmpfs::mount(20) else { return };
    let stage = Stage::with(SandboxOptions { root: Some(disk.path().join("box")), ..SandboxOptions::default() }).await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let input_dir = stage.sandbox.input_dir().to_str().unwrap().to_owned();
    assert_failed(
        &stage.ended(&id).await,
        "disk_full",
        &["the box has too little room", &input_dir, "100.00 MiB must be"],
    );
    assert_eq!(stage.sandbox.engine().submissions(), 0);
    // There is nothing to fetch of it, and so nothing completes it.
    let (status, answer) = stage.service.client().download(&id).await;
    assert_eq!((status.as_u16(), &answer["outputs"]), (200, &json!([])), "{answer}");
    assert_eq!(stage.service.client().progress(&id).await["status"], "failed");
}

#[tokio::test]
async fn download_answers_for_every_workflow() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let (status, answer) = client.download("nope").await;
    assert_eq!((status.as_u16(), &answer["message"]), (404, &json!("Workflow not found: nope")));

    let hold = stage.sandbox.faults().hold_before("2");
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    hold.reached().await;
    let (status, answer) = client.download(&id).await;
    assert_eq!((status.as_u16(), &answer["message"]), (409, &json!(format!("Workflow is still active: {id}"))));
    hold.release();
    let done = stage.completed(&id).await;
    let nothing = json!({"success": true, "message": "Nothing to download: every output is here", "workflow_id": id, "outputs": []});
    assert_eq!(client.download(&id).await.1, nothing);
    assert_eq!(client.progress(&id).await, done);
}

#[tokio::test]
async fn a_cancelled_workflow_can_be_downloaded_and_stays_cancelled() {
    let mut stage = Stage::new().await;
    let (client, folder, content) = (stage.service.client(), stage.service.output_dir(), content(1));
    let id = stage.start_with_output(&content, &folder).await;
    client.wait_for(&id, "downloading", PATIENCE, |progress| progress["phase"] == "downloading").await;
    client.cancel(&id).await;
    let cancelled = client.wait_for_status(&id, "cancelled", PATIENCE).await;
    assert_eq!((&cancelled["outputs"][0]["downloaded"], parts(&folder).len()), (&json!(false), 0));

    let (_, first) = client.download(&id).await;
    let expected =
        json!({"success": true, "message": "Download started", "workflow_id": id, "outputs": cancelled["outputs"]});
    assert_eq!(first, expected);
    stage.stall_half_way(&folder).await;
    assert_eq!(client.download(&id).await.1, expected, "asked while it is under way");
    stage.sandbox.faults().stall_ssh(false);
    let is_here = |progress: &Value| progress["outputs"][0]["downloaded"] == true;
    let done = client.wait_after_the_end(&id, "the output", PATIENCE, is_here).await;
    assert_is_here(&done, &content);
    assert_eq!((&done["status"], &done["end_time"]), (&json!("cancelled"), &cancelled["end_time"]));
    stage.service.terminate(PATIENCE);
    let log = stage.service.log();
    let ends = ["fetched what was missing", "a later download is left undone"].map(|end| log.matches(end).count());
    assert_eq!(ends, [1, 0], "two requests, one download");
}

/// A run that was given up because the box is out of reach, and that stands still there while it is held.
async fn given_up() -> (Stage, Hold, Value) {
    let stage = Stage::with_settings(&[("limits.unreachable_limit_s", 1.into())]).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(&graphs::slow(&tag(), 2, 1)).await;
    hold.reached().await;
    stage.sandbox.faults().refuse_ssh(true);
    stage.sandbox.faults().cut_ssh();
    let failed = stage.service.client().wait_for_status(&id, "failed", PATIENCE).await;
    (stage, hold, failed)
}

#[tokio::test]
async fn what_a_run_left_that_was_given_up_can_be_downloaded() {
    let (stage, hold, failed) = given_up().await;
    let (client, id) = (stage.service.client(), id_of(&failed).to_owned());
    assert_failed(&failed, "ssh_unreachable", &["the run may go on there", "download"]);
    assert_eq!(failed["outputs"], json!([]));
    hold.release();
    stage.sandbox.faults().refuse_ssh(false);
    let in_history = async || (!stage.sandbox.engine().history_ids().is_empty()).then_some(());
    eventually("the end of the run", in_history).await;

    let (status, answer) = client.download(&id).await;
    assert_eq!((status.as_u16(), &answer["message"]), (200, &json!("Asking the box what the run has left")));
    let is_here = |progress: &Value| progress["outputs"][0]["downloaded"] == true;
    let done = client.wait_after_the_end(&id, "the output", PATIENCE, is_here).await;
    assert_eq!((&done["status"], &done["error_code"]), (&json!("failed"), &json!("ssh_unreachable")));
    let file = PathBuf::from(done["outputs"][0]["local_path"].as_str().unwrap());
    let content = fs::read(&file).unwrap();

    // And once more, when it was lost here.
    fs::remove_file(&file).unwrap();
    let (_, answer) = client.download(&id).await;
    assert_eq!((&answer["message"], &answer["outputs"][0]["downloaded"]), (&json!("Download started"), &json!(false)));
    let again = async || fs::read(&file).is_ok_and(|found| found == content).then_some(());
    eventually("the file", again).await;
    client.wait_after_the_end(&id, "the output", PATIENCE, is_here).await;
}

#[tokio::test]
async fn a_later_download_asks_the_box_in_vain_where_it_knows_nothing() {
    let (stage, _hold, failed) = given_up().await;
    let (client, id) = (stage.service.client(), id_of(&failed).to_owned());
    stage.sandbox.faults().refuse_ssh(false);
    client.download(&id).await;
    let told = |words: &'static str| move |progress: &Value| progress["warnings"].to_string().contains(words);
    client.wait_after_the_end(&id, "that it runs", PATIENCE, told("not over on the box")).await;
    stage.sandbox.engine().restart().await.unwrap();
    let asked = async || {
        client.download(&id).await;
        told("the box knows of no result")(&client.progress(&id).await).then_some(())
    };
    eventually("that nothing is known", asked).await;
}

#[tokio::test]
async fn a_later_download_that_fails_says_so() {
    let stage = Stage::new().await;
    let (client, folder) = (stage.service.client(), stage.service.output_dir());
    let id = stage.start_with_output(&content(1), &folder).await;
    client.wait_for(&id, "downloading", PATIENCE, |progress| progress["phase"] == "downloading").await;
    client.cancel(&id).await;
    client.wait_for_status(&id, "cancelled", PATIENCE).await;
    fs::remove_file(stage.sandbox.output_dir().join("big.bin")).unwrap();
    client.download(&id).await;
    let told = |progress: &Value| progress["warnings"].to_string().contains("no longer on the box: big.bin");
    assert_eq!(client.wait_after_the_end(&id, "the reason", PATIENCE, told).await["status"], "cancelled");
    assert_eq!(parts(&folder), Vec::<PathBuf>::new());
}
