//! `comfy-remote check`, as people and scripts use it.

use std::{
    fs,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    graphs::{self, tag},
    sandbox_stage::Stage,
};

pub(crate) async fn check(stage: &Stage, graph: &Value, more: &[&str]) -> Output {
    let file = stage.service.folder().join("checked.json");
    fs::write(&file, graph.to_string()).unwrap();
    let port = stage.sandbox.comfyui_port().to_string();
    let (connection, home) = (stage.sandbox.ssh_connection(), stage.service.folder().to_owned());
    let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
    command.args(["check", "--ssh", &connection, "--port", &port]).args(more).arg(&file);
    command.env("HOME", &home).current_dir(&home).kill_on_drop(true);
    command.output().await.unwrap()
}

#[tokio::test]
async fn check_tells_people_and_scripts_whether_a_workflow_would_run() {
    let stage = Stage::new().await;
    let graph = graphs::slow(&tag(), 1, 1);
    let fine = check(&stage, &graph, &[]).await;
    let told = String::from_utf8(fine.stdout).unwrap();
    assert_eq!(fine.status.code(), Some(0), "{told}{}", String::from_utf8_lossy(&fine.stderr));
    assert!(told.contains("would run: 2 RigSlowSteps") && told.ends_with("would run: 3 nodes\n"), "{told}");
    let mut wrong = graph.clone();
    wrong["3"]["inputs"]["images"] = json!(["7", 0]);
    let found = check(&stage, &wrong, &["--json"]).await;
    let told: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((found.status.code(), &told["valid"]), (Some(1), &json!(false)), "{told}");
    assert_eq!(told["findings"][0]["code"], "missing_link_source");
    let found = check(&stage, &wrong, &[]).await;
    let told = String::from_utf8(found.stdout).unwrap();
    assert!(
        told.starts_with("error: node 3 (SaveImage): images is linked to node \"7\"")
            && told.ends_with("would not run: 1 error\n")
            && !told.contains("would run:"),
        "{told}"
    );
    for more in [["-i", "/nowhere/photo.png"], ["--config", "/nowhere/config.toml"], ["--comfyui-output-dir", "rel"]] {
        let impossible = check(&stage, &graph, &more).await;
        assert_eq!(impossible.status.code(), Some(2), "{more:?}");
        assert!(String::from_utf8(impossible.stderr).unwrap().starts_with("comfy-remote: "), "{more:?}");
    }
}

#[tokio::test]
async fn check_looks_at_what_a_run_may_be_told() {
    let stage = Stage::new().await;
    let graph = graphs::slow(&tag(), 1, 1);
    let folder = stage.service.folder().join("elsewhere");
    let more = ["--parameter", "2.steps=x", "--randomize-seeds", "--output-dir", folder.to_str().unwrap(), "--json"];
    let told: Value = serde_json::from_slice(&check(&stage, &graph, &more).await.stdout).unwrap();
    let finding = &told["findings"][0];
    assert_eq!((&finding["code"], &finding["input"]), (&json!("invalid_input_type"), &json!("steps")), "{told:#}");
    assert_eq!(told["outputs"][0]["folder"], json!(folder));
    let (input, output) = (stage.sandbox.input_dir(), stage.sandbox.output_dir());
    let folders = ["--comfyui-input-dir", input.to_str().unwrap(), "--comfyui-output-dir", output.to_str().unwrap()];
    let more = [["--parameter", "2.steps=2", "--parameter", "3.filename_prefix=a cat"], folders].concat();
    let fine = check(&stage, &graph, &more).await;
    assert_eq!(fine.status.code(), Some(0), "{}", String::from_utf8_lossy(&fine.stdout));
}

#[tokio::test]
async fn a_check_that_cannot_be_made_or_told_ends_with_2() {
    let stage = Stage::new().await;
    let file = stage.service.folder().join("checked.json");
    fs::write(&file, graphs::slow(&tag(), 1, 1).to_string()).unwrap();
    let (connection, port) = (stage.sandbox.ssh_connection(), stage.sandbox.comfyui_port().to_string());
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
        command.args(["check", "--ssh", &connection, file.to_str().unwrap()]).args(more);
        command.env("HOME", stage.service.folder()).kill_on_drop(true);
        command
    };
    for (wrong, expected) in [(["--port", "0"], "0 is not in 1..=65535"), (["--parameter", "2.steps"], "it has no =")] {
        let ended = command(&wrong).output().await.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(2) && said.contains(expected), "{wrong:?}: {said}");
    }
    let full = fs::File::create("/dev/full").unwrap();
    let child = command(&["--port", &port]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().await.unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.starts_with("comfy-remote: the result could not be written: "), "{said}");
}
