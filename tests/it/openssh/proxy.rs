//! What stands between client and box: connections are counted, cut, frozen, or broken at a certain byte.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, copy, copy_bidirectional},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::loopback;

/// Passes connections on, counts them, and on demand cuts them all, or keeps them open and passes nothing more.
pub(super) struct Proxy {
    pub(super) port: u16,
    pub(super) cut: CancellationToken,
    pub(super) freeze: CancellationToken,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// A proxy in front of a port.
    pub(super) async fn to(far: u16) -> Self {
        let listener = loopback::listener().await;
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            cut: CancellationToken::new(),
            freeze: CancellationToken::new(),
            connections: Arc::default(),
        };
        let (cut, freeze, connections) = (proxy.cut.clone(), proxy.freeze.clone(), Arc::clone(&proxy.connections));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let freeze = freeze.clone();
                tokio::spawn(cut.clone().run_until_cancelled_owned(pass_on_until_frozen(near, far, freeze)));
            }
        });
        proxy
    }

    /// How many there were so far.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn pass_on_until_frozen(mut near: TcpStream, far: u16, freeze: CancellationToken) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", far)).await else { return };
    if freeze.run_until_cancelled(copy_bidirectional(&mut near, &mut far)).await.is_none() {
        std::future::pending().await
    }
}

/// Passes one connection on to a port, until either side ends it.
pub(super) async fn pass_on(mut near: TcpStream, far: u16) {
    let mut far = TcpStream::connect(("127.0.0.1", far)).await.unwrap();
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

/// Passes two connections on, but breaks the first one after so many bytes from the client. Returns its port, and a token
/// that tells when there is a second one.
pub(super) async fn break_first_after(bytes: u64, far: u16) -> (u16, CancellationToken) {
    let listener = loopback::listener().await;
    let port = listener.local_addr().unwrap().port();
    let second = CancellationToken::new();
    let token = second.clone();
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let (near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = TcpStream::connect(("127.0.0.1", far)).await.unwrap().into_split();
        let mut near_read = near_read.take(bytes);
        tokio::select! {
            _ = copy(&mut near_read, &mut far_write) => {}
            _ = copy(&mut far_read, &mut near_write) => {}
        }
        drop((near_read, near_write, far_read, far_write));
        let (near, _) = listener.accept().await.unwrap();
        token.cancel();
        pass_on(near, far).await;
    });
    (port, second)
}
