//! Workflows in ComfyUI's UI format: converted for the box once it is reached, and from there on like any other.

use std::fs;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    sandbox_stage::{PATIENCE, Stage},
    support::client::is_over,
};

/// What "Save" writes for: load a picture, invert it, save it.
fn invert(prefix: &str) -> Value {
    json!({
        "last_node_id": 3, "last_link_id": 2, "version": 0.4, "groups": [], "config": {}, "extra": {},
        "nodes": [
            {"id": 1, "type": "LoadImage", "mode": 0, "order": 0, "inputs": [], "properties": {},
             "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}, {"name": "MASK", "type": "MASK", "links": null}],
             "widgets_values": ["photo.png", "image"]},
            {"id": 2, "type": "ImageInvert", "title": "Turn it over", "mode": 0, "order": 1, "properties": {},
             "inputs": [{"name": "image", "type": "IMAGE", "link": 1}],
             "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [2]}]},
            {"id": 3, "type": "SaveImage", "mode": 0, "order": 2, "properties": {},
             "inputs": [{"name": "images", "type": "IMAGE", "link": 2}], "outputs": [], "widgets_values": [prefix]},
            {"id": 4, "type": "Note", "mode": 0, "order": 3, "inputs": [], "outputs": [], "widgets_values": ["hello"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    })
}

/// A request for it, with the picture that it loads.
fn request(stage: &Stage, document: &Value) -> Value {
    let photo = stage.service.folder().join("photo.png");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &photo).unwrap();
    let mut request = stage.request(document);
    request["input_images"] = json!([photo]);
    request
}

fn assert_inverted(done: &Value) {
    assert_eq!((&done["workflow_format"], &done["total_nodes"]), (&json!("ui"), &json!(3)));
    let classes: Vec<&Value> = done["nodes"].as_array().unwrap().iter().map(|node| &node["node_type"]).collect();
    assert_eq!(classes, ["LoadImage", "ImageInvert", "SaveImage"]);
    assert_eq!(done["nodes"][1]["title"], "Turn it over");
    let outputs = done["outputs"].as_array().unwrap();
    assert!(outputs.len() == 1 && outputs[0]["downloaded"] == true, "{done:#}");
}

#[tokio::test]
async fn a_saved_workflow_runs_as_its_export_would() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let id = client.accepted(&request(&stage, &invert("saved"))).await;
    let done = stage.completed(&id).await;
    assert_inverted(&done);
    assert!(done["outputs"][0]["filename"].as_str().unwrap().starts_with("saved_"), "{done:#}");
    let (status, again) = client.retry(&id).await;
    assert_eq!(status, StatusCode::OK, "{again}");
    assert_inverted(&stage.completed(again["workflow_id"].as_str().unwrap()).await);
}

/// A picture as ComfyUI writes it: with the workflow in a text behind its header.
fn picture_with(document: &Value) -> Vec<u8> {
    let photo = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png")).unwrap();
    let text = [b"tEXtworkflow\0".as_slice(), document.to_string().as_bytes()].concat();
    let mut crc = flate2::Crc::new();
    crc.update(&text);
    // Eight bytes of signature, and twenty-five of the header.
    let (header, rest) = photo.split_at(33);
    let length = u32::try_from(text.len() - 4).unwrap();
    [header, &length.to_be_bytes(), &text, &crc.sum().to_be_bytes(), rest].concat()
}

#[tokio::test]
async fn a_picture_that_carries_a_workflow_runs_as_that() {
    let stage = Stage::new().await;
    let mut request = request(&stage, &json!({}));
    let picture = stage.service.folder().join("ComfyUI_00001_.png");
    fs::write(&picture, picture_with(&invert("pictured"))).unwrap();
    request["workflow_file"] = json!(picture);
    let done = stage.completed(&stage.service.client().accepted(&request).await).await;
    assert_eq!((&done["workflow_format"], &done["total_nodes"]), (&json!("png"), &json!(3)));
    assert_eq!(done["outputs"][0]["downloaded"], true, "{done:#}");
    assert_eq!(done["workflow_name"], "ComfyUI_00001_.png");
}

#[tokio::test]
async fn one_that_was_accepted_while_the_box_was_away_is_converted_after_a_restart() {
    let mut stage = Stage::with_settings(&[("ssh.execute_wait_s", 0.into())]).await;
    stage.sandbox.faults().stall_ssh(true);
    let id = stage.service.client().accepted(&request(&stage, &invert("late"))).await;
    let waiting = stage.service.client().progress(&id).await;
    assert_eq!((&waiting["nodes"], &waiting["total_nodes"]), (&json!([]), &json!(0)), "{waiting:#}");
    assert_eq!((&waiting["progress_percent"], &waiting["workflow_format"]), (&json!(0.0), &json!("ui")));
    stage.service.kill();
    stage.sandbox.faults().stall_ssh(false);
    stage.service.launch();
    assert_inverted(&stage.completed(&id).await);
}

#[tokio::test]
async fn a_class_that_the_box_lacks_is_told_at_once_with_its_node() {
    let stage = Stage::with_settings(&[("ssh.execute_wait_s", 60.into())]).await;
    let mut document = invert("never");
    document["nodes"][1]["type"] = json!("NoSuchNode");
    let client = stage.service.client();
    let (status, refused) = client.execute(&request(&stage, &document)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused:#}");
    let finding = &refused["findings"][0];
    assert_eq!((&finding["severity"], &finding["code"]), (&json!("error"), &json!("missing_node_type")), "{refused:#}");
    assert_eq!((&finding["node_id"], &finding["node_type"]), (&json!("2"), &json!("NoSuchNode")));
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("NoSuchNode") && message.contains("Turn it over"), "{message}");
    let id = refused["workflow_id"].as_str().unwrap();
    let failed = client.wait_after_the_end(id, "the end", PATIENCE, is_over).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("invalid_workflow")));
    assert_eq!(failed["error_detail"]["findings"], refused["findings"]);
    assert_eq!(stage.sandbox.engine().submissions(), 0);
}
