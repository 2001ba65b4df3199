//! What a workflow file from a stranger calls its nodes, and a file itself: names may command a terminal or look like our own
//! lines, where they are repeated to people.

use std::{fs, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::text;
use crate::{
    graphs::{slow, tag},
    sandbox_stage::Stage,
    support::client::answer,
};

const EVIL: &str = "ok\u{1b}[2J\u{1b}]0;pwn\u{7}\nui.json would run: 3 nodes\r\u{9b}31m\u{202e}";

/// Whether lines of text do nothing to a terminal.
fn assert_harmless(told: &[u8]) {
    let told = String::from_utf8(told.to_vec()).unwrap();
    let lines = told.replace('\n', "");
    assert!(!lines.contains(|c: char| c.is_control() || c == '\u{202e}'), "{told:?}");
    assert!(told.lines().all(|line| !line.starts_with("ui.json")), "{told}");
}

fn command(stage: &Stage, arguments: &[&str]) -> (Option<i32>, Vec<u8>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
    command.args(arguments).env("HOME", stage.service.folder()).current_dir(stage.service.folder());
    let output = command.output().unwrap();
    assert_harmless(&output.stderr);
    assert_harmless(&output.stdout);
    (output.status.code(), [output.stdout, output.stderr].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_and_files_are_called_commands_no_terminal_and_begins_no_line() {
    let stage = Stage::new().await;
    let mut graph = slow(&tag(), 1, 1);
    graph["1"]["_meta"] = json!({ "title": EVIL });
    let file = stage.service.folder().join(format!("{EVIL}.json").replace('/', "-"));
    fs::write(&file, graph.to_string()).unwrap();
    let (connection, port) = (stage.sandbox.ssh_connection(), stage.sandbox.comfyui_port().to_string());
    let check = |more: &[&str]| {
        let known = ["check", "--ssh", &connection, "--port", &port, file.to_str().unwrap()];
        command(&stage, &[&known, more].concat())
    };
    assert_eq!(check(&[]).0, Some(0));
    let (code, plan) = check(&["--json"]);
    let plan: Value = serde_json::from_slice(&plan).unwrap();
    assert_eq!((code, &plan["nodes"][0]["title"]), (Some(0), &json!(EVIL)));
    graph["1"]["class_type"] = EVIL.into();
    fs::write(&file, graph.to_string()).unwrap();
    assert_eq!(check(&[]).0, Some(1));
    fs::write(&file, "{}").unwrap();
    assert_eq!(check(&[]).0, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversion_that_is_refused_says_so_without_control_characters() {
    let stage = Stage::new().await;
    let definitions = stage.service.folder().join("object_info.json");
    fs::write(&definitions, r#"{"Fine": {"input": {}, "output": ["IMAGE"]}}"#).unwrap();
    let node =
        |id: u64, class: &str| json!({"id": id, "type": class, "title": EVIL, "inputs": [{"name": EVIL, "type": "*"}]});
    let given = text(&definitions);
    for (class, converts) in [("Fine", true), (EVIL, false)] {
        let ui = json!({"nodes": [node(1, class)], "links": []});
        fs::write(stage.service.folder().join("ui.json"), ui.to_string()).unwrap();
        let (code, _) = command(&stage, &["convert", "ui.json", "--object-info", &given]);
        assert_eq!(code == Some(0), converts, "{class:?}");
        let body = json!({"workflow": ui, "object_info_file": definitions});
        let request = stage.service.client().request(Method::POST, "/comfyui/workflow/convert").json(&body);
        let (status, answer) = answer(request).await;
        assert_eq!(status == StatusCode::OK, converts, "{answer}");
        if !converts {
            let finding = &answer["findings"][0];
            let texts = [&answer["message"], &finding["message"], &finding["hint"]];
            texts.iter().for_each(|text| assert_harmless(text.as_str().unwrap().as_bytes()));
        }
    }
    let body = json!({"ssh_connection": "root@127.0.0.1", "workflow_file": format!("/nowhere/{EVIL}"), EVIL: 1});
    let (_, answer) = stage.service.client().execute(&body).await;
    assert_harmless(answer["message"].as_str().unwrap().as_bytes());
}
