//! What tests put on 127.0.0.1 by themselves: small HTTP servers, and ports where pointedly nobody listens.

use std::net::SocketAddr;

use axum::{Router, routing::any};
use tokio::net::{TcpListener, TcpSocket};

/// A listener on a port of its own.
pub(crate) async fn listener() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener on 127.0.0.1")
}

/// A port that refuses connections, and that nobody else gets as long as this is held.
pub(crate) struct Deaf {
    socket: TcpSocket,
    pub(crate) port: u16,
}

impl Deaf {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind a port on 127.0.0.1");
        let port = socket.local_addr().expect("address of a bound socket").port();
        Self { socket, port }
    }

    /// From now on somebody listens.
    pub(crate) fn listen(self) -> TcpListener {
        self.socket.listen(64).expect("listen on a bound socket")
    }
}

/// Serves until the runtime of the test ends.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().expect("address of a listener");
    serve_on(listener, router);
    address
}

/// As [`serve`], with a listener that is there already.
pub(crate) fn serve_on(listener: TcpListener, router: Router) {
    tokio::spawn(async move { axum::serve(listener, router).await });
}

/// Gives every request the same answer.
pub(crate) fn saying(text: &'static str) -> Router {
    Router::new().fallback(any(move || async move { text }))
}
