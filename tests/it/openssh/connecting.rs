//! How connections come about, are shared, are lost and are replaced.

use std::time::Duration;

use comfy_remote::ssh::{Options, Pool, Session, SshError, SshErrorKind, TransferError, Unreachable};
use tokio::io::AsyncReadExt;

use super::{
    Place, parsed,
    proxy::{self, Proxy},
    within,
};
use crate::{
    loopback::{self, Deaf},
    support::sshd::SshdOptions,
};

#[tokio::test(flavor = "multi_thread")]
async fn workflows_share_one_connection_and_a_second_one_for_files() {
    let Some(place) = Place::start() else { return };
    let proxy = Proxy::to(place.sshd.port()).await;
    let pool = place.pool();
    let target = place.target_at(proxy.port, "");
    let connects = (0..20).map(|_| {
        let (pool, target) = (pool.clone(), target.clone());
        tokio::spawn(async move { pool.connect(&target).await.unwrap() })
    });
    let sessions: Vec<Session> =
        within(futures_util::future::join_all(connects)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(proxy.connections(), 1);
    let transfers = sessions.iter().take(8).map(|session| session.transfer());
    for transfer in within(futures_util::future::join_all(transfers)).await {
        transfer.unwrap();
    }
    assert_eq!(proxy.connections(), 2);
    assert_eq!(sessions[0].target(), &target);
    assert_eq!(sessions[0].warnings(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_tried_again_and_given_up() {
    let deaf = Deaf::new();
    let address = format!("127.0.0.1:{}", deaf.port);
    let error = within(pool_without_a_place(Options::default()).connect(&parsed(&address))).await.unwrap_err();
    assert!(matches!(error, SshError::Unreachable { cause: Unreachable::Refused, .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("connection refused by {address}; is the instance running?"));
    assert!(error.is_transient());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_hangs_up_is_tried_three_times() {
    let listener = loopback::listener().await;
    let target = parsed(&listener.local_addr().unwrap().to_string());
    let pool = pool_without_a_place(Options::default());
    let connecting = tokio::spawn(async move { pool.connect(&target).await });
    for _ in 0..3 {
        drop(within(listener.accept()).await.unwrap());
    }
    let error = tokio::select! {
        ended = within(connecting) => ended.unwrap().unwrap_err(),
        _ = listener.accept() => panic!("tried a fourth time"),
    };
    assert!(matches!(error, SshError::Unreachable { cause: Unreachable::Dropped, .. }), "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_comes_up_between_two_attempts_is_reached() {
    let Some(place) = Place::start() else { return };
    let listener = loopback::listener().await;
    let port = listener.local_addr().unwrap().port();
    let far = place.sshd.port();
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        proxy::pass_on(listener.accept().await.unwrap().0, far).await;
    });
    within(place.pool().connect(&place.target_at(port, ""))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_hosts_and_silent_ones_are_told_apart() {
    let silent = loopback::listener().await;
    let options = Options { connect_timeout: Duration::from_secs(1), connect_attempts: 1, ..Options::default() };
    let pool = pool_without_a_place(options);
    let target = parsed(&silent.local_addr().unwrap().to_string());
    let connecting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.connect(&target).await }
    });
    let (mut accepted, _) = within(silent.accept()).await.unwrap();
    let error = within(connecting).await.unwrap().unwrap_err();
    assert!(matches!(error, SshError::TimedOut { .. }), "{error:?}");
    assert_eq!(error.kind(), SshErrorKind::Unreachable);
    let mut rest = Vec::new();
    within(accepted.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.starts_with(b"SSH-2.0-"), "the connection was given up, and closed");

    let unknown = parsed("no-such-host.invalid");
    let error = within(pool.connect(&unknown)).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::Unreachable, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_noticed_and_replaced() {
    let Some(mut place) = Place::start() else { return };
    let pool = place.pool();
    let session = within(pool.connect(&place.target())).await.unwrap();
    let deaf = Deaf::new();
    let tunnel = within(session.forward(deaf.port)).await.unwrap();
    let transfer = within(session.transfer()).await.unwrap();
    assert!(!session.is_closed());
    assert_eq!(place.sshd.cut_connections(), 2, "one for the tunnel, one for files");
    within(session.closed()).await;
    assert!(session.is_closed());
    let error = within(tunnel.open()).await.unwrap_err();
    assert!(matches!(error, SshError::ConnectionLost { .. }) && error.is_transient(), "{error:?}");
    let error = within(transfer.stat("/")).await.unwrap_err();
    assert!(matches!(error, TransferError::ConnectionLost { .. }) && error.is_transient(), "{error:?}");

    let again = within(pool.connect(&place.target())).await.unwrap();
    assert!(!again.is_closed() && session.is_closed());
    assert!(within(again.transfer()).await.unwrap().stat("/").await.unwrap().unwrap().is_dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_falls_silent_is_noticed() {
    let Some(place) = Place::start() else { return };
    let proxy = Proxy::to(place.sshd.port()).await;
    let pool = Pool::new(Options { keepalive: Duration::from_millis(500), ..place.options() }).unwrap();
    let session = within(pool.connect(&place.target_at(proxy.port, ""))).await.unwrap();
    let deaf = Deaf::new();
    let tunnel = within(session.forward(deaf.port)).await.unwrap();
    proxy.freeze.cancel();
    within(session.closed()).await;
    let error = within(tunnel.open()).await.unwrap_err();
    let expected = format!("the connection to 127.0.0.1:{} was lost: the box no longer answers", proxy.port);
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_on_the_way_in_is_tried_again_and_no_refusal() {
    let options = SshdOptions { extra: vec!["MaxStartups 100".to_owned()], ..SshdOptions::default() };
    let Some(place) = Place::start_with(options) else { return };
    // Handshake and login take some 2 KB from our side; each of these breaks elsewhere in between.
    let logins = (100..2_500).step_by(100).map(|bytes| {
        let pool = place.pool();
        let place = &place;
        async move {
            let (port, again) = proxy::break_first_after(bytes, place.sshd.port()).await;
            let result = within(pool.connect(&place.target_at(port, ""))).await;
            result.unwrap_or_else(|error| panic!("broken after {bytes} bytes: {error}"));
            again.is_cancelled()
        }
    });
    let tried_again = futures_util::future::join_all(logins).await.into_iter().filter(|again| *again).count();
    assert!(tried_again >= 10, "only {tried_again} connections broke on the way in");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_the_pool_ends_everything() {
    let Some(place) = Place::start() else { return };
    let pool = place.pool();
    let session = within(pool.connect(&place.target())).await.unwrap();
    within(pool.close_all()).await;
    within(session.closed()).await;
    let error = within(session.forward(1)).await.unwrap_err().to_string();
    assert!(error.ends_with("was lost: it was closed on this side"), "{error}");
    assert!(matches!(within(pool.connect(&place.target())).await, Err(SshError::Closed)));
    assert!(matches!(within(session.transfer()).await, Err(SshError::Closed)));
}

/// For tests that get nowhere near a login.
fn pool_without_a_place(options: Options) -> Pool {
    Pool::new(Options { use_agent: false, config_file: Some("/dev/null".into()), ..options }).unwrap()
}
