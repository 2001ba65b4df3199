//! The accept loop.
//!
//! `axum::serve` sets no timer, so a client that never finishes its headers, or never reads its answer, would hold its
//! connection for ever, and waits for hung connections when it stops. This loop has a deadline for each, and a limit
//! for how many connections there are.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

/// How long a client may take to send its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take nothing of its answer.
const READER_STALL: Duration = Duration::from_secs(30);

/// Connections at once. Further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;

/// How long open requests may go on after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// After a failed accept (out of file descriptors, say) the next comes after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled, then lets open requests end for at most two seconds.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, place)) = stop.run_until_cancelled(accept(&listener, &places)).await {
        spawn_connection(stream, place, router.clone(), &connections);
    }
    drop(listener);
    if tokio::time::timeout(STOP_TIMEOUT, connections.shutdown()).await.is_err() {
        tracing::info!("left open connections behind");
    }
}

/// The next connection, once there is a place for it.
#[expect(clippy::expect_used, reason = "nobody closes the semaphore")]
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places.clone().acquire_owned().await.expect("an open semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn spawn_connection(stream: TcpStream, place: OwnedSemaphorePermit, router: Router, connections: &GracefulShutdown) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        async move {
            let ready: &mut Router = ServiceExt::<hyper::Request<Body>>::ready(&mut router).await?;
            ready.call(request.map(Body::new)).await
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(READER_STALL));
    let watched = connections.watch(server.serve_connection(TokioIo::new(Box::pin(stream)), service));
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = watched.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
}
