//! Too much of a good thing: limits for one client, all of them off unless configured.

use std::fs;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use toml::Value as Setting;

use crate::{
    graphs::{self, tag},
    sandbox_stage::Stage,
    support::client::answer,
};

const EXECUTE: &str = "/comfyui/workflow/execute";

/// Two clients.
const TOKENS: [&str; 2] = ["first-token-0000000", "second-token-000000"];

async fn stage(settings: &[(&str, Setting)]) -> Stage {
    let mut stage = Stage::new().await;
    let file = stage.service.folder().join("tokens");
    fs::write(&file, TOKENS.join("\n")).unwrap();
    stage.service.kill();
    stage.service.configure(&[("server.auth_token_file", file.to_str().unwrap().into())]);
    stage.service.configure(settings);
    stage.service.launch();
    stage
}

/// Status, the header that says when to come again, and the body.
async fn ask(stage: &Stage, token: &str, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, u64, Value) {
    let mut request = stage.service.client().request(method, path).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request.send().await.unwrap();
    let again = response.headers().get(header::RETRY_AFTER).map_or(0, |after| after.to_str().unwrap().parse().unwrap());
    (response.status(), again, response.json().await.unwrap())
}

fn assert_refused((status, again, body): (StatusCode, u64, Value), longest: u64) {
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert!((1..=longest).contains(&again), "{again}");
    assert!(body["success"] == false && body["message"].as_str().unwrap().contains("try again"), "{body}");
}

