//! A box that was let to somebody else, at the same address: it gets no byte of a prompt or an image.

use std::{fs, num::NonZeroU64};

use comfy_remote::sandbox::{ChaosProxy, Direction, Hold};
use serde_json::{Value, json};

use super::text;
use crate::{
    far_end::{FarEnd, Kind},
    graphs::{invert, slow, tag},
    sandbox_stage::PATIENCE,
    support::{
        eventually,
        service::Service,
        sshd::{HostKey, Sshd, SshdOptions, user},
    },
};

/// The end of a workflow whose box shows another key, which must have seen nobody log in.
async fn refused(service: &Service, id: &str, stranger: &Sshd, name: &str) {
    let failed = service.client().wait_for_status(id, "failed", PATIENCE).await;
    assert_eq!(failed["error_code"], "ssh_host_key_changed", "{failed:#}");
    let message = failed["error_message"].as_str().unwrap();
    let known_hosts = fs::read_to_string(stranger.known_hosts()).unwrap();
    let line = 1 + known_hosts.lines().position(|line| line.starts_with(name)).unwrap();
    for part in [
        format!("the host key of {name} has changed: {} line {line} has ", stranger.known_hosts().display()),
        format!("ssh-keygen -R '{name}' -f '{}'", stranger.known_hosts().display()),
    ] {
        assert!(message.contains(&part), "{part} is not in {message}");
    }
    assert_eq!(message.matches("SHA256:").count(), 2, "both keys are shown: {message}");
    assert!(!stranger.log().contains("Accepted"), "the stranger has let us in: {}", stranger.log());
}

/// A run that stands before its last node.
async fn running(far: &FarEnd, service: &Service) -> (String, Hold) {
    let held = far.sandbox.as_ref().unwrap().faults().hold_before("3");
    let id = service.client().accepted(&far.request(service.folder(), &slow(&tag(), 1, 1))).await;
    eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
    (id, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_ends_a_running_workflow_and_one_that_is_resumed() {
    for is_restarted in [false, true] {
        let Some(mut far) = FarEnd::start(Kind::OpenSsh).await else { return };
        let mut service = Service::start(&[]);
        let (id, _held) = running(&far, &service).await;
        if is_restarted {
            service.kill();
        }
        let sshd = far.sshd.as_mut().unwrap();
        sshd.restart(HostKey::New);
        if is_restarted {
            service.launch();
        }
        refused(&service, &id, sshd, &format!("[127.0.0.1]:{}", sshd.port())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_ends_an_upload_that_would_go_on() {
    let Some(mut far) = FarEnd::start(Kind::OpenSsh).await else { return };
    let service = Service::start(&[]);
    let image = service.folder().join("large.png");
    fs::write(&image, vec![7; 8 << 20]).unwrap();
    let sshd = far.sshd.as_ref().unwrap();
    let proxy = ChaosProxy::start(([127, 0, 0, 1], sshd.port()).into()).await.unwrap();
    proxy.limit(Direction::Up, NonZeroU64::new(1 << 20));
    let mut request: Value = far.request(service.folder(), &invert(&tag(), "large.png"));
    request["ssh_connection"] = sshd.connection_through(proxy.port()).into();
    request["input_images"] = json!([image]);
    let id = service.client().accepted(&request).await;
    eventually("part of the image to be sent", async || (proxy.passed(Direction::Up) > 1 << 20).then_some(())).await;
    let sshd = far.sshd.as_mut().unwrap();
    sshd.restart(HostKey::New);
    refused(&service, &id, sshd, &format!("[127.0.0.1]:{}", proxy.port())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_of_a_jump_host_is_refused_as_well() {
    let Some(far) = FarEnd::start(Kind::OpenSsh).await else { return };
    let mut gate = Sshd::start(SshdOptions::default());
    let service = Service::start(&[]);
    let sshd = far.sshd.as_ref().unwrap();
    let keys = [&gate, sshd].map(|sshd| format!("-i {}", text(&sshd.client_key()))).join(" ");
    let (gate_port, box_port, user) = (gate.port(), sshd.port(), user());
    let mut request = far.request(service.folder(), &slow(&tag(), 1, 1));
    request["ssh_connection"] =
        format!("ssh {keys} -J {user}@127.0.0.1:{gate_port} -p {box_port} {user}@127.0.0.1").into();
    let held = far.sandbox.as_ref().unwrap().faults().hold_before("3");
    let id = service.client().accepted(&request).await;
    eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
    let before = sshd.log().matches("Accepted").count();
    gate.restart(HostKey::New);
    let failed = service.client().wait_for_status(&id, "failed", PATIENCE).await;
    assert_eq!(failed["error_code"], "ssh_host_key_changed", "{failed:#}");
    let message = failed["error_message"].as_str().unwrap();
    assert!(message.contains(&format!("the host key of [127.0.0.1]:{gate_port} has changed")), "{message}");
    assert!(!gate.log().contains("Accepted"), "{}", gate.log());
    assert_eq!(sshd.log().matches("Accepted").count(), before, "the box behind it was not reached again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_checks_is_told_in_the_log() {
    let Some(far) = FarEnd::start(Kind::OpenSsh).await else { return };
    let service = Service::start(&[("ssh.host_keys", "off".into())]);
    let id = service.client().accepted(&far.request(service.folder(), &slow(&tag(), 1, 1))).await;
    service.client().wait_for_status(&id, "completed", PATIENCE).await;
    let port = far.sshd.as_ref().unwrap().port();
    service.says(&format!("the host key of 127.0.0.1:{port} was not checked")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_records_is_held_to_all_the_same_while_a_run_lasts() {
    for (options, settings) in [
        ("-o UserKnownHostsFile=/dev/null", vec![]),
        ("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null", vec![]),
        ("", vec![("ssh.host_keys", "off".into())]),
    ] {
        let Some(mut far) = FarEnd::start(Kind::OpenSsh).await else { return };
        let service = Service::start(&settings);
        let mut request = far.request(service.folder(), &slow(&tag(), 1, 1));
        request["ssh_connection"] = far.connection().replacen("ssh ", &format!("ssh {options} "), 1).into();
        let held = far.sandbox.as_ref().unwrap().faults().hold_before("3");
        let id = service.client().accepted(&request).await;
        eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
        let sshd = far.sshd.as_mut().unwrap();
        sshd.restart(HostKey::New);
        let failed = service.client().wait_for_status(&id, "failed", PATIENCE).await;
        assert_eq!(failed["error_code"], "ssh_host_key_changed", "{options}: {failed:#}");
        let message = failed["error_message"].as_str().unwrap();
        let name = format!("the host key of [127.0.0.1]:{} has changed: the connections before found", sshd.port());
        assert!(message.contains(&name) && message.matches("SHA256:").count() == 2, "{message}");
        assert!(!sshd.log().contains("Accepted"), "the stranger has let us in: {}", sshd.log());
    }
}
