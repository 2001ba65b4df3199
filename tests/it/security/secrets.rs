//! Secrets stay where they are: in key files, passphrase files and the private folder of graphs.

use std::{fs, process::Command};

use serde_json::json;

use super::text;
use crate::{
    graphs::{fail, slow, tag},
    sandbox_stage::{PATIENCE, Stage},
};

const PASSPHRASE: &str = "planted-passphrase-5f1c";
const API_KEY: &str = "sk-planted-key-93ab";
const PROMPT: &str = "planted prompt of a customer";

#[tokio::test]
async fn planted_secrets_are_in_no_log_state_answer_or_command_line() {
    let mut stage = Stage::with_settings(&[("log.level", "trace".into())]).await;
    let folder = stage.service.folder().to_owned();
    let (key, passphrase) = (folder.join("locked_key"), folder.join("passphrase"));
    fs::copy(stage.sandbox.client_key(), &key).unwrap();
    let lock = ["-q", "-p", "-P", "", "-N", PASSPHRASE, "-f"];
    assert!(Command::new("ssh-keygen").args(lock).arg(&key).status().unwrap().success());
    fs::write(&passphrase, format!("{PASSPHRASE}\n")).unwrap();
    stage.service.kill();
    stage.service.configure(&[("ssh.passphrase_file", text(&passphrase).into())]);
    stage.service.launch();

    let (mut good, mut bad) = (slow(&tag(), 1, 1), fail(&tag()));
    for graph in [&mut good, &mut bad] {
        graph["1"]["inputs"]["api_key"] = API_KEY.into();
        graph["1"]["inputs"]["text"] = PROMPT.into();
    }
    // As a node does that tells which key was not accepted.
    bad["3"]["inputs"]["message"] = format!("401 for the key {API_KEY}").into();
    bad["3"]["inputs"]["api_key"] = API_KEY.into();
    let client = stage.service.client();
    let mut answers = Vec::new();
    for (graph, end) in [(good, "completed"), (bad, "failed")] {
        let mut request = stage.request(&graph);
        let own = text(&stage.sandbox.client_key());
        request["ssh_connection"] = request["ssh_connection"].as_str().unwrap().replace(&own, &text(&key)).into();
        let id = client.accepted(&request).await;
        let ended = client.wait_for_status(&id, end, PATIENCE).await;
        if end == "failed" {
            assert_eq!(ended["error_message"], "Node execution failed: 401 for the key [hidden]");
        }
        for path in ["progress", "outputs", "active"] {
            answers.push(client.get(&format!("/comfyui/workflow/{id}/{path}")).await.1);
        }
    }
    answers.push(client.state().await.1);
    answers.push(client.get("/health").await.1);
    let process = stage.service.process();
    let command_line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    stage.service.terminate(PATIENCE);

    let private = fs::read_to_string(stage.sandbox.client_key()).unwrap();
    let private = private.lines().nth(2).unwrap();
    let told = [
        ("the log", stage.service.log()),
        ("the state file", fs::read_to_string(stage.service.state_file()).unwrap()),
        ("the answers", json!(answers).to_string()),
        ("the command line", String::from_utf8_lossy(&command_line).into_owned()),
    ];
    for (place, text) in told {
        for secret in [PASSPHRASE, API_KEY, PROMPT, private] {
            assert!(!text.contains(secret), "{secret} is in {place}");
        }
    }
}
