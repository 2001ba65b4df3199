//! The one request that must never be sent twice, and everything that may be answered to it.

use std::sync::atomic::Ordering;

use axum::{Router, http::StatusCode, routing::post};
use comfy_remote::{
    comfy::{Client, SubmitError},
    workflow::PromptId,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{always, client, json_response, nobody, raw};

async fn submit(client: &Client) -> Result<PromptId, SubmitError> {
    let graph = json!({"1": {"class_type": "KSampler", "inputs": {"seed": 18_446_744_073_709_551_615_u64}}});
    let submitted = client.submit(&graph, &"c".into(), &"p".into(), &"w".into()).await?;
    assert!(submitted.findings.is_empty());
    Ok(submitted.prompt_id)
}

async fn answered(status: u16, body: &'static str) -> SubmitError {
    submit(&always((StatusCode::from_u16(status).unwrap(), body)).await).await.unwrap_err()
}

#[tokio::test]
async fn the_request_is_complete() {
    let answer = |body: String| async move {
        let expected = json!({
            "prompt": {"1": {"class_type": "KSampler", "inputs": {"seed": 18_446_744_073_709_551_615_u64}}},
            "client_id": "c", "prompt_id": "p",
            "extra_data": {"comfy_remote": {"workflow_id": "w", "prompt_id": "p"}},
        });
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
        json_response(json!({"prompt_id": "its own", "number": 3.0, "node_errors": {}}))
    };
    let client = client(Router::new().route("/prompt", post(answer))).await;
    assert_eq!(submit(&client).await.unwrap().as_str(), "its own");
}

#[tokio::test]
async fn a_cut_answer_is_unclear_and_nothing_is_sent_twice() {
    for cut in ["", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"prompt_id\": \"p"] {
        let (client, count) = raw(move |_, mut stream| async move {
            stream.write_all(cut.as_bytes()).await.unwrap();
        })
        .await;
        let error = submit(&client).await.unwrap_err();
        assert!(matches!(error, SubmitError::Unclear { .. }), "{error}");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn what_certainly_was_not_sent_is_known() {
    let (client, _deaf) = nobody();
    let error = submit(&client).await.unwrap_err();
    assert!(matches!(error, SubmitError::NotTaken { .. }), "{error}");
}

#[tokio::test]
async fn answers_are_told_apart() {
    let text = "ComfyUI refused the workflow: node type Foo (node 7) is not installed on the box";
    let refused = r##"{"error": {"type": "missing_node_type", "extra_info": {"node_id": "7", "class_type": "Foo"}}}"##;
    assert_eq!(answered(400, refused).await.to_string(), text);
    assert!(matches!(answered(409, r#"{"error": "prompt_id already exists"}"#).await, SubmitError::AlreadyAccepted));
    assert!(matches!(answered(413, "").await, SubmitError::TooBig));
    assert!(matches!(answered(429, "").await, SubmitError::NotTaken { .. }));
    for (status, body) in [(500, "500 Internal Server Error"), (502, "<html>"), (524, ""), (408, "")] {
        assert!(matches!(answered(status, body).await, SubmitError::Unclear { .. }), "{status}");
    }
    for status in [301, 302, 307, 401, 403] {
        assert!(matches!(answered(status, "").await, SubmitError::Denied { .. }), "{status}");
    }
    let exec_info = r#"{"exec_info": {"queue_remaining": 0}}"#;
    for (status, body) in [(200, exec_info), (200, "<html>"), (200, ""), (404, ""), (405, ""), (400, "<html>")] {
        assert!(matches!(answered(status, body).await, SubmitError::Foreign { .. }), "{status} {body}");
    }
    let text = "ComfyUI refused the workflow: HTTP 400: no thanks";
    assert_eq!(answered(400, "no thanks").await.to_string(), text);
}

#[tokio::test]
async fn a_partly_valid_graph_comes_back_with_findings() {
    let errors = json!({"3": {"class_type": "SaveImage", "errors": [{"message": "Required input is missing", "details": "images"}]}});
    let body = json!({"prompt_id": "p", "number": 1, "node_errors": errors}).to_string();
    let client = always(body).await;
    let submitted = client.submit(&json!({}), &"c".into(), &"p".into(), &"w".into()).await.unwrap();
    assert_eq!(submitted.findings.to_string(), "node 3 (SaveImage): Required input is missing: images");
}

/// A refusal repeats the list of choices that a value is not among.
#[tokio::test]
async fn refusals_of_megabytes_are_read() {
    let choices: Vec<String> = (0..50_000).map(|n| format!("loras/of/some/length/{n}.safetensors")).collect();
    let error =
        json!({"message": "Value not in list", "details": "lora_name", "extra_info": {"input_config": [choices]}});
    let errors = json!({"3": {"class_type": "LoraLoader", "errors": [error, error]}});
    let partly = json!({"prompt_id": "p", "number": 1, "node_errors": errors}).to_string();
    let refused = json!({"error": {"type": "prompt_outputs_failed_validation"}, "node_errors": errors}).to_string();
    assert!(partly.len() > 3 << 20);
    let submit = async |status, body: String| {
        let client = always((status, body)).await;
        client.submit(&json!({}), &"c".into(), &"p".into(), &"w".into()).await
    };
    let told = "node 3 (LoraLoader): Value not in list: lora_name";
    let submitted = submit(StatusCode::OK, partly).await.unwrap();
    assert!(submitted.findings.to_string().starts_with(told), "{}", submitted.findings);
    let SubmitError::Refused(refusal) = submit(StatusCode::BAD_REQUEST, refused).await.unwrap_err() else {
        panic!("no refusal");
    };
    assert!(refusal.to_string().contains(told), "{refusal}");
}
