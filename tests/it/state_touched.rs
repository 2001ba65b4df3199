//! Others remove, replace or change the files of the state while the service runs, or start a second one.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    sandbox_stage::Stage,
    support::{SOON, eventually, service::Service},
};

impl Stage {
    pub(crate) async fn health(&self) -> (StatusCode, Value) {
        self.service.client().get("/health").await
    }

    /// Waits until a reason with these words is among those of `/health`.
    pub(crate) async fn sick_because(&self, words: &str) {
        let sick = eventually(words, async || {
            let (status, health) = self.health().await;
            let reasons = health["reasons"].as_array().cloned().unwrap_or_default();
            let found = reasons.iter().any(|reason| reason.as_str().is_some_and(|reason| reason.contains(words)));
            found.then_some((status, health))
        });
        let (status, health) = sick.await;
        assert_eq!((status, &health["success"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)), "{health}");
        let words = health.to_string();
        assert!(!words.contains('/') && !words.contains("comfyui_workflow_"), "no paths, no ids: {words}");
    }

    pub(crate) async fn healthy_again(&self) {
        let well = (StatusCode::OK, json!({"success": true, "status": "ok"}));
        eventually("good health", async || (self.health().await == well).then_some(())).await;
    }

    /// Waits until the state file is a regular file that has these words in it.
    pub(crate) async fn on_disk(&self, words: &str) {
        let file = self.service.state_file();
        eventually(words, async || {
            let regular = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file());
            (regular && fs::read_to_string(&file).is_ok_and(|text| text.contains(words))).then_some(())
        })
        .await;
    }

    /// A workflow that runs and is held there until the hold is released.
    async fn held(&self) -> (String, comfy_remote::sandbox::Hold) {
        let hold = self.sandbox.engine().hold_at_step("2", 1);
        let id = self.start(&graphs::slow(&tag(), 3, 1)).await;
        hold.reached().await;
        (id, hold)
    }

    fn lock_file(&self) -> PathBuf {
        self.service.state_file().with_file_name("state.json.lock")
    }

    fn graphs_folder(&self) -> PathBuf {
        self.service.state_file().with_file_name("state.json.graphs")
    }

    async fn lock_names(&self, process: u32) {
        let expected = format!("{process}\n");
        let lock = self.lock_file();
        let named = async || fs::read_to_string(&lock).is_ok_and(|holder| holder == expected).then_some(());
        eventually("the lock file to name its holder", named).await;
    }
}

/// Something that others do to a file.
type Touch<'a> = &'a dyn Fn(&Path);

