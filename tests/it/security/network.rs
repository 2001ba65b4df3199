//! Others on the network: without a token they get nothing, and the service does not start by mistake where they are.

use std::{fs, path::Path};

use reqwest::{Method, RequestBuilder, StatusCode, header};
use serde_json::Value;
use toml::Value as Setting;

use crate::support::{
    client::{ApiClient, answer},
    service::Service,
};

const TOKEN: &str = "correct horse battery staple";

fn secret() -> String {
    TOKEN.replace(' ', "-")
}

const ROUTES: [(&str, &str); 9] = [
    ("POST", "/comfyui/workflow/execute"),
    ("GET", "/comfyui/workflow/state"),
    ("GET", "/comfyui/workflow/some_id/progress"),
    ("POST", "/comfyui/workflow/some_id/cancel"),
    ("POST", "/comfyui/workflow/some_id/retry"),
    ("POST", "/comfyui/workflow/some_id/download"),
    ("GET", "/comfyui/workflow/some_id/outputs"),
    ("GET", "/comfyui/workflow/some_id/active"),
    ("DELETE", "/nowhere"),
];

fn request(client: &ApiClient, (method, path): (&str, &str)) -> RequestBuilder {
    client.request(method.parse().unwrap(), path)
}

async fn unauthorized(request: RequestBuilder) {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    let body: Value = response.json().await.unwrap();
    assert!(body["success"] == false && body["message"].as_str().unwrap().contains("Authorization: Bearer"), "{body}");
}

#[tokio::test]
async fn with_a_token_set_every_route_but_health_wants_it() {
    let service = Service::start(&[("server.auth_token", secret().into())]);
    let client = service.client();
    for route in ROUTES {
        unauthorized(request(&client, route)).await;
        for wrong in ["", "Bearer", "Bearer ", "Bearer wrong", &secret(), "Basic Y29ycmVjdA==", "Bearer correct"] {
            unauthorized(request(&client, route).header("authorization", wrong)).await;
        }
        let twice = request(&client, route).bearer_auth(secret()).header("authorization", "Bearer wrong");
        unauthorized(twice).await;
        let (status, _) = answer(request(&client, route).bearer_auth(secret())).await;
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{route:?}");
    }
    let lower_case = client.request(Method::GET, "/comfyui/workflow/state");
    let lower_case = answer(lower_case.header("authorization", format!("bearer {}", secret()))).await;
    assert_eq!(lower_case.0, StatusCode::OK);
    let (status, health) = client.get("/health").await;
    assert_eq!((status, health["status"].as_str()), (StatusCode::OK, Some("ok")));
}

#[tokio::test]
async fn a_web_page_can_ask_whether_it_may_and_read_that_it_may_not() {
    let service = Service::start(&[
        ("server.auth_token", secret().into()),
        ("server.cors_origins", vec!["http://p.example"].into()),
    ]);
    let client = service.client();
    let preflight = client.request(Method::OPTIONS, "/comfyui/workflow/execute").header("origin", "http://p.example");
    let preflight = preflight.header("access-control-request-method", "POST");
    let answered =
        preflight.header("access-control-request-headers", "authorization,content-type").send().await.unwrap();
    assert_eq!(answered.status(), StatusCode::NO_CONTENT);
    let allowed = answered.headers()["access-control-allow-headers"].to_str().unwrap().to_lowercase();
    assert!(allowed.contains("authorization"), "{allowed}");
    let refused = client.request(Method::GET, "/comfyui/workflow/state").header("origin", "http://p.example");
    let refused = refused.send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], "http://p.example");
}

#[tokio::test]
async fn each_line_of_a_file_of_tokens_is_one() {
    let service = Service::start(&[]);
    let file = service.folder().join("tokens");
    fs::write(&file, "# for the web page\nfirst-token-0000000\n\n  second-token-000000  \n").unwrap();
    let service = Service::start(&[("server.auth_token_file", file.to_str().unwrap().into())]);
    let client = service.client();
    let state = |token: &str| answer(client.request(Method::GET, "/comfyui/workflow/state").bearer_auth(token));
    for token in ["first-token-0000000", "second-token-000000"] {
        assert_eq!(state(token).await.0, StatusCode::OK);
    }
    assert_eq!(state("# for the web page").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_from_the_environment_is_taken_as_it_stands() {
    for token in ["00123456789012345678", "true", "[1]", "1e5"] {
        let mut service = Service::start(&[]);
        service.kill();
        service.launch_with(&[("COMFY_REMOTE_SERVER__AUTH_TOKEN", token)]);
        let state = service.client().request(Method::GET, "/comfyui/workflow/state");
        assert_eq!(answer(state.bearer_auth(token)).await.0, StatusCode::OK, "{token}");
        assert_eq!(service.client().state().await.0, StatusCode::UNAUTHORIZED);
    }
}

/// What the start says when it fails with these settings.
fn refusal(settings: &[(&str, Setting)]) -> String {
    let mut service = Service::start(&[]);
    service.kill();
    service.configure(settings);
    let ended = service.command().output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    said.lines().last().unwrap().to_owned()
}

#[test]
fn an_address_that_others_reach_needs_a_token_or_an_explicit_word() {
    for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:5000", "[::ffff:192.0.2.1]:0"] {
        let said = refusal(&[("server.bind", bind.into())]);
        assert!(said.contains("auth_token") && said.contains("allow_unauthenticated = true"), "{bind}: {said}");
    }
    for bind in ["127.0.0.1:0", "127.8.8.8:0", "[::ffff:127.0.0.1]:0"] {
        Service::start(&[("server.bind", bind.into())]);
    }
}

#[test]
fn the_flag_for_the_address_is_no_way_around_that() {
    let mut service = Service::start(&[]);
    service.kill();
    let ended = service.command().args(["--bind", "0.0.0.0:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(1) && said.contains("allow_unauthenticated"), "{said}");
}

#[test]
fn a_token_that_cannot_be_used_ends_the_start_without_being_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        Setting::from(folder.path().join(name).to_str().unwrap())
    };
    let token = |value: Setting| vec![("server.auth_token", value)];
    let in_file = |value: Setting| vec![("server.auth_token_file", value)];
    let both = [token("abcdefghijklmnop".into()), in_file(file("good", "abcdefghijklmnop"))].concat();
    for settings in [
        token("".into()),
        token("secret with spaces".into()),
        token("sëcret-0123456789".into()),
        token(1_234_567_890_i64.into()),
        in_file(file("empty", "# secret\n")),
        in_file(folder.path().join("missing").to_str().unwrap().into()),
        in_file(folder.path().to_str().unwrap().into()),
        in_file("/dev/zero".into()),
        both,
    ] {
        let said = refusal(&settings);
        assert!(said.contains("auth_token"), "{settings:?}: {said}");
        for secret in ["secret with", "ëcret", "1234567890", "abcdefgh"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[tokio::test]
async fn the_token_is_in_no_log_and_no_answer() {
    let service = Service::start(&[("server.auth_token", secret().into()), ("log.level", "trace".into())]);
    let client = service.client();
    let mut answers = String::new();
    for route in ROUTES {
        answers += &answer(request(&client, route).bearer_auth(secret())).await.1.to_string();
        answers += &answer(request(&client, route).bearer_auth(format!("{}!", secret()))).await.1.to_string();
    }
    assert!(!answers.contains(&secret()) && !service.log().contains(&secret()));
    let process = Path::new("/proc").join(service.process().to_string());
    if let Ok(arguments) = fs::read(process.join("cmdline")) {
        assert!(!String::from_utf8_lossy(&arguments).contains(&secret()));
    }
}