#[tokio::test]
async fn one_client_may_start_only_so_many_per_minute() {
    let stage = stage(&[("limits.client_execute_per_minute", 3.into())]).await;
    let post = |token: &'static str| ask(&stage, token, Method::POST, EXECUTE, None);
    for _ in 0..3 {
        assert_eq!(post(TOKENS[0]).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    assert_refused(post(TOKENS[0]).await, 20);
    assert_refused(ask(&stage, TOKENS[0], Method::POST, "/comfyui/workflow/x/retry", None).await, 20);
    assert_eq!(post(TOKENS[1]).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE, "another client's own");
    let cancel = ask(&stage, TOKENS[0], Method::POST, "/comfyui/workflow/x/cancel", None).await;
    assert_eq!(cancel.0, StatusCode::NOT_FOUND, "nobody is kept from stopping what costs money");
}

#[tokio::test]
async fn one_client_may_ask_for_progress_only_so_often_if_that_is_configured() {
    let stage = stage(&[("limits.client_progress_per_second", 1.into())]).await;
    // The same can be read in each of the three.
    for path in ["/comfyui/workflow/x/progress", "/comfyui/workflow/state", "/comfyui/workflow/x/outputs"] {
        let mut refused = None;
        for _ in 0..100 {
            let answer = ask(&stage, TOKENS[0], Method::GET, path, None).await;
            if answer.0 == StatusCode::TOO_MANY_REQUESTS {
                refused = Some(answer);
                break;
            }
        }
        assert_refused(refused.expect("one of a hundred at once is refused"), 1);
    }
    let other = ask(&stage, TOKENS[1], Method::GET, "/comfyui/workflow/x/progress", None).await;
    assert_eq!(other.0, StatusCode::NOT_FOUND, "another client's own");
}

#[tokio::test]
async fn one_request_may_name_only_so_much() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let good = stage.request(&graphs::slow(&tag(), 1, 1));
    for field in ["ssh_connection", "workflow_file", "workflow_name", "output_dir", "comfyui_input_dir"] {
        let mut request = good.clone();
        request[field] = json!("x".repeat(5000));
        let (status, body) = client.execute(&request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {body}");
        assert_eq!(body["message"], format!("Field {field} must not be longer than 4096 bytes"));
    }
    let mut request = good.clone();
    request["input_images"] = json!(vec!["/nowhere/photo.png"; 257]);
    let (status, body) = client.execute(&request).await;
    assert_eq!(
        (status, &body["message"]),
        (StatusCode::BAD_REQUEST, &json!("Field input_images must not have more than 256 entries"),)
    );
    assert_eq!(client.state().await.1["state"], Value::Null, "nothing was started");
}

#[tokio::test]
async fn one_client_may_have_only_so_many_under_way_also_after_a_restart() {
    let mut stage = stage(&[("limits.client_max_active", 2.into())]).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let request = stage.request(&graphs::slow(&tag(), 3, 1));
    let execute = async |stage: &Stage, token| ask(stage, token, Method::POST, EXECUTE, Some(&request)).await;
    let first = execute(&stage, TOKENS[0]).await;
    assert_eq!(first.0, StatusCode::OK, "{first:?}");
    assert_eq!(execute(&stage, TOKENS[0]).await.0, StatusCode::OK);
    assert_refused(execute(&stage, TOKENS[0]).await, 60);
    assert_eq!(execute(&stage, TOKENS[1]).await.0, StatusCode::OK, "another client's own");
    hold.reached().await;
    stage.service.kill();
    stage.service.launch();
    assert_refused(execute(&stage, TOKENS[0]).await, 60);
    hold.release();
    let progress = format!("/comfyui/workflow/{}/progress", first.2["workflow_id"].as_str().unwrap());
    crate::support::eventually("the first to be over", async || {
        let (_, _, body) = ask(&stage, TOKENS[0], Method::GET, &progress, None).await;
        (body["progress"]["status"] == json!("completed")).then_some(())
    })
    .await;
    crate::support::eventually("its place to be free", async || {
        (execute(&stage, TOKENS[0]).await.0 == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_tokens_a_client_is_an_address_and_without_settings_nothing_is_limited() {
    let limited = Stage::with_settings(&[("limits.client_execute_per_minute", 1.into())]).await;
    let client = limited.service.client();
    assert_eq!(answer(client.request(Method::POST, EXECUTE)).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(answer(client.request(Method::POST, EXECUTE)).await.0, StatusCode::TOO_MANY_REQUESTS);
    let free = Stage::new().await;
    let client = free.service.client();
    for _ in 0..300 {
        assert_eq!(answer(client.request(Method::POST, EXECUTE)).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(client.progress_answer("x").await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_key_for_repeats_is_its_clients_own() {
    let mut stage = stage(&[]).await;
    let body = stage.request(&graphs::slow(&tag(), 1, 1));
    let execute = async |stage: &Stage, token: &str, body: &Value| {
        let request = stage.service.client().request(Method::POST, EXECUTE).bearer_auth(token);
        let (status, answer) = answer(request.header("idempotency-key", "key").json(body)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["workflow_id"].as_str().unwrap().to_owned()
    };
    let first = execute(&stage, TOKENS[0], &body).await;
    // The same words for another request are no mistake of another client, and tell it nothing.
    let mut other = body.clone();
    other["workflow_name"] = json!("another");
    let second = execute(&stage, TOKENS[1], &other).await;
    assert_ne!(first, second);
    for restarted in [false, true] {
        if restarted {
            stage.service.kill();
            stage.service.launch();
        }
        assert_eq!(execute(&stage, TOKENS[0], &body).await, first);
        assert_eq!(execute(&stage, TOKENS[1], &other).await, second);
    }
    // On record from before clients were noted: it is everybody's.
    stage.service.kill();
    let mut state: Value = serde_json::from_slice(&fs::read(stage.service.state_file()).unwrap()).unwrap();
    state["workflows"].as_object_mut().unwrap().remove(&second);
    state["workflows"][&first].as_object_mut().unwrap().remove("caller").unwrap();
    fs::write(stage.service.state_file(), state.to_string()).unwrap();
    stage.service.launch();
    for token in TOKENS {
        assert_eq!(execute(&stage, token, &body).await, first);
    }
}
