//! The HTTP contract: codes, texts and headers, also where nothing runs.

use std::{fs, net::TcpListener, path::PathBuf, time::Duration};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    loopback::Deaf,
    support::{
        client::{ApiClient, answer},
        service::Service,
    },
};

const ROUTES: [(&str, &str); 6] = [
    ("POST", "/comfyui/workflow/execute"),
    ("GET", "/comfyui/workflow/state"),
    ("GET", "/comfyui/workflow/some_id/progress"),
    ("POST", "/comfyui/workflow/some_id/cancel"),
    ("GET", "/comfyui/workflow/some_id/outputs"),
    ("GET", "/comfyui/workflow/some_id/active"),
];

fn message(answer: &Value) -> &str {
    assert_eq!(answer["success"], false, "{answer}");
    answer["message"].as_str().unwrap_or_else(|| panic!("no message in {answer}"))
}

fn workflow_file(service: &Service) -> PathBuf {
    let file = service.folder().join("my workflow.json");
    fs::write(&file, r#"{"1": {"class_type": "A", "inputs": {}}}"#).unwrap();
    file
}

#[tokio::test]
async fn unknown_workflows_are_answered_as_the_reference_says() {
    let service = Service::start(&[]);
    let client = service.client();
    let id = "comfyui_workflow_123";
    let not_found = (StatusCode::NOT_FOUND, json!({"success": false, "message": format!("Workflow not found: {id}")}));
    assert_eq!(client.progress_answer(id).await, not_found);
    assert_eq!(client.outputs(id).await, not_found);
    let done = format!("Workflow not found or already completed: {id}");
    assert_eq!(client.cancel(id).await, (StatusCode::NOT_FOUND, json!({"success": false, "message": done})));
    assert_eq!(client.active(id).await, (StatusCode::OK, json!({"success": true, "active": false})));
    assert_eq!(client.state().await, (StatusCode::OK, json!({"success": true, "state": null})));
}

#[tokio::test]
async fn every_failure_from_any_layer_has_the_envelope() {
    let service = Service::start(&[("server.max_body_bytes", 1000.into())]);
    let client = service.client();
    let (status, body) = client.get("/nowhere").await;
    assert_eq!((status, message(&body)), (StatusCode::NOT_FOUND, "No such route: GET /nowhere"));
    let (status, body) = client.get("/comfyui/workflow/").await;
    assert_eq!((status, message(&body).is_empty()), (StatusCode::NOT_FOUND, false));
    for path in ["/comfyui/workflow/%FF%FE/progress", "/comfyui/workflow/a%2Fb%0A/outputs"] {
        let (status, body) = client.get(path).await;
        assert_eq!((status, message(&body).starts_with("Workflow not found: ")), (StatusCode::NOT_FOUND, true));
    }
    for (method, path) in ROUTES {
        let other = if method == "GET" { Method::DELETE } else { Method::GET };
        let (status, body) = answer(client.request(other, path)).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        message(&body);
    }
    let execute = || client.request(Method::POST, "/comfyui/workflow/execute");
    let (status, body) = answer(execute().json(&json!({"ssh_connection": "x".repeat(2000)}))).await;
    assert_eq!((status, message(&body)), (StatusCode::PAYLOAD_TOO_LARGE, "The request body is larger than 1000 bytes"));
    for request in [execute(), execute().body("{}"), execute().header("content-type", "text/plain").body("{}")] {
        let (status, body) = answer(request).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        message(&body);
    }
    let json_body = |text: &'static str| execute().header("content-type", "application/json; charset=utf-8").body(text);
    let (status, body) = answer(json_body("{\"a\": ")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message(&body).starts_with("The request body is not valid JSON: "), "{body}");
    let (status, body) = answer(json_body("[1]")).await;
    assert_eq!((status, message(&body)), (StatusCode::BAD_REQUEST, "The request body must be a JSON object"));
}

#[tokio::test]
async fn execute_checks_in_order_and_a_refusal_leaves_no_trace() {
    let service = Service::start(&[]);
    let file = workflow_file(&service);
    let gone = service.folder().join("gone");
    let outputs = service.folder().join("new outputs");
    let good = json!({
        "ssh_connection": "ssh -p 1 root@127.0.0.1", "workflow_file": file, "output_dir": outputs, "input_images": [],
    });
    let gone_file = format!("Workflow file not found: {}", gone.display());
    let gone_image = format!("Input image not found: {}", gone.display());
    let cases = [
        (json!({}), "Missing required field: ssh_connection"),
        (json!({"workflow_file": null}), "Missing required field: ssh_connection"),
        (json!({"ssh_connection": "ssh root@box", "workflow_file": null}), "Missing required field: workflow_file"),
        (json!({"ssh_connection": 5, "workflow_file": gone}), "Field ssh_connection must be a string"),
        (json!({"ssh_connection": " ", "workflow_file": gone}), "Field ssh_connection must not be empty"),
        (with(&good, "workflow_name", json!(1)), "Field workflow_name must be a string"),
        (with(&good, "input_images", json!("a.png")), "Field input_images must be a list of strings"),
        (with(&good, "input_images", json!([1])), "Field input_images must be a list of non-empty strings"),
        (with(&good, "comfyui_port", json!("18188")), "Field comfyui_port must be an integer from 1 to 65535"),
        (with(&good, "comfyui_port", json!(0)), "Field comfyui_port must be an integer from 1 to 65535"),
        (with(&good, "comfyui_port", json!(65536)), "Field comfyui_port must be an integer from 1 to 65535"),
        (with(&good, "comfyui_port", json!(1.5)), "Field comfyui_port must be an integer from 1 to 65535"),
        (with(&with(&good, "workflow_file", json!(gone)), "ssh_connection", json!("ssh")), "Invalid ssh_connection: "),
        (with(&good, "ssh_connection", json!("ssh root@box rm -rf /")), "Invalid ssh_connection: "),
        (with(&with(&good, "workflow_file", json!(gone)), "input_images", json!([gone])), gone_file.as_str()),
        (with(&with(&good, "input_images", json!([gone])), "output_dir", json!(file)), gone_image.as_str()),
        (with(&good, "output_dir", json!(file)), "Output folder is not a folder: "),
    ];
    let client = service.client();
    for (body, expected) in cases {
        let (status, refusal) = client.execute(&body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {refusal}");
        assert!(message(&refusal).starts_with(expected), "{expected}: {refusal}");
    }
    assert_eq!(client.state().await.1["state"], Value::Null);
    assert!(!outputs.exists());
}

fn with(body: &Value, field: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[field] = value;
    body
}

#[tokio::test]
async fn a_tunnel_that_fails_is_a_500_and_on_record() {
    let service = Service::start(&[]);
    let deaf = Deaf::new();
    let port = deaf.port;
    let body =
        json!({"ssh_connection": format!("ssh -p {port} root@127.0.0.1"), "workflow_file": workflow_file(&service)});
    let (status, refusal) = service.client().execute(&body).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let text = message(&refusal);
    assert!(text.starts_with("Failed to create SSH tunnel: ") && text.contains("refused"), "{text}");
    let id = refusal["workflow_id"].as_str().expect("an id").to_owned();
    let (seconds, tail) = id.strip_prefix("comfyui_workflow_").unwrap().split_once('_').unwrap();
    assert!(seconds.parse::<u64>().is_ok() && tail.len() == 8, "{id}");
    let failed = service.client().progress(&id).await;
    assert_eq!((&failed["status"], &failed["error_message"]), (&json!("failed"), &json!(text)));
    assert_eq!(
        (&failed["error_code"], &failed["workflow_name"]),
        (&json!("ssh_unreachable"), &json!("my workflow.json"))
    );
    assert_eq!(failed["nodes"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_tunnel_that_takes_long_does_not_hold_up_the_answer() {
    // Accepts and never speaks.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let service = Service::start(&[("ssh.execute_wait_s", 1.into())]);
    let connection = format!("ssh -p {} root@127.0.0.1", silent.local_addr().unwrap().port());
    let body = json!({"ssh_connection": connection, "workflow_file": workflow_file(&service), "whatever": 1});
    let (status, started) = service.client().execute(&body).await;
    assert_eq!((status, &started["message"]), (StatusCode::OK, &json!("Workflow execution started")));
    assert_eq!(started["warnings"], json!(["Unknown field ignored: whatever"]));
    let id = started["workflow_id"].as_str().unwrap();
    let progress = service.client().progress(id).await;
    assert_eq!((&progress["status"], &progress["phase"]), (&json!("queued"), &json!("connecting")));
    assert_eq!(service.client().active(id).await.1["active"], true);
    assert_eq!(service.client().state().await.1["state"]["workflow_id"], id);
    // A workflow that still connects stops at once.
    assert_eq!(service.client().cancel(id).await.0, StatusCode::OK);
    service.client().wait_for_status(id, "cancelled", Duration::from_secs(30)).await;
}

#[tokio::test]
async fn what_is_found_instead_of_comfyui_is_said() {
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    let service = Service::start(&[]);
    let body = |port: u16| {
        json!({
            "ssh_connection": sandbox.ssh_connection(), "workflow_file": workflow_file(&service), "comfyui_port": port,
        })
    };
    let ended = async |port: u16| {
        let id = service.client().accepted(&body(port)).await;
        service.client().wait_for_end(&id, Duration::from_secs(60)).await
    };
    let deaf = Deaf::new();
    let closed = deaf.port;
    let failed = ended(closed).await;
    let text = failed["error_message"].as_str().unwrap();
    assert!(text.starts_with(&format!("could not reach ComfyUI on port {closed}")), "{text}");
    assert!(text.contains("[limits] comfyui_start_s"), "{text}");
    assert_eq!(failed["error_code"], "comfyui_unreachable");

    let page = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = page.local_addr().unwrap().port();
    let html = "<html><head><title>Sign in</title></head></html>";
    let router = axum::Router::new().fallback(move || async move { axum::response::Html(html) });
    tokio::spawn(async move { axum::serve(page, router).await });
    let failed = ended(port).await;
    let text = failed["error_message"].as_str().unwrap();
    assert!(text.starts_with(&format!("could not reach ComfyUI on port {port}")), "{text}");
    assert!(text.contains("HTML") && text.contains("Sign in"), "{text}");
}

async fn options(client: &ApiClient, path: &str, origin: &str, method: &str) -> (StatusCode, HeaderMap) {
    let request = client
        .request(Method::OPTIONS, path)
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "content-type");
    let answer = request.send().await.unwrap();
    (answer.status(), answer.headers().clone())
}

#[tokio::test]
async fn preflight_and_cors_headers_are_for_the_listed_origins_only() {
    let service = Service::start(&[(
        "server.cors_origins",
        toml::Value::from(vec!["http://10.0.78.66", "http://localhost", "http://127.0.0.1", "http://dev.local:*"]),
    )]);
    let client = service.client();
    for (method, path) in ROUTES {
        for origin in ["http://10.0.78.66", "http://localhost", "http://127.0.0.1", "http://dev.local:5173"] {
            let (status, headers) = options(&client, path, origin, method).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{path}");
            assert_eq!(headers["access-control-allow-origin"], origin);
            assert!(headers["access-control-allow-methods"].to_str().unwrap().contains(method));
            let allowed = headers["access-control-allow-headers"].to_str().unwrap().to_lowercase();
            assert!(["content-type", "authorization", "idempotency-key"].iter().all(|name| allowed.contains(name)));
            assert!(
                headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().to_lowercase().contains("origin"))
            );
        }
        for origin in ["http://localhost:3000", "https://localhost", "http://evil.example", "null"] {
            let (_, headers) = options(&client, path, origin, method).await;
            let given: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("access-control-")).collect();
            assert!(given.is_empty(), "{origin} got {given:?}");
        }
    }
    let answer = client.request(Method::GET, "/comfyui/workflow/state").header("origin", "http://localhost").send();
    let headers = answer.await.unwrap().headers().clone();
    assert_eq!(headers["access-control-allow-origin"], "http://localhost");
    let answer =
        client.request(Method::GET, "/comfyui/workflow/x/progress").header("origin", "http://localhost").send();
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["access-control-allow-origin"]),
        (StatusCode::NOT_FOUND, &"http://localhost".parse().unwrap())
    );
    let answer = client.request(Method::GET, "/comfyui/workflow/state").header("origin", "http://evil.example").send();
    let headers = answer.await.unwrap().headers().clone();
    assert!(!headers.contains_key("access-control-allow-origin"));
    assert!(headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().to_lowercase().contains("origin")));
}

#[tokio::test]
async fn ids_are_unique_in_a_burst() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let service = Service::start(&[("ssh.execute_wait_s", 0.into())]);
    let connection = format!("ssh -p {} root@127.0.0.1", silent.local_addr().unwrap().port());
    let body = json!({"ssh_connection": connection, "workflow_file": workflow_file(&service)});
    let client = service.client();
    let ids = futures_util::future::join_all((0..100).map(|_| client.accepted(&body))).await;
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), 100);
    let on_disk: Value = serde_json::from_slice(&fs::read(service.state_file()).unwrap()).unwrap();
    assert!(ids.iter().all(|id| on_disk["workflows"].get(id).is_some()), "accepted means on disk");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_hung_connections() {
    let mut service = Service::start(&[]);
    let address = service.url().trim_start_matches("http://").to_owned();
    let mut hung = TcpStream::connect(address).await.unwrap();
    hung.write_all(b"POST /comfyui/workflow/execute HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n").await.unwrap();
    assert!(service.terminate(Duration::from_secs(5)).success());
    let mut rest = Vec::new();
    hung.read_to_end(&mut rest).await.ok();
}
