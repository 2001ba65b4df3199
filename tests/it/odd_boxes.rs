//! Boxes that lack something, say something strange, or go away in the middle.

use std::{fs, path::PathBuf, time::Duration};

use comfy_remote::sandbox::{LostAnswer, Page, Sandbox, SandboxOptions, WriteFault};
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    loopback::Deaf,
    sandbox_stage::{PATIENCE, Stage},
    support::{
        service::Service,
        sshd::{HostKey, Sshd, SshdOptions},
    },
};

impl Stage {
    async fn run(&self, graph: &Value) -> Value {
        let id = self.start(graph).await;
        self.service.client().wait_for_end(&id, PATIENCE).await
    }

    fn photo(&self, name: &str) -> PathBuf {
        let path = self.service.folder().join(name);
        fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &path).unwrap();
        path
    }

    async fn run_with_photo(&self) -> Value {
        let (tag, photo) = (tag(), self.photo("photo.png"));
        let mut request = self.request(&graphs::invert(&tag, "photo.png"));
        request["input_images"] = json!([photo]);
        let id = self.service.client().accepted(&request).await;
        self.service.client().wait_for_end(&id, PATIENCE).await
    }
}

/// A node that reports these outputs, and writes files where `_text` says so.
fn reporting(outputs: &Value) -> Value {
    json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": outputs.to_string()}}})
}

fn warnings(progress: &Value) -> String {
    progress["warnings"].to_string()
}

