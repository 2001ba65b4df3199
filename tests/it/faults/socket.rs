//! The websocket is only a hint: whatever it does, a run ends as one that was not disturbed, down to the last node.

use std::{path::Path, time::Duration};

use comfy_remote::sandbox::{Engine, Faults};
use serde_json::{Value, json};

use crate::{
    graphs,
    sandbox_stage::{PATIENCE, Stage},
};

/// The same for every run: each has a sandbox of its own.
const TAG: &str = "00c0ffee";

/// Steps of the node that takes its time.
const STEPS: u32 = 6;

/// Fields that differ between any two runs.
const OWN: [&str; 9] = [
    "workflow_id",
    "workflow_name",
    "workflow_file",
    "prompt_id",
    "ssh_connection",
    "queue_time",
    "start_time",
    "end_time",
    "last_update",
];

/// Pictures, a text, and a node with steps.
fn varied() -> Value {
    let mut graph = graphs::slow(TAG, STEPS, 20);
    graph["4"] = json!({"class_type": "RigText", "inputs": {"text": "a caption"}});
    graph["5"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "early"}});
    graph
}

/// How a run ends, without what only that run has. Outputs are in the order of their nodes.
async fn end_of(stage: &Stage, id: &str) -> Value {
    let mut end = stage.service.client().wait_for_end(id, PATIENCE).await;
    let fields = end.as_object_mut().unwrap();
    fields.retain(|field, _| !OWN.contains(&field.as_str()));
    let outputs = end["outputs"].as_array_mut().unwrap();
    for output in outputs.iter_mut() {
        for (field, folder) in
            [("local_path", stage.service.output_dir()), ("remote_path", stage.sandbox.root().to_owned())]
        {
            let path = Path::new(output[field].as_str().unwrap());
            output[field] = json!(path.strip_prefix(&folder).unwrap());
        }
    }
    outputs.sort_by_key(|output| output["node_id"].to_string());
    end
}

async fn undisturbed(graph: &Value) -> Value {
    let stage = Stage::new().await;
    let id = stage.start(graph).await;
    end_of(&stage, &id).await
}

/// Runs the graph undisturbed and disturbed, and compares how they end.
async fn ends_the_same(graph: Value, disturb: impl FnOnce(&Faults)) -> Value {
    let expected = undisturbed(&graph).await;
    let stage = Stage::new().await;
    disturb(stage.sandbox.faults());
    let id = stage.start(&graph).await;
    assert_eq!(end_of(&stage, &id).await, expected);
    expected
}

#[tokio::test]
async fn a_deaf_one() {
    ends_the_same(varied(), |faults| faults.deafen(true)).await;
}

#[tokio::test]
async fn a_deaf_one_of_a_run_that_fails() {
    let end = ends_the_same(graphs::fail(TAG), |faults| faults.deafen(true)).await;
    assert_eq!((&end["status"], &end["completed_nodes"]), (&json!("failed"), &json!(2)), "{end:#}");
}

#[tokio::test]
async fn doubled_messages() {
    ends_the_same(varied(), |faults| faults.duplicate_messages(true)).await;
}

#[tokio::test]
async fn reordered_messages() {
    ends_the_same(varied(), |faults| faults.reorder_messages(true)).await;
}

#[tokio::test]
async fn messages_that_come_ever_later() {
    ends_the_same(varied(), |faults| faults.delay_messages(Some(Duration::from_millis(400)))).await;
}

#[tokio::test]
async fn history_that_comes_seconds_after_the_success() {
    ends_the_same(varied(), |faults| faults.delay_history(Some(Duration::from_secs(4)))).await;
}

#[tokio::test]
async fn a_success_that_is_never_said() {
    ends_the_same(varied(), |faults| faults.omit_execution_success(true)).await;
}

#[tokio::test]
async fn messages_of_unknown_kinds() {
    ends_the_same(varied(), |faults| {
        faults.noise(true);
        faults.nan_in_json(true);
    })
    .await;
}

#[tokio::test]
async fn everything_at_once() {
    ends_the_same(graphs::fail(TAG), |faults| {
        faults.noise(true);
        faults.duplicate_messages(true);
        faults.reorder_messages(true);
        faults.delay_messages(Some(Duration::from_millis(50)));
        faults.delay_history(Some(Duration::from_secs(1)));
    })
    .await;
}

#[tokio::test]
async fn one_that_closes_again_and_again() {
    let expected = undisturbed(&varied()).await;
    let stage = Stage::new().await;
    let mut hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(&varied()).await;
    for step in 2..=STEPS {
        hold.reached().await;
        close_the_socket(stage.sandbox.engine()).await;
        // The next one stands before this one is dropped.
        hold = stage.sandbox.engine().hold_at_step("2", step.into());
    }
    drop(hold);
    assert_eq!(end_of(&stage, &id).await, expected);
}

/// Closes the service's socket once there is one.
async fn close_the_socket(engine: &Engine) {
    super::phase::until("a socket", || engine.sockets() > 0).await;
    engine.faults().close_sockets();
}
