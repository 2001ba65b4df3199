//! The engine's process: the port, its connections and the worker that runs prompts one after another.
//!
//! Used by [`Engine`](super::Engine), which starts one, ends it and starts the next. Ending it is abrupt, as a kill:
//! connections close without an answer. Guarantees that no task of it outlives [`Process::end`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Shared;
use super::execute::execute;
use super::routes;
use crate::sandbox::hold::Point;

const BIND_ATTEMPTS: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(20);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// A running process.
pub(super) struct Process {
    life: CancellationToken,
    tasks: TaskTracker,
}

/// What a handler needs to end the connection it answers on.
#[derive(Clone)]
pub(super) struct ConnectionCut(pub(super) CancellationToken);

/// Binds the port. A port of an earlier process may need a moment to become free.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut attempt = 1;
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && address.port() != 0 && attempt < BIND_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(BIND_PAUSE).await;
            }
            result => return result,
        }
    }
}

impl Process {
    pub(super) fn start(shared: Arc<Shared>, listener: TcpListener, stop: &CancellationToken) -> Self {
        let (life, tasks) = (stop.child_token(), TaskTracker::new());
        let router = routes::router(Arc::clone(&shared), life.clone(), tasks.clone());
        tasks.spawn(until(life.clone(), work(shared)));
        tasks.spawn(until(life.clone(), listen(listener, router, life.clone(), tasks.clone())));
        Self { life, tasks }
    }

    /// Ends everything and waits for it.
    pub(super) async fn end(self) {
        self.life.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn until(life: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = life.cancelled() => {}
        () = task => {}
    }
}

/// Runs prompts for ever, as `prompt_worker` in ComfyUI's `main.py`.
async fn work(shared: Arc<Shared>) {
    loop {
        let item = shared.queue.take(&shared.hub).await;
        shared.note_run(&item.id);
        let outcome = execute(&shared, &item).await;
        if let Some(delay) = shared.faults.history_delay() {
            tokio::time::sleep(delay).await;
        }
        shared.faults.pass(&Point::BeforeHistory, &shared.interrupted).await;
        shared.faults.thawed().await;
        shared.queue.finish(outcome, &shared.hub);
        if let Some(client) = item.client() {
            shared.hub.send("executing", &json!({"node": null, "prompt_id": item.id}), Some(&client));
        }
        if shared.queue.take_free_memory() {
            shared.cache().clear();
        }
    }
}

async fn listen(listener: TcpListener, router: Router, life: CancellationToken, tasks: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tasks.spawn(serve(stream, router.clone(), life.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "the sandbox's engine could not accept a connection");
                tokio::time::sleep(BIND_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, life: CancellationToken) {
    let cut = CancellationToken::new();
    let _ = stream.set_nodelay(true);
    let with_cut = {
        let cut = ConnectionCut(cut.clone());
        router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(cut.clone());
            request.map(axum::body::Body::new)
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(with_cut))
        .with_upgrades();
    tokio::select! {
        // An error just means that the client went away.
        _ = connection => {}
        () = cut.cancelled() => {}
        () = life.cancelled() => {}
    }
}