#[tokio::test]
async fn files_of_every_kind_arrive_with_their_type() {
    let stage = Stage::new().await;
    let item = |name: &str, subfolder: &str| json!({"filename": name, "subfolder": subfolder, "type": "output", "_text": name});
    let done = stage
        .run(&reporting(&json!({
            "images": [item("a.png", ""), item("a.mp4", "video")],
            "animated": [true],
            "gifs": [{"filename": "clip.webm", "subfolder": "", "type": "output", "_text": "clip.webm",
                      "format": "video/webm", "fullpath": "/etc/passwd"}],
            "audio": [item("a.flac", "audio")],
            "3d": [item("mesh.glb", "3d")],
            "files": [item("table.csv", ""), item("weights.latent", "")],
            "text": ["a caption", "and another"],
            "tags": [0.5, null, {"nested": [1]}],
        })))
        .await;
    assert_eq!(done["status"], "completed", "{done:#}");
    let mut seen: Vec<(String, String)> = Vec::new();
    for output in done["outputs"].as_array().unwrap() {
        let local = output["local_path"].as_str().unwrap();
        assert_eq!(fs::read_to_string(local).unwrap(), output["filename"].as_str().unwrap());
        let text = |field: &str| output[field].as_str().unwrap().to_owned();
        seen.push((text("filename"), text("file_type")));
    }
    seen.sort();
    let expected = [
        ("a.flac", "audio"),
        ("a.mp4", "video"),
        ("a.png", "image"),
        ("clip.webm", "video"),
        ("mesh.glb", "3d"),
        ("table.csv", "text"),
        ("weights.latent", "file"),
    ];
    assert_eq!(seen, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    assert_eq!(done["texts"], json!([{"node_id": "1", "text": "a caption"}, {"node_id": "1", "text": "and another"}]));
}

#[tokio::test]
async fn hostile_names_write_nothing_outside_the_output_folder() {
    let stage = Stage::new().await;
    let before = list(stage.service.folder());
    for (filename, subfolder) in [
        ("../../escaped.png", ""),
        ("escaped.png", "../.."),
        ("/tmp/escaped-by-absolute-name.png", ""),
        ("escaped.png", "/tmp"),
        ("a\u{0}b.png", ""),
        ("a\nb.png", ""),
    ] {
        let report = json!({"images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]});
        let failed = stage.run(&reporting(&report)).await;
        assert_eq!(failed["status"], "failed", "{filename:?} {subfolder:?}: {failed:#}");
        let code = failed["error_code"].as_str().unwrap();
        assert!(matches!(code, "path_refused" | "download_failed"), "{filename:?}: {failed:#}");
        assert_eq!(failed["outputs"][0]["downloaded"], false);
    }
    let new: Vec<_> = list(stage.service.folder()).into_iter().filter(|path| !before.contains(path)).collect();
    assert!(new.iter().all(|path| !path.to_string_lossy().contains("escaped")), "{new:?}");
    assert!(!std::path::Path::new("/tmp/escaped-by-absolute-name.png").exists());
}

fn list(folder: &std::path::Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[tokio::test]
async fn without_sftp_comfyuis_own_routes_serve() {
    let stage = Stage::with(SandboxOptions { sftp: false, ..SandboxOptions::default() }).await;
    let done = stage.run_with_photo().await;
    assert_eq!(done["status"], "completed", "{done:#}");
    assert!(warnings(&done).contains("uploaded through ComfyUI instead of SFTP"), "{}", warnings(&done));
    assert!(warnings(&done).contains("downloaded through ComfyUI instead of SFTP"), "{}", warnings(&done));
}

#[tokio::test]
async fn an_input_folder_that_takes_nothing_is_survived() {
    let stage = Stage::new().await;
    stage.sandbox.faults().fail_writes(Some(WriteFault::PermissionDenied));
    let done = stage.run_with_photo().await;
    assert_eq!(done["status"], "completed", "{done:#}");
    assert!(warnings(&done).contains("uploaded through ComfyUI"), "{}", warnings(&done));
}

#[tokio::test]
async fn a_box_that_forbids_forwarding_is_told_apart() {
    let stage = Stage::with(SandboxOptions { forwarding: false, ..SandboxOptions::default() }).await;
    let (status, answer) = stage.service.client().execute(&stage.request(&graphs::preview(&tag()))).await;
    assert_eq!(status.as_u16(), 500, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.starts_with("Failed to create SSH tunnel: ") && message.contains("forward"), "{message}");
    let failed = stage.service.client().progress(answer["workflow_id"].as_str().unwrap()).await;
    assert_eq!(failed["error_code"], "ssh_forwarding_refused");
}

#[tokio::test]
async fn a_lost_answer_to_the_submission_does_not_run_the_prompt_twice() {
    for how in [LostAnswer::Cut, LostAnswer::Never] {
        let stage = Stage::new().await;
        stage.sandbox.faults().lose_submit_answers(2, how);
        // The run is over before it is looked for, or still on: both are found.
        for steps in [1, 200] {
            let done = stage.run(&graphs::slow(&tag(), steps, 50)).await;
            assert_eq!((&done["status"], &done["attempt"]), (&json!("completed"), &json!(1)), "{done:#}");
        }
        assert_eq!(stage.sandbox.engine().submissions(), 2, "{how:?}");
    }
}

#[tokio::test]
async fn a_lost_prompt_runs_once_more_if_so_wished() {
    let mut stage = Stage::new().await;
    stage.service.terminate(Duration::from_secs(10));
    stage.service.configure(&[("limits.resubmit_lost", true.into())]);
    stage.service.launch();
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 20, 20)).await;
    hold.reached().await;
    let first = stage.service.client().progress(&id).await;
    stage.sandbox.engine().restart().await.unwrap();
    let done = stage.completed(&id).await;
    assert_eq!(done["attempt"], 2);
    assert_ne!(done["prompt_id"], first["prompt_id"]);
    assert!(warnings(&done).contains("runs once more"), "{}", warnings(&done));
}

#[tokio::test]
async fn a_deaf_socket_is_noticed_and_replaced() {
    let stage = Stage::new().await;
    let before = stage.sandbox.engine().hold_at_step("2", 1);
    let foreign = stage.start(&graphs::slow(&tag(), 2, 1)).await;
    before.reached().await;
    // Its socket is open, and tells nothing of the run that begins.
    let id = stage.start(&graphs::slow(&tag(), 3000, 10)).await;
    let queued = |progress: &Value| progress["queue_position"] == 1;
    stage.service.client().wait_for(&id, "its place in line", PATIENCE, queued).await;
    stage.sandbox.faults().deafen(true);
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    before.release();
    hold.reached().await;
    stage.service.client().wait_for(&id, "the run", PATIENCE, |progress| progress["status"] == "executing").await;
    stage.sandbox.faults().deafen(false);
    // Nothing is said while the node is held, except to a socket that is new: which node runs.
    let known = |progress: &Value| progress["current_node_id"] == "2";
    stage.service.client().wait_for(&id, "the node, over a new socket", PATIENCE, known).await;
    drop(hold);
    stage.service.client().cancel(&id).await;
    stage.completed(&foreign).await;
}

#[tokio::test]
async fn what_stands_in_front_of_comfyui_is_named() {
    for (page, expected) in [(Page::Login, "HTML"), (Page::Unauthorized, "401"), (Page::Redirect, "redirect")] {
        let stage = Stage::new().await;
        stage.sandbox.faults().answer_with(Some(page));
        let failed = stage.run(&graphs::preview(&tag())).await;
        let message = failed["error_message"].as_str().unwrap();
        assert!(message.starts_with("could not reach ComfyUI on port ") && message.contains(expected), "{message}");
        assert_eq!(failed["error_code"], "comfyui_unreachable");
    }
}

/// A box takes logins long before its ComfyUI has started.
#[tokio::test]
async fn a_comfyui_that_is_still_starting_is_waited_for_and_the_cause_is_told() {
    let stage = Stage::with_settings(&[("limits.comfyui_start_s", 60.into())]).await;
    stage.sandbox.engine().kill().await;
    let id = stage.start(&graphs::preview(&tag())).await;
    let told = |progress: &Value| {
        let connection = &progress["connection"];
        progress["status"] == "queued"
            && connection["cause"].as_str().is_some_and(|cause| cause.contains("nothing listens"))
    };
    let client = stage.service.client();
    let waiting = client.wait_for(&id, "the cause", PATIENCE, told).await;
    assert_eq!(waiting["connection"]["state"], "reconnecting", "{waiting:#}");
    stage.sandbox.engine().revive().await.unwrap();
    let done = stage.completed(&id).await;
    assert_eq!(done["warnings"], json!([]), "{done:#}");
}

#[tokio::test]
async fn a_comfyui_on_its_usual_port_is_pointed_out() {
    let usual = async |comfyui_port| Sandbox::start(SandboxOptions { comfyui_port, ..SandboxOptions::default() }).await;
    let sandbox = match usual(8188).await {
        Ok(sandbox) => sandbox,
        Err(_) => usual(18188).await.expect("one of ComfyUI's usual ports is free"),
    };
    let stage = Stage { sandbox, service: Service::start(&[]) };
    let mut request = stage.request(&graphs::preview(&tag()));
    let deaf = Deaf::new();
    let closed = deaf.port;
    request["comfyui_port"] = json!(closed);
    let id = stage.service.client().accepted(&request).await;
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    let message = failed["error_message"].as_str().unwrap();
    let hint = format!("ComfyUI answers on port {}", stage.sandbox.comfyui_port());
    assert!(message.starts_with(&format!("could not reach ComfyUI on port {closed}")), "{message}");
    assert!(message.contains(&hint), "{message}");
}

#[tokio::test]
async fn a_comfyui_that_is_still_starting_is_waited_for() {
    let stage = Stage::new().await;
    stage.sandbox.engine().kill().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let connecting = |progress: &Value| progress["phase"] == "connecting";
    stage.service.client().wait_for(&id, "the tunnel", PATIENCE, connecting).await;
    stage.sandbox.engine().revive().await.unwrap();
    stage.completed(&id).await;
}

#[tokio::test]
async fn an_interrupt_that_gets_lost_is_repeated() {
    let stage = Stage::new().await;
    stage.sandbox.faults().lose_interrupts(1);
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 5000, 20)).await;
    hold.reached().await;
    hold.release();
    stage.service.client().cancel(&id).await;
    let (status, answer) = stage.service.client().cancel(&id).await;
    assert_eq!(status.as_u16(), 200, "a second cancel while the first is under way: {answer}");
    stage.service.client().wait_for_status(&id, "cancelled", PATIENCE).await;
    assert_eq!(stage.sandbox.engine().running(), None);
}

