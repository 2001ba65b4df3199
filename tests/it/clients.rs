//! The clients that people have: the reference's own JavaScript class and curl script, unchanged, and our examples,
//! against the running service.

use std::{fs, path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    support::{self, service::Service},
};

/// A client run; they look every two seconds.
const PATIENCE: Duration = Duration::from_secs(120);

struct Stage {
    far: FarEnd,
    service: Service,
    workflow: String,
    tag: String,
}

/// The reference's clients send neither port nor folders: those are the service's defaults here.
async fn stage(kind: Kind) -> Option<Stage> {
    let far = FarEnd::start(kind).await?;
    let text = |path: &Path| toml::Value::from(path.to_str().expect("a folder named in UTF-8"));
    let service = Service::start(&[
        ("defaults.comfyui_port", i64::from(far.port()).into()),
        ("defaults.comfyui_input_dir", text(&far.input_dir())),
        ("defaults.comfyui_output_dir", text(&far.output_dir())),
    ]);
    let (workflow, tag) = (service.folder().join("workflow.json"), tag());
    fs::write(&workflow, graphs::slow(&tag, 10, 50).to_string()).unwrap();
    Some(Stage { far, service, workflow: workflow.display().to_string(), tag })
}

impl Stage {
    fn command(&self, program: &str, script: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
            .env("COMFY_REMOTE_URL", self.service.url())
            .env("BASE_URL", self.service.url())
            .env("SSH_CONNECTION", self.far.connection())
            .env("WORKFLOW_FILE", &self.workflow)
            .env("WORKFLOW_NAME", "From a client")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, mut command: Command) -> String {
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("the client ends").unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// What the newest workflow came to.
    async fn newest(&self) -> Value {
        self.service.client().state().await.1["state"].take()
    }

    async fn assert_completed(&self) {
        let newest = self.newest().await;
        assert_eq!((&newest["status"], &newest["workflow_name"]), (&json!("completed"), &json!("From a client")));
        let picture = self.service.output_dir().join(format!("{}_slow_00001_.png", self.tag));
        assert_eq!(newest["outputs"][0]["local_path"], json!(picture));
        assert!(picture.is_file());
    }
}

fn has(program: &str) -> bool {
    let found =
        std::process::Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        support::skip(program, "a client of the API runs on it");
    }
    found
}

async fn javascript(kind: Kind, script: &str) {
    if !has("node") {
        return;
    }
    let Some(stage) = stage(kind).await else { return };
    stage.run(stage.command("node", script)).await;
    stage.assert_completed().await;
}

async fn curl_script(kind: Kind) {
    if !(has("curl") && has("jq")) {
        return;
    }
    let Some(stage) = stage(kind).await else { return };
    let said = stage.run(stage.command("bash", "tests/fixtures/reference-curl.sh")).await;
    assert!(said.contains("Status: completed, Progress: 100"), "{said}");
    stage.assert_completed().await;
}

#[tokio::test]
async fn the_references_own_javascript_class_works_unchanged() {
    javascript(Kind::Sandbox, "tests/js/reference-run.mjs").await;
}

#[tokio::test]
async fn the_references_own_javascript_class_works_on_a_real_comfyui() {
    javascript(Kind::ComfyUi, "tests/js/reference-run.mjs").await;
}

#[tokio::test]
async fn the_references_own_curl_script_works_unchanged() {
    curl_script(Kind::Sandbox).await;
}

#[tokio::test]
async fn the_references_own_curl_script_works_on_a_real_comfyui() {
    curl_script(Kind::ComfyUi).await;
}

#[tokio::test]
async fn our_javascript_client_works() {
    javascript(Kind::Sandbox, "tests/js/client-run.mjs").await;
}

#[tokio::test]
async fn our_curl_script_brings_a_picture_there_and_back() {
    if !(has("curl") && has("jq")) {
        return;
    }
    let Some(stage) = stage(Kind::Sandbox).await else { return };
    let workflow = stage.service.folder().join("invert.json");
    fs::write(&workflow, graphs::invert(&stage.tag, "photo.png").to_string()).unwrap();
    let mut command = stage.command("bash", "examples/run.sh");
    command.arg(stage.far.connection()).arg(&workflow);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/photo.png"));
    let said = stage.run(command).await;
    let picture = stage.service.output_dir().join(format!("{}_inverted_00001_.png", stage.tag));
    assert!(picture.is_file() && said.contains(picture.to_str().unwrap()), "{said}");
}
