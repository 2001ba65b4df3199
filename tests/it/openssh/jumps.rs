//! Boxes that are reached through others.

use std::fs;

use comfy_remote::ssh::{SshError, SshErrorKind, Unreachable};

use super::{Place, get, opened, parsed, within};
use crate::{
    loopback::{self, Deaf},
    support::sshd::{SshdOptions, user},
};

#[tokio::test(flavor = "multi_thread")]
async fn jump_hosts_are_passed_through_one_after_the_other() {
    let (Some(mut first), Some(second), Some(last)) = (Place::start(), Place::start(), Place::start()) else { return };
    let user = user();
    let keys = [&first, &second, &last].map(|place| format!("-i {}", place.sshd.client_key().display())).join(" ");
    let [one, two, three] = [&first, &second, &last].map(|place| place.sshd.port());
    let target =
        parsed(&format!("ssh {keys} -J {user}@127.0.0.1:{one},{user}@127.0.0.1:{two} {user}@127.0.0.1:{three}"));
    let session = within(first.pool().connect(&target)).await.unwrap();
    let known = fs::read_to_string(first.sshd.known_hosts()).unwrap();
    assert_eq!(known.lines().count(), 3, "each hop has its own host key: {known}");
    assert!(!session.is_closed());
    let address = loopback::serve(loopback::saying("through two hops")).await;
    let tunnel = within(session.forward(address.port())).await.unwrap();
    assert_eq!(within(get(tunnel.socket())).await.unwrap(), "through two hops");
    let transfer = within(session.transfer()).await.unwrap();
    let size = within(transfer.upload(opened(&first.sshd.client_key()), &last.remote("uploaded"), 0)).await.unwrap();
    assert_eq!(size, fs::metadata(last.path("uploaded")).unwrap().len());

    second.sshd.authorize_nobody();
    let error = within(first.pool().connect(&target)).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::Auth);
    let start = format!("on the way through the jump host 127.0.0.1:{two}: {user}@127.0.0.1:{two}");
    assert!(error.to_string().starts_with(&start), "{error}");

    first.sshd.cut_connections();
    within(session.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_an_alias_may_lead_through_another_alias() {
    let (Some(gate), Some(inner)) = (Place::start(), Place::start()) else { return };
    let host = |name: &str, place: &Place| {
        let key = place.sshd.client_key();
        let (port, user) = (place.sshd.port(), user());
        format!("Host {name}\nHostName 127.0.0.1\nPort {port}\nUser {user}\nIdentityFile {}\n", key.display())
    };
    let config = [host("gate", &gate), host("inner", &inner), "ProxyJump gate\n".to_owned(), host("apart", &inner)];
    fs::write(inner.path("config"), config.concat()).unwrap();
    let ways = ["inner", "ssh -N inner", "ssh -J gate apart", "ssh apart -Jgate", "ssh -o ProxyJump=gate apart"];
    for (before, text) in ways.into_iter().enumerate() {
        inner.reach(&inner.pool(), &parsed(text)).await;
        assert_eq!((gate.logins(), inner.logins()), (before + 1, before + 1), "{text}");
    }
    inner.reach(&inner.pool(), &parsed("ssh -J none inner")).await;
    assert_eq!((gate.logins(), inner.logins()), (ways.len(), ways.len() + 1), "straight there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_that_forbids_forwarding_is_named() {
    let gate = Place::start_with(SshdOptions { forwarding: false, ..SshdOptions::default() });
    let (Some(gate), Some(inner)) = (gate, Place::start()) else { return };
    let jump = format!("-J {}@localhost:{} -i {}", user(), gate.sshd.port(), gate.sshd.client_key().display());
    let error = within(inner.pool().connect(&inner.target_at(inner.sshd.port(), &jump))).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::ForwardingRefused);
    let start = format!("localhost:{} refuses to forward ports", gate.sshd.port());
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_is_down_behind_its_jump_host_is_told_from_the_jump_host() {
    let Some(gate) = Place::start() else { return };
    let down = Deaf::new();
    let jump = format!("-J {}@localhost:{}", user(), gate.sshd.port());
    let error = within(gate.pool().connect(&gate.target_at(down.port, &jump))).await.unwrap_err();
    assert!(matches!(error, SshError::Unreachable { cause: Unreachable::Refused, .. }), "{error:?}");
    let refused = format!("connection refused by 127.0.0.1:{}; is the instance running?", down.port);
    assert_eq!(error.to_string(), refused);
    assert_eq!(gate.logins(), 3, "it may come up, so it is tried again");

    let address = format!("localhost:{}", down.port);
    let jump = format!("-J {}@{address}", user());
    let error = within(gate.pool().connect(&gate.target_at(gate.sshd.port(), &jump))).await.unwrap_err();
    let start = format!("on the way through the jump host {address}: connection refused by {address}");
    assert!(error.to_string().starts_with(&start), "{error}");
}
