//! The command line and the start: what people type, and what they get wrong.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::support::service::Service;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_comfy-remote"))
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_and_version_are_as_people_expect() {
    let help = run(&["--help"], &[]);
    assert!(help.status.success());
    for word in ["serve", "demo", "--config", "--bind", "--version"] {
        assert!(text(&help.stdout).contains(word), "{word}: {}", text(&help.stdout));
    }
    let version = run(&["--version"], &[]);
    assert_eq!(text(&version.stdout), format!("comfy-remote {}\n", env!("CARGO_PKG_VERSION")));
    assert!(!run(&["--nonsense"], &[]).status.success());
}

#[test]
fn a_bad_setting_ends_the_start_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    fs::write(&file, "[server]\nprot = 5000\n").unwrap();
    let above = folder.path().join("x/../bad.toml").display().to_string();
    fs::create_dir(folder.path().join("x")).unwrap();
    let above_expected = format!(
        "server.prot: unknown field, expected one of bind, host_names, cors_origins, auth_token, \
        auth_token_file, allow_unauthenticated, max_body_bytes, header_timeout_s, max_connections (in {above})"
    );
    let file = file.display().to_string();
    for (arguments, environment, expected) in [
        (vec!["--config", &file], vec![], "server.prot"),
        (vec!["serve", "--config", &file], vec![], "server.prot"),
        (vec!["--config", "/nowhere.toml"], vec![], "configuration file not found: /nowhere.toml"),
        (vec![], vec![("COMFY_REMOTE_SSH__CONNECT_TIMEOUT_S", "soon")], "(from COMFY_REMOTE_SSH__CONNECT_TIMEOUT_S)"),
        (vec!["--config", "/"], vec![], "configuration file is a directory: /"),
        (vec!["--config", &above], vec![], above_expected.as_str()),
        (vec![], vec![("COMFY_REMOTE_FOO__BAR", "1")], "(from COMFY_REMOTE_FOO__BAR)"),
        (vec![], vec![("COMFY_REMOTE_SERVER__CORS_ORIGINS", "[\"x\"]")], "(from COMFY_REMOTE_SERVER__CORS_ORIGINS)"),
        (vec![], vec![("COMFY_REMOTE_STATE__FILE", "/nowhere/state.json")], "does not exist: /nowhere; create it"),
        (vec![], vec![("COMFY_REMOTE_SERVER__NONSENSE", "1")], "server.nonsense"),
        (vec![], vec![("COMFY_REMOTE_SSH__CONNECT_ATTEMPTS", "0")], "ssh.connect_attempts must be above 0"),
        (vec![], vec![("COMFY_REMOTE_LIMITS__MAX_RUNNING", "0")], "limits.max_running must be above 0"),
        (vec![], vec![("COMFY_REMOTE_LIMITS__MAX_RUNNING_PER_BOX", "0")], "max_running_per_box must be above 0"),
        (vec![], vec![("COMFY_REMOTE_STATE__FILE", "")], "state.file must not be empty"),
        (
            vec![],
            vec![("COMFY_REMOTE_DEFAULTS__COMFYUI_INPUT_DIR", "rel")],
            "defaults.comfyui_input_dir must be an absolute path on the box, such as /workspace/ComfyUI/input: rel",
        ),
    ] {
        let ended = run(&arguments, &environment);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(expected) && said.trim_end().lines().count() == 1, "{arguments:?}: {said}");
    }
}

#[test]
fn an_address_that_is_none_is_answered_with_one_that_is() {
    for given in ["localhost:5000", "5000", ":5000", "127.0.0.1"] {
        let ended = run(&["--bind", given], &[]);
        assert_eq!(ended.status.code(), Some(2), "{given}");
        assert!(text(&ended.stderr).contains("such as 127.0.0.1:5000 or [::1]:5000"), "{}", text(&ended.stderr));
    }
}

#[test]
fn a_configuration_need_not_be_a_plain_file_and_is_told_when_it_cannot_be_read() {
    let said = |file: &str| text(&run(&["--config", file], &[("COMFY_REMOTE_STATE__FILE", "")]).stderr);
    assert!(said("/dev/null").contains("state.file must not be empty"), "{}", said("/dev/null"));
    let binary = env!("CARGO_BIN_EXE_comfy-remote");
    let expected = format!("comfy-remote: configuration file cannot be read: {binary}: ");
    assert!(said(binary).starts_with(&expected), "{}", said(binary));
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_one_sentence() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(&["--bind", &address], &[("COMFY_REMOTE_STATE__FILE", "state.json")]);
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1));
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}

#[test]
fn a_second_service_on_one_state_file_refuses_to_start_and_says_who_holds_it() {
    let first = Service::start(&[]);
    let ended = first.command().output().unwrap();
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1));
    let line = said.lines().last().unwrap();
    assert!(line.contains("state.json is in use by process ") && line.contains("[state] file"), "{said}");
}

#[tokio::test]
async fn lists_in_the_environment_are_toml_and_bind_beats_all() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(
        &["--bind", "256.0.0.1:1"],
        &[("COMFY_REMOTE_SERVER__CORS_ORIGINS", "[\"http://a\"]"), ("COMFY_REMOTE_STATE__FILE", "s.json")],
    );
    assert!(text(&ended.stderr).contains("--bind"), "{}", text(&ended.stderr));
    drop(folder);
    let ended = run(&[], &[("COMFY_REMOTE_SERVER__CORS_ORIGINS", "[\"no origin\"]")]);
    assert!(text(&ended.stderr).contains("server.cors_origins"), "{}", text(&ended.stderr));
}

#[tokio::test]
async fn a_state_file_that_cannot_be_read_is_moved_aside_and_the_service_starts() {
    let mut service = Service::start(&[]);
    service.terminate(Duration::from_secs(5));
    fs::write(service.state_file(), "half a file {").unwrap();
    service.launch();
    assert!(service.client().state().await.1["state"].is_null());
    let folder = service.state_file().parent().unwrap().to_owned();
    let aside = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let aside = aside.into_iter().find(|path| path.to_string_lossy().contains("unreadable")).expect("moved aside");
    assert_eq!(fs::read_to_string(aside).unwrap(), "half a file {");
    service.says("could not be read").await;
}

#[tokio::test]
async fn logs_go_to_a_file_a_day_in_json_if_so_wished() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("new/logs");
    let settings = [("log.folder", logs.to_str().unwrap().into()), ("log.format", "json".into())];
    let mut service = Service::start(&settings);
    assert!(service.client().state().await.1["state"].is_null());
    service.terminate(Duration::from_secs(5));
    let files: Vec<_> = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let text = fs::read_to_string(&files[0]).unwrap();
    assert!(!text.is_empty());
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["message"].is_string(), "{line}");
    }
}

#[test]
fn the_demo_ends_with_the_inverted_picture_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let ended = run(&["demo", "--once", "--output", output.to_str().unwrap()], &[]);
    let said = text(&ended.stdout);
    assert!(ended.status.success(), "{said}\n{}", text(&ended.stderr));
    let line = said.lines().find_map(|line| line.strip_prefix("Output: ")).expect("the output is named");
    let inverted = image::open(line).unwrap().to_rgb8();
    let photo = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png");
    let photo = image::open(photo).unwrap().to_rgb8();
    assert_eq!(inverted.dimensions(), photo.dimensions());
    for (before, after) in photo.pixels().zip(inverted.pixels()) {
        assert_eq!(before.0.map(|part| 255 - part), after.0);
    }
}
