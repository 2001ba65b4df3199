//! Secrets stay where they are: in key files, passphrase files and the private folder of graphs.

use std::{fs, net::TcpListener, process::Command};

use serde_json::{Value, json};

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

/// A node that quotes its key in an exception, once a step before it has gone on.
fn tells_its_key() -> Value {
    let mut graph = slow(&tag(), 2, 1);
    let message = format!("401 for the key {API_KEY}");
    let inputs = json!({"image": ["2", 0], "message": message, "api_key": API_KEY});
    graph["4"] = json!({"class_type": "RigFail", "inputs": inputs});
    graph["3"]["inputs"]["images"] = json!(["4", 0]);
    graph
}

/// Lets the node fail when the graph that was kept is gone, and returns how the workflow ended, without secrets anywhere.
async fn ended_without_its_graph(stage: &mut Stage, graph: &Value, restarted: bool) -> Value {
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(graph).await;
    hold.reached().await;
    if restarted {
        stage.service.kill();
    }
    let graphs = stage.service.state_file().with_file_name("state.json.graphs");
    fs::remove_file(graphs.join(format!("{id}.json"))).unwrap();
    if restarted {
        stage.service.launch();
    }
    hold.release();
    let ended = stage.service.client().wait_for_status(&id, "failed", PATIENCE).await;
    stage.service.terminate(PATIENCE);
    let state = fs::read_to_string(stage.service.state_file()).unwrap();
    for (place, text) in [("the log", stage.service.log()), ("the state", state), ("the answer", ended.to_string())] {
        assert!(!text.contains(API_KEY), "{place}: {text}");
    }
    ended
}

#[tokio::test]
async fn what_a_node_quotes_is_hidden_also_when_the_kept_graph_is_gone() {
    let mut stage = Stage::with_settings(&[("ssh.connect_timeout_s", 300.into())]).await;
    // Of all that is kept of graphs in memory, one that does not get to its box leaves too little for the other.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let padded = |mut graph: Value, mib: usize| {
        graph["1"]["inputs"]["note"] = "x".repeat(mib << 20).into();
        graph
    };
    let mut large = stage.request(&padded(slow(&tag(), 1, 1), 60));
    large["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", silent.local_addr().unwrap().port()));
    stage.service.client().accepted(&large).await;
    let graph = padded(tells_its_key(), 5);
    let ended = ended_without_its_graph(&mut stage, &graph, false).await;
    assert_eq!(ended["error_message"], "Node execution failed: 401 for the key [hidden]");
}

#[tokio::test]
async fn what_a_node_says_is_withheld_when_its_secrets_are_not_known() {
    let mut stage = Stage::new().await;
    let ended = ended_without_its_graph(&mut stage, &tells_its_key(), true).await;
    let message = ended["error_message"].as_str().unwrap();
    assert!(message.starts_with("Node execution failed: what ComfyUI said is withheld, since"), "{message}");
    assert_eq!(ended["failed_node_id"], "4");
}
