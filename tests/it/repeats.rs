//! Doing it again: repeated requests, retries, and what the service says of itself.

use std::{fs, net::TcpListener};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    loopback::Deaf,
    sandbox_stage::{PATIENCE, Stage},
    support::client::answer,
};

const EXECUTE: &str = "/comfyui/workflow/execute";

impl Stage {
    fn execute_as(&self, key: &str, body: &Value) -> RequestBuilder {
        self.service.client().request(Method::POST, EXECUTE).header("idempotency-key", key).json(body)
    }
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once_also_across_a_restart() {
    let mut stage = Stage::new().await;
    let body = stage.request(&graphs::slow(&tag(), 1, 1));
    let requests = (0..8).map(|_| answer(stage.execute_as("my key", &body)));
    let answers = futures_util::future::join_all(requests).await;
    let id = answers[0].1["workflow_id"].as_str().unwrap().to_owned();
    for (status, repeated) in &answers {
        assert_eq!((*status, &repeated["workflow_id"]), (StatusCode::OK, &json!(id)));
    }
    stage.completed(&id).await;
    stage.service.kill();
    stage.service.launch();
    assert_eq!(answer(stage.execute_as("my key", &body)).await.1["workflow_id"], id);
    assert_eq!(stage.sandbox.engine().submissions(), 1);

    let mut other = body.clone();
    other["workflow_name"] = json!("another");
    let (status, refusal) = answer(stage.execute_as("my key", &other)).await;
    assert_eq!((status, &refusal["success"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(false)), "{refusal}");
    assert_ne!(answer(stage.execute_as("another key", &body)).await.1["workflow_id"], id);
    let (status, _) = answer(stage.execute_as("", &body)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_repeat_gets_the_error_that_the_first_one_got_and_refusals_are_forgotten() {
    let stage = Stage::new().await;
    let mut body = stage.request(&graphs::slow(&tag(), 1, 1));
    let deaf = Deaf::new();
    body["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", deaf.port));
    let first = answer(stage.execute_as("k", &body)).await;
    assert_eq!(first.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer(stage.execute_as("k", &body)).await, first);

    let mut refused = body.clone();
    refused["workflow_file"] = json!("/nowhere.json");
    assert_eq!(answer(stage.execute_as("refused", &refused)).await.0, StatusCode::BAD_REQUEST);
    let good = stage.request(&graphs::slow(&tag(), 1, 1));
    assert_eq!(answer(stage.execute_as("refused", &good)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_finished_workflow_is_tried_again_from_the_graph_as_it_was_accepted() {
    let stage = Stage::new().await;
    let body = stage.request(&graphs::fail(&tag()));
    let id = stage.service.client().accepted(&body).await;
    stage.service.client().wait_for_status(&id, "failed", PATIENCE).await;
    // The file may change or go meanwhile.
    fs::remove_file(body["workflow_file"].as_str().unwrap()).unwrap();
    let (status, started) = stage.service.client().retry(&id).await;
    assert_eq!((status, &started["message"]), (StatusCode::OK, &json!("Workflow execution started")));
    let again = started["workflow_id"].as_str().unwrap();
    assert_ne!(again, id);
    let ended = stage.service.client().wait_for_status(again, "failed", PATIENCE).await;
    assert_eq!((&ended["retry_of"], &ended["failed_node"]), (&json!(id), &json!("RigFail")));
    assert_eq!(stage.sandbox.engine().submissions(), 2);
}

#[tokio::test]
async fn without_its_graph_a_workflow_is_not_tried_again_and_its_file_is_named() {
    let stage = Stage::new().await;
    let body = stage.request(&graphs::fail(&tag()));
    let id = stage.service.client().accepted(&body).await;
    stage.service.client().wait_for_status(&id, "failed", PATIENCE).await;
    let graphs = stage.service.state_file().with_file_name("state.json.graphs");
    fs::remove_file(graphs.join(format!("{id}.json"))).unwrap();
    let (status, refusal) = stage.service.client().retry(&id).await;
    let expected = format!(
        "The workflow cannot be started again: the graph that was kept for {id} can't be read: somebody has removed it; \
         execute its file instead: {}",
        body["workflow_file"].as_str().unwrap()
    );
    assert_eq!((status, &refusal["message"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!(expected)));
}

#[tokio::test]
async fn an_unknown_or_active_workflow_is_not_tried_again() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stage = Stage::new().await;
    let (status, refusal) = stage.service.client().retry("comfyui_workflow_1").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(refusal["message"], "Workflow not found: comfyui_workflow_1");
    let mut body = stage.request(&graphs::slow(&tag(), 1, 1));
    body["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", silent.local_addr().unwrap().port()));
    let id = stage.service.client().accepted(&body).await;
    let (status, refusal) = stage.service.client().retry(&id).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(refusal["message"], format!("Workflow is still active: {id}"));
}

#[tokio::test]
async fn a_lost_way_to_the_box_is_told_and_so_is_the_new_one() {
    let stage = Stage::new().await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(&graphs::slow(&tag(), 3, 1)).await;
    hold.reached().await;
    let state = |state: &'static str| move |progress: &Value| progress["connection"]["state"] == state;
    let client = stage.service.client();
    let runs = |progress: &Value| progress["status"] == "executing" && state("connected")(progress);
    client.wait_for(&id, "the run", PATIENCE, runs).await;
    stage.sandbox.faults().refuse_ssh(true);
    stage.sandbox.faults().cut_ssh();
    let away = |progress: &Value| {
        progress["connection"]["state"] == "reconnecting" && progress["connection"]["next_attempt"].is_string()
    };
    let lost = client.wait_for(&id, "the next attempt", PATIENCE, away).await;
    assert_eq!(lost["status"], "executing");
    assert!(lost["connection"]["cause"].is_string() && lost["connection"]["since"].is_string(), "{lost:#}");
    stage.sandbox.faults().refuse_ssh(false);
    client.wait_for(&id, "connected again", PATIENCE, state("connected")).await;
    hold.release();
    assert_eq!(stage.completed(&id).await["connection"], Value::Null);
}