#[tokio::test]
async fn a_changed_host_key_is_refused_and_the_message_names_the_line() {
    if !Sshd::available() {
        crate::support::skip("sshd", "no OpenSSH server is installed");
        return;
    }
    let mut sshd = Sshd::start(SshdOptions::default());
    let stage = Stage::new().await;
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["ssh_connection"] = json!(sshd.connection());
    let id = stage.service.client().accepted(&request).await;
    stage.completed(&id).await;
    sshd.restart(HostKey::New);
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!(status.as_u16(), 500, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("host key") && message.contains("changed") && message.contains("line 1"), "{message}");
    assert!(message.contains(sshd.known_hosts().to_str().unwrap()), "{message}");
    let failed = stage.service.client().progress(answer["workflow_id"].as_str().unwrap()).await;
    assert_eq!(failed["error_code"], "ssh_host_key_changed");
}

#[tokio::test]
async fn a_key_that_is_refused_is_listed() {
    if !Sshd::available() {
        crate::support::skip("sshd", "no OpenSSH server is installed");
        return;
    }
    let (right, wrong) = (Sshd::start(SshdOptions::default()), Sshd::start(SshdOptions::default()));
    let stage = Stage::new().await;
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    let key = wrong.client_key();
    let right_key = right.client_key().display().to_string();
    request["ssh_connection"] = json!(right.connection().replace(&right_key, &key.display().to_string()));
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!(status.as_u16(), 500, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains(key.to_str().unwrap()) && message.contains("SHA256:"), "{message}");
    let failed = stage.service.client().progress(answer["workflow_id"].as_str().unwrap()).await;
    assert_eq!(failed["error_code"], "ssh_auth");
}

#[tokio::test]
async fn many_workflows_share_two_ssh_connections() {
    if !Sshd::available() {
        crate::support::skip("sshd", "no OpenSSH server is installed");
        return;
    }
    let sshd = Sshd::start(SshdOptions::default());
    let stage = Stage::new().await;
    let client = stage.service.client();
    let mut requests = Vec::new();
    for _ in 0..20 {
        let mut request = stage.request(&graphs::batch(&tag(), 3, &tag()));
        request["ssh_connection"] = json!(sshd.connection());
        requests.push(request);
    }
    let ids = futures_util::future::join_all(requests.iter().map(|request| client.accepted(request))).await;
    for id in &ids {
        stage.completed(id).await;
    }
    let logins = sshd.log().matches("Accepted publickey").count();
    assert_eq!(logins, 2, "one for the tunnel, one for files:\n{}", sshd.log());
}
