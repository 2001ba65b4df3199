//! ComfyUI's port through SSH: the socket for HTTP, and the stream for everything else.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt};

use comfy_remote::ssh::SshErrorKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use super::{Place, get, within};
use crate::{
    loopback::{self, Deaf},
    support::sshd::SshdOptions,
};

#[tokio::test(flavor = "multi_thread")]
async fn http_passes_through_the_socket_of_a_tunnel() {
    let Some(place) = Place::start() else { return };
    let address = loopback::serve(loopback::saying("hello from the box")).await;
    let session = place.session().await;
    let tunnel = within(session.forward(address.port())).await.unwrap();
    let folder = tunnel.socket().parent().unwrap().to_owned();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let answers = (0..40).map(|_| get(tunnel.socket()));
    for answer in within(futures_util::future::join_all(answers)).await {
        assert_eq!(answer.unwrap(), "hello from the box");
    }
    let clone = tunnel.clone();
    drop(tunnel);
    assert_eq!(within(get(clone.socket())).await.unwrap(), "hello from the box");
    let socket = clone.socket().to_owned();
    drop(clone);
    assert!(!folder.exists());
    assert!(within(get(&socket)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_stands_before_anybody_listens_at_its_end() {
    let Some(place) = Place::start() else { return };
    let session = place.session().await;
    let deaf = Deaf::new();
    let port = deaf.port;
    let tunnel = within(session.forward(port)).await.unwrap();
    let error = within(tunnel.open()).await.unwrap_err();
    assert!(error.is_port_closed() && error.is_transient(), "{error:?}");
    assert!(error.to_string().starts_with(&format!("nothing listens on port {port} of 127.0.0.1:")), "{error}");
    assert!(within(get(tunnel.socket())).await.is_err());
    loopback::serve_on(deaf.listen(), loopback::saying("here now"));
    assert_eq!(within(get(tunnel.socket())).await.unwrap(), "here now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_on_the_other_loopback_address_is_found() {
    let Some(place) = Place::start() else { return };
    let deaf = Deaf::new();
    let six = TcpListener::bind(("::1", deaf.port)).await;
    let named = tokio::net::lookup_host(("localhost", deaf.port)).await.unwrap().any(|address| address.is_ipv6());
    let can_be_found = six.is_ok() && named;
    if let Ok(six) = six {
        loopback::serve_on(six, loopback::saying("six"));
    }
    let session = place.session().await;
    let tunnel = within(session.forward(deaf.port)).await.unwrap();
    if can_be_found {
        assert_eq!(within(get(tunnel.socket())).await.unwrap(), "six");
    } else {
        // A machine without IPv6, or one whose localhost is 127.0.0.1 only: then so is the box's.
        assert!(within(tunnel.open()).await.unwrap_err().is_port_closed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_a_tunnel_carries_bytes_both_ways_and_ends_cleanly() {
    let Some(mut place) = Place::start() else { return };
    let listener = loopback::listener().await;
    let port = listener.local_addr().unwrap().port();
    let session = place.session().await;
    let tunnel = within(session.forward(port)).await.unwrap();
    drop(within(listener.accept()).await.unwrap()); // the probe
    let mut stream = within(tunnel.open()).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let echo = tokio::spawn(async move {
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        far.write_all(&received).await.unwrap();
    });
    within(stream.write_all(&sent)).await.unwrap();
    within(stream.shutdown()).await.unwrap();
    let mut received = Vec::new();
    within(stream.read_to_end(&mut received)).await.unwrap();
    assert!(received == sent);
    within(echo).await.unwrap();

    let mut stream = within(tunnel.open()).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    drop(tunnel);
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within(far.read_u8()).await.unwrap(), b'x', "a stream outlives its tunnel");
    drop(stream);
    assert_eq!(within(far.read(&mut [0])).await.unwrap(), 0, "a dropped stream is closed on the box");

    let tunnel = within(session.forward(port)).await.unwrap();
    let mut stream = within(tunnel.open()).await.unwrap();
    assert_eq!(place.sshd.cut_connections(), 1);
    let error = within(stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a lost connection is no orderly end: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_does_not_stop_the_others_for_long() {
    let Some(place) = Place::start() else { return };
    let flood = loopback::listener().await;
    let flood_port = flood.local_addr().unwrap().port();
    let stopped = CancellationToken::new();
    let stop = stopped.clone();
    tokio::spawn(async move {
        drop(flood.accept().await); // the probe
        let (mut stream, _) = flood.accept().await.unwrap();
        while stream.write_all(&[7; 65_536]).await.is_ok() {}
        stop.cancel();
    });
    let address = loopback::serve(loopback::saying("still here")).await;
    let session = place.session().await;
    let tunnel = within(session.forward(address.port())).await.unwrap();
    let flooded = within(session.forward(flood_port)).await.unwrap();
    let mut unread = within(flooded.open()).await.unwrap();
    within(unread.read_u8()).await.unwrap();
    // More than fit into the queue of the connection, so that each of them waits while it stands still.
    let others = (0..20).map(async |_| {
        while !stopped.is_cancelled() {
            assert_eq!(within(get(tunnel.socket())).await.unwrap(), "still here");
        }
    });
    futures_util::future::join_all(others).await;
    let end = within(unread.read_to_end(&mut Vec::new())).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(within(get(tunnel.socket())).await.unwrap(), "still here");
    assert!(!session.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_forwarding_is_final() {
    let options = SshdOptions { forwarding: false, ..SshdOptions::default() };
    let Some(place) = Place::start_with(options) else { return };
    let session = place.session().await;
    let error = within(session.forward(8188)).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::ForwardingRefused);
    assert!(!error.is_transient());
    assert_eq!(
        error.to_string(),
        format!(
            "127.0.0.1:{} refuses to forward ports; set AllowTcpForwarding yes in its sshd_config",
            place.sshd.port()
        )
    );
    within(session.transfer()).await.unwrap();
}
