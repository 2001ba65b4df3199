//! Keys are used only where the operator allows it, whatever a request or `~/.ssh/config` says.

use std::fs;

use comfy_remote::ssh::{Options, Pool, Target};
use serde_json::json;

use super::refusal;
use crate::{
    graphs::{slow, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::{
        self, eventually,
        service::Service,
        sshd::{Sshd, SshdOptions},
    },
};

fn patterns(texts: &[&str]) -> toml::Value {
    toml::Value::Array(texts.iter().map(|text| (*text).into()).collect())
}

#[tokio::test]
async fn hosts_that_are_not_allowed_are_refused_after_aliases_and_at_every_jump() {
    let service =
        Service::start(&[("ssh.allowed_hosts", patterns(&["*.good.net", "root@10.0.0.?:22", "!bad.good.net"]))]);
    fs::create_dir_all(service.folder().join(".ssh")).unwrap();
    let config = "Host inside.good.net\nHostName 127.0.0.1\nUser u\nHost far.good.net\nProxyJump u@evil.net\n";
    fs::write(service.folder().join(".ssh/config"), config).unwrap();
    for (connection, destination) in [
        ("ssh u@evil.net", "u@evil.net"),
        ("ssh u@box.good.net.evil.net", "u@box.good.net.evil.net"),
        ("ssh u@bad.good.net", "u@bad.good.net"),
        ("ssh -o HostName=evil.net u@box.good.net", "u@evil.net"),
        ("ssh -p 2222 root@10.0.0.1", "root@10.0.0.1:2222"),
        ("ssh other@10.0.0.1", "other@10.0.0.1"),
        ("ssh -J u@evil.net:23 u@box.good.net", "u@evil.net:23"),
        ("ssh -J u@box.good.net,u@evil.net u@other.good.net", "u@evil.net"),
        // Where an alias leads, and by which way, is the operator's own.
        ("ssh inside.good.net", "inside.good.net"),
        ("ssh u@far.good.net", "u@far.good.net"),
        ("ssh -J inside.good.net u@box.good.net", "inside.good.net"),
        ("ssh -J far.good.net u@box.good.net", "far.good.net"),
    ] {
        let request = json!({"ssh_connection": connection, "workflow_file": "/nowhere.json"});
        let refused = refusal(&service, &request).await;
        let expected =
            format!("Field ssh_connection: {destination} does not lead to a host that [ssh] allowed_hosts allows");
        assert_eq!(refused, expected, "{connection}");
    }
    let request = json!({"ssh_connection": "ssh u@BOX.good.net", "workflow_file": "/nowhere.json"});
    assert_eq!(refusal(&service, &request).await, "Workflow file not found: /nowhere.json");
}

#[tokio::test]
async fn a_box_that_is_no_longer_allowed_is_not_reached_after_a_restart() {
    let mut stage = Stage::with_settings(&[("ssh.allowed_hosts", patterns(&["127.0.0.1"]))]).await;
    let held = stage.sandbox.faults().hold_before("3");
    let id = stage.start(&slow(&tag(), 1, 1)).await;
    eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
    stage.service.kill();
    stage.service.configure(&[("ssh.allowed_hosts", patterns(&["*.good.net"]))]);
    stage.service.launch();
    let said = "does not lead to a host that [ssh] allowed_hosts allows";
    let client = stage.service.client();
    client
        .wait_for(&id, "the refusal to show", PATIENCE, |progress| {
            progress["connection"]["cause"].as_str().is_some_and(|cause| cause.contains(said))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_agent_nor_display_is_forwarded_whatever_the_configuration_file_says() {
    if !Sshd::available() {
        support::skip("sshd", "no OpenSSH server is installed");
        return;
    }
    let sshd = Sshd::start(SshdOptions { extra: vec!["LogLevel DEBUG1".to_owned()], ..SshdOptions::default() });
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::write(&config, "Host *\nForwardAgent yes\nForwardX11 yes\nRemoteForward 1 127.0.0.1:1\n").unwrap();
    let options = Options { known_hosts: sshd.known_hosts(), config_file: Some(config), ..Options::default() };
    let session = Pool::new(options).unwrap().connect(&Target::parse(&sshd.connection()).unwrap()).await.unwrap();
    session.transfer().await.unwrap();
    eventually("sshd to tell of a request", async || sshd.log().contains("request subsystem").then_some(())).await;
    for request in ["auth-agent-req", "x11-req", "tcpip-forward"] {
        assert!(!sshd.log().contains(request), "{request}: {}", sshd.log());
    }
}
