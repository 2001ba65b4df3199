//! What a box's SSH server can do to the one who connects: talk without end, ask for the impossible, open ways back.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use russh::{Disconnect, MethodKind, MethodSet};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{
    impostor::{Impostor, PICTURE},
    rogue::{Rogue, weak},
    siege::Siege,
};
use crate::loopback;

impl Siege {
    /// Runs a workflow on an honest ComfyUI behind this SSH server, to its end.
    async fn run_behind(&self, connection: String) -> Value {
        let mut request = self.request(Impostor::new().serve().await);
        request["ssh_connection"] = json!(connection);
        let (_, answer) = self.stage.service.client().execute(&request).await;
        let id = answer["workflow_id"].as_str().unwrap_or_else(|| panic!("no workflow: {answer}"));
        self.ended(id).await
    }
}

/// Whoever connects is told this, and then this for ever.
async fn talker(start: &'static [u8], then_for_ever: &'static [u8]) -> String {
    let listener = loopback::listener().await;
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let many = then_for_ever.repeat(64 * 1024 / then_for_ever.len().max(1));
                if stream.write_all(start).await.is_err() {
                    return;
                }
                while !many.is_empty() && stream.write_all(&many).await.is_ok() {}
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
            });
        }
    });
    format!("ssh -p {port} root@127.0.0.1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_comes_to_the_point_is_hung_up_on() {
    let siege = Siege::begin().await;
    let servers = [
        talker(b"", b"").await,
        talker(b"", b"Welcome to this box!\r\n").await,
        talker(b"", b"x").await,
        talker(b"SSH-1.5-old\r\n", b"").await,
        talker(b"SSH-2.0-rogue\r\n", b"").await,
        talker(b"SSH-2.0-rogue\r\n", b"\xff\xff\xff\xff").await,
        talker(b"SSH-2.0-rogue\r\n\x00\x00\x80\x00\x04", b"\0").await,
        // Messages that are to be ignored, and nothing else.
        talker(b"SSH-2.0-rogue\r\n", b"\x00\x00\x00\x0c\x06\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00").await,
        talker(b"HTTP/1.1 200 OK\r\n\r\n", b"").await,
    ];
    for failed in join_all(servers.map(|server| siege.run_behind(server))).await {
        siege.assert_failed(&failed, &["ssh_unreachable"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weak_algorithms_are_refused() {
    let siege = Siege::begin().await;
    for preferred in weak() {
        let failed = siege.run_behind(Rogue::new().offering(preferred).serve().await).await;
        siege.assert_failed(&failed, &["ssh_unreachable"]);
        let message = failed["error_message"].as_str().unwrap();
        assert!(message.contains("handshake"), "{message}");
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_and_passwords_are_never_answered() {
    let siege = Siege::begin().await;
    for methods in [&[MethodKind::KeyboardInteractive][..], &[MethodKind::Password], &[MethodKind::HostBased]] {
        let failed = siege.run_behind(Rogue::new().refusing(MethodSet::from(methods)).serve().await).await;
        siege.assert_failed(&failed, &["ssh_auth"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_back_is_opened() {
    const TIMES: usize = 200;
    let siege = Siege::begin().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let opened = Arc::new(AtomicUsize::new(0));
    let counters = (refused.clone(), opened.clone());
    let rogue = Rogue::new().after_login(move |handle| {
        let (refused, opened) = counters.clone();
        async move {
            for _ in 0..TIMES {
                let results = [
                    handle.channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await,
                    handle.channel_open_forwarded_streamlocal("/run/docker.sock").await,
                    handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await,
                    handle.channel_open_direct_streamlocal("/run/docker.sock").await,
                    handle.channel_open_x11("127.0.0.1", 1).await,
                    handle.channel_open_agent().await,
                    handle.channel_open_session().await,
                ];
                let count = results.iter().filter(|result| result.is_ok()).count();
                opened.fetch_add(count, Ordering::SeqCst);
                refused.fetch_add(results.len() - count, Ordering::SeqCst);
            }
        }
    });
    let done = siege.run_behind(rogue.serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    assert_eq!(opened.load(Ordering::SeqCst), 0);
    assert!(refused.load(Ordering::SeqCst) > 0, "nothing was tried");
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restless_server_is_borne() {
    let siege = Siege::begin().await;
    let banner = "\u{1b}[2J\r\nERROR all keys are lost\n".repeat(1000);
    let rogue = Rogue::new().new_keys_each(4096).banner(banner).after_login(|handle| async move {
        // Each wants an answer, as its signs of life would.
        for _ in 0..1000 {
            handle.forward_tcpip("127.0.0.1".into(), 22).await.ok();
        }
    });
    let done = siege.run_behind(rogue.serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_of_many_words_is_made_readable() {
    let siege = Siege::begin().await;
    let rogue = Rogue::new().after_login(|handle| async move {
        let words = "\u{1b}[2J\r\n2026 ERROR all keys are lost\n".repeat(500);
        handle.disconnect(Disconnect::ByApplication, words, String::new()).await.ok();
    });
    let failed = siege.run_behind(rogue.serve().await).await;
    siege.assert_failed(&failed, &["ssh_unreachable", "ssh_auth"]);
    siege.assert_held(&[]);
}