/// What a second service says when it does not start.
async fn refusal(command: Command) -> String {
    let mut command = tokio::process::Command::from(command);
    let ended = tokio::time::timeout(SOON, command.kill_on_drop(true).output()).await.expect("a start that fails");
    let ended = ended.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

/// The same for one that is given another name of the state file.
async fn refusal_named(first: &Service, name: &str) -> String {
    let mut command = first.command();
    command.env("COMFY_REMOTE_STATE__FILE", name);
    refusal(command).await
}

#[tokio::test]
async fn a_state_file_that_others_remove_or_change_is_put_back() {
    let stage = Stage::new().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.completed(&id).await;
    stage.on_disk("\"completed\"").await;
    let (file, precious) = (stage.service.state_file(), stage.service.folder().join("precious"));
    fs::write(&precious, "precious").unwrap();
    let whole = fs::read(&file).unwrap();
    let other_text = String::from_utf8(whole.clone()).unwrap().replace("completed", "cancelled");
    let touches: [(&str, Touch<'_>); 5] = [
        ("removed", &|file| fs::remove_file(file).unwrap()),
        ("replaced by a link", &|file| {
            fs::remove_file(file).unwrap();
            symlink(&precious, file).unwrap();
        }),
        ("cut", &|file| File::options().write(true).open(file).unwrap().set_len(10).unwrap()),
        ("replaced", &|file| {
            fs::write(file.with_extension("other"), "other").unwrap();
            fs::rename(file.with_extension("other"), file).unwrap();
        }),
        ("edited at the same length", &|file| fs::write(file, &other_text).unwrap()),
    ];
    for (what, touch) in touches {
        touch(&file);
        eventually(what, async || {
            let regular = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file());
            (regular && fs::read(&file).is_ok_and(|now| now == whole)).then_some(())
        })
        .await;
    }
    stage.healthy_again().await;
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert_eq!(fs::read_to_string(file.with_file_name("state.json.replaced")).unwrap(), other_text);
    stage.service.says("was removed by somebody else").await;
    stage.service.says("was replaced or changed").await;
}

#[tokio::test]
async fn a_folder_in_the_state_files_place_is_told_and_survived() {
    let stage = Stage::new().await;
    stage.healthy_again().await;
    let (id, hold) = stage.held().await;
    // Every write fails now, also for root.
    let file = stage.service.state_file();
    fs::remove_file(&file).ok();
    fs::create_dir(&file).unwrap();
    stage.sick_because("the state file cannot be written: something else is in the way").await;
    let (status, refused) = stage.service.client().execute(&stage.request(&graphs::slow(&tag(), 1, 1))).await;
    assert_eq!((status, &refused["success"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)), "{refused}");
    let said = refused["message"].as_str().unwrap();
    assert!(
        said.contains("could not be put on record, so it was not started: the state could not be written: "),
        "{said}"
    );
    assert!(said.ends_with("; try again once that is mended"), "{said}");
    hold.release();
    stage.completed(&id).await;
    fs::remove_dir(&file).unwrap();
    // Nothing changes any more: it heals by itself.
    stage.on_disk(r#""lifecycle":"completed""#).await;
    stage.healthy_again().await;
    stage.service.says("going on from memory").await;
    stage.service.says("is as it should be again").await;
}

#[tokio::test]
async fn a_folder_of_the_state_that_is_removed_comes_back_with_everything_in_it() {
    let stage = Stage::new().await;
    let (id, hold) = stage.held().await;
    fs::remove_dir_all(stage.service.state_file().parent().unwrap()).unwrap();
    stage.on_disk(&id).await;
    stage.lock_names(stage.service.process()).await;
    let graph = stage.graphs_folder().join(format!("{id}.json"));
    eventually("the graph", async || graph.is_file().then_some(())).await;
    stage.healthy_again().await;
    let said = refusal(stage.service.command()).await;
    assert!(said.contains(&format!("in use by process {}", stage.service.process())), "{said}");
    hold.release();
    stage.completed(&id).await;
}

#[tokio::test]
async fn a_graph_that_is_removed_or_changed_before_it_is_sent_is_put_back() {
    let stage = Stage::new().await;
    stage.sandbox.faults().stall_ssh(true);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let graph = stage.graphs_folder().join(format!("{id}.json"));
    let whole = fs::read(&graph).unwrap();
    let put_back = async || (fs::read(&graph).is_ok_and(|now| now == whole)).then_some(());
    fs::write(&graph, r#"{"1": {"class_type": "Another", "inputs": {}}}"#).unwrap();
    eventually("the graph as it was", put_back).await;
    fs::remove_dir_all(stage.graphs_folder()).unwrap();
    stage.sandbox.faults().stall_ssh(false);
    stage.completed(&id).await;
    assert_eq!(stage.sandbox.engine().submissions(), 1);
}

#[tokio::test]
async fn a_lock_file_that_is_removed_keeps_a_second_service_out_all_the_same() {
    let stage = Stage::new().await;
    // While it is stopped it can't put the lock file back.
    stage.service.signal(Signal::STOP);
    fs::remove_file(stage.lock_file()).unwrap();
    let said = refusal(stage.service.command()).await;
    assert!(said.contains("state.json is in use by another process"), "{said}");
    stage.service.signal(Signal::CONT);
    stage.lock_names(stage.service.process()).await;
    let said = refusal(stage.service.command()).await;
    assert!(said.contains(&format!("in use by process {}", stage.service.process())), "{said}");
    stage.healthy_again().await;
}

#[tokio::test]
async fn a_service_whose_locks_were_taken_away_writes_nothing_until_it_has_them_back() {
    let stage = Stage::new().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.completed(&id).await;
    stage.service.signal(Signal::STOP);
    fs::remove_file(stage.lock_file()).unwrap();
    fs::remove_dir_all(stage.graphs_folder()).unwrap();
    let mut second = stage.service.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stage.lock_names(second.id()).await;
    let file = stage.service.state_file();
    let identity = || fs::metadata(&file).map(|meta| (meta.ino(), meta.mtime_nsec())).unwrap();
    stage.service.signal(Signal::CONT);
    stage.sick_because("another service uses the same state file").await;
    let of_second = identity();
    let (status, refused) = stage.service.client().execute(&stage.request(&graphs::slow(&tag(), 1, 1))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("is in use by process"), "{refused}");
    assert_eq!(identity(), of_second, "the other one's file is left alone");

    second.kill().unwrap();
    second.wait().unwrap();
    stage.healthy_again().await;
    stage.lock_names(stage.service.process()).await;
    stage.on_disk(&id).await;
}

#[tokio::test]
async fn one_state_file_by_any_of_its_names_has_one_service() {
    let mut service = Service::start(&[]);
    let folder = service.folder().to_owned();
    symlink(folder.join("state"), folder.join("link")).unwrap();
    let own_name = folder.file_name().unwrap().to_str().unwrap();
    let holder = format!("in use by process {}", service.process());
    for name in [
        "state/state.json",
        "./state/../state/state.json",
        "link/state.json",
        &format!("../{own_name}/state/state.json"),
    ] {
        let said = refusal_named(&service, name).await;
        assert!(said.contains(&holder), "{name}: {said}");
    }
    eventually("the first write", async || service.state_file().is_file().then_some(())).await;
    symlink(service.state_file(), folder.join("state.link")).unwrap();
    let said = refusal_named(&service, "state.link").await;
    assert!(said.contains("not a regular file"), "{said}");
    // The lock of a killed service is free at once.
    service.kill();
    service.launch();
}
