//! The HTTP client of ComfyUI against small servers that answer as ComfyUI does, as proxies do, and as nobody should.

mod files;
mod probe;
mod reading;
mod submitting;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::any,
};
use comfy_remote::comfy::{Client, ComfyError};
use serde_json::Value;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::loopback::{self, Deaf};

/// A client of a router that lives as long as the test.
async fn client(router: Router) -> Client {
    Client::at(&format!("http://{}", loopback::serve(router).await))
}

/// A client of a server that gives this answer to everything.
async fn always<R: IntoResponse + Clone + Send + Sync + 'static>(answer: R) -> Client {
    client(Router::new().fallback(any(move || async move { answer }))).await
}

/// A client of a server that does this to each connection once its request has come; and how many there were.
async fn raw<F: Future<Output = ()> + Send>(
    serve: impl Fn(usize, TcpStream) -> F + Send + Sync + 'static,
) -> (Client, Arc<AtomicUsize>) {
    let listener = loopback::listener().await;
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap() == 0 {
                    break;
                }
            }
            if request.is_empty() {
                continue;
            }
            serve(counter.fetch_add(1, Ordering::SeqCst), stream).await;
        }
    });
    (Client::at(&format!("http://{address}")), count)
}

/// A client of a port where nothing listens as long as the other half is held.
fn nobody() -> (Client, Deaf) {
    let deaf = Deaf::new();
    (Client::at(&format!("http://127.0.0.1:{}", deaf.port)), deaf)
}

/// What was found where ComfyUI should have been.
fn found(error: ComfyError) -> String {
    match error {
        ComfyError::Foreign { found, .. } => found,
        other => panic!("{other}"),
    }
}

fn json_response(value: Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], value.to_string()).into_response()
}
