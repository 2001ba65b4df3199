//! The accept loop.
//!
//! `axum::serve` sets no timer, so a client that never finishes its headers, or never reads its answer, would hold its
//! connection for ever, and waits for hung connections when it stops. This loop has a deadline for each, a bound for
//! what each may make it hold, and a limit for how many connections there are.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use futures_util::{StreamExt, stream};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::places::{Place, Places};

/// How long a client may take nothing of its answer.
const READER_STALL: Duration = Duration::from_secs(30);

/// How long a client may keep the service waiting in one go, taking a little of its answer now and then.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Bytes of headers that a client may send.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 4096;

/// How long open requests may go on after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// After a failed accept (out of file descriptors, say) the next comes after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are treated.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// How long a client may take to send its headers, and to begin with the next request.
    pub header_timeout: Duration,
    /// Connections at once. Beyond that the one that has been idle longest is closed for each new one.
    pub max_connections: usize,
}

/// A listener for [`serve`].
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that a restart gets its port again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` is cancelled, then lets open requests end for at most two seconds.
pub async fn serve(listener: TcpListener, router: Router, options: ServeOptions, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    let places = Places::new(options.max_connections);
    while let Some((stream, peer)) = stop.run_until_cancelled(accept(&listener)).await {
        let Some(place) = stop.run_until_cancelled(places.take()).await else { break };
        let router = router.clone();
        spawn_connection(stream, peer, place, router, options.header_timeout, &connections);
    }
    drop(listener);
    if tokio::time::timeout(STOP_TIMEOUT, connections.shutdown()).await.is_err() {
        tracing::info!("left open connections behind");
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn spawn_connection(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    router: Router,
    header_timeout: Duration,
    connections: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let place = Arc::new(place);
    let of_service = place.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        answer(request, peer, router.clone(), of_service.clone())
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_HEADER_BYTES);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(READER_STALL));
    let watched = connections.watch(server.serve_connection(TokioIo::new(Box::pin(stream)), service));
    tokio::spawn(async move {
        tokio::select! {
            ended = watched => if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            },
            () = place.overdue(LONGEST_WAIT) => tracing::debug!("closed a connection whose client took too long"),
            () = place.given_up() => tracing::debug!("closed an idle connection in favour of a new one"),
        }
    });
}

async fn answer(
    request: hyper::Request<Incoming>,
    peer: SocketAddr,
    router: Router,
    place: Arc<Place>,
) -> Result<axum::response::Response, Infallible> {
    let mut request = request.map(|body| read_by(body, place.clone()));
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = router.oneshot(request).await;
    place.wait_for_client();
    response
}

/// The body; once it has been read to its end, the client waits for us.
fn read_by(body: Incoming, place: Arc<Place>) -> Body {
    if body.is_end_stream() {
        place.serve_client();
        return Body::empty();
    }
    let at_the_end = stream::poll_fn(move |_| {
        place.serve_client();
        Poll::Ready(None)
    });
    Body::from_stream(Body::new(body).into_data_stream().chain(at_the_end))
}
