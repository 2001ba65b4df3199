//! A ComfyUI that lies where a test wants it to, and is honest elsewhere; behind the SSH server of a sandbox, or another.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{SinkExt, StreamExt, future::BoxFuture, stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::{loopback, sandbox_stage::PATIENCE, support::LOOK_EVERY};

/// The server's end of a websocket.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The file that is left where nothing else is said.
pub(crate) const PICTURE: &str = "picture.png";

/// What a lie is told in answer to.
pub(crate) struct Asked {
    /// Only about a file, not for it.
    pub(crate) is_head: bool,
    /// With its query.
    pub(crate) path: String,
    /// Under which id the workflow's prompt was sent; empty before that.
    pub(crate) prompt_id: String,
}

type Lie = Box<dyn Fn(&Asked) -> Response + Send + Sync>;
type Talk = Box<dyn Fn(Socket, Arc<Impostor>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Takes any prompt; unless it lies, the prompt is over at once and has left [`PICTURE`], and every file there is has its
/// own path on `/view` for content.
#[derive(Default)]
pub(crate) struct Impostor {
    lies: HashMap<&'static str, Lie>,
    talk: Option<Talk>,
    /// The prompt is over, on one that talks.
    is_over: AtomicBool,
    prompt: Mutex<Value>,
}

impl Impostor {
    /// One that is honest.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One whose prompt has left these files.
    pub(crate) fn with_outputs(outputs: Value) -> Self {
        Self::new().lying("/history", move |asked| history(&asked.prompt_id, &outputs).to_string().into_response())
    }

    /// Answers whatever begins with `path` in this way.
    pub(crate) fn lying(
        mut self,
        path: &'static str,
        lie: impl Fn(&Asked) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.lies.insert(path, Box::new(lie));
        self
    }

    /// Talks on the websocket in this way. The prompt runs until it has said everything.
    pub(crate) fn talking<F: Future<Output = ()> + Send + 'static>(
        mut self,
        talk: impl Fn(Socket, Arc<Impostor>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.talk = Some(Box::new(move |socket, impostor| Box::pin(talk(socket, impostor))));
        self
    }

    /// Its port on 127.0.0.1, where it serves until the test ends.
    pub(crate) async fn serve(self) -> u16 {
        let router = Router::new().route("/ws", get(socket)).fallback(answer).with_state(Arc::new(self));
        loopback::serve(router).await.port()
    }

    /// Waits for a prompt, and returns its id.
    pub(crate) async fn prompted(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.prompt_id().is_empty() {
            assert!(Instant::now() < deadline, "no prompt was sent");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.prompt_id()
    }

    /// The id of the prompt that it was sent; empty before that.
    pub(crate) fn prompt_id(&self) -> String {
        let prompt = self.prompt.lock().unwrap_or_else(PoisonError::into_inner);
        prompt["prompt_id"].as_str().unwrap_or_default().to_owned()
    }
}

/// What history says of a run that has left `outputs`.
pub(crate) fn history(prompt_id: &str, outputs: &Value) -> Value {
    json!({prompt_id: {
        "prompt": [1, prompt_id, {}, {}, ["3"]],
        "outputs": {"3": outputs},
        "status": {"status_str": "success", "completed": true, "messages": []},
    }})
}

/// A list of files as a node reports them.
pub(crate) fn files(names: &[&str]) -> Value {
    let file = |name: &&str| json!({"filename": name, "subfolder": "", "type": "output"});
    json!({"images": names.iter().map(file).collect::<Vec<_>>()})
}

/// A body that never ends.
pub(crate) fn endless(start: impl Into<Bytes>, chunk: impl Into<Bytes>) -> Body {
    let (start, chunk) = (start.into(), chunk.into());
    let rest = stream::repeat_with(move || chunk.clone());
    Body::from_stream(stream::iter([start]).chain(rest).map(Ok::<_, std::io::Error>))
}

async fn answer(State(impostor): State<Arc<Impostor>>, request: Request) -> Response {
    let is_head = request.method() == axum::http::Method::HEAD;
    let (uri, prompt_id) = (request.uri().clone(), impostor.prompt_id());
    let asked = Asked { is_head, path: uri.to_string(), prompt_id };
    let lie = impostor.lies.iter().find(|(path, _)| asked.path.starts_with(**path));
    if uri.path() == "/prompt" {
        return impostor.take(request, lie.map(|(_, lie)| (lie, asked))).await;
    }
    match lie {
        Some((_, lie)) => lie(&asked),
        None => impostor.honestly(&asked, uri.path()),
    }
}

impl Impostor {
    fn honestly(&self, asked: &Asked, path: &str) -> Response {
        let runs = self.talk.is_some() && !self.is_over.load(Ordering::SeqCst);
        let answer = match path {
            "/system_stats" => json!({"system": {"comfyui_version": "0.3.75"}}),
            "/queue" => {
                let running = if runs { json!([[1, asked.prompt_id, {}, {}, []]]) } else { json!([]) };
                json!({"queue_running": running, "queue_pending": []})
            }
            "/view" if asked.path.contains("type=temp") => return StatusCode::NOT_FOUND.into_response(),
            "/view" => return asked.path.clone().into_response(),
            _ if path.starts_with("/history/") && runs => json!({}),
            _ if path.starts_with("/history/") => history(&asked.prompt_id, &files(&[PICTURE])),
            _ => match path.strip_prefix("/object_info/") {
                Some(class) => json!({class: {"input": {}, "output_node": true}}),
                None => return StatusCode::NOT_FOUND.into_response(),
            },
        };
        answer.to_string().into_response()
    }

    async fn take(&self, request: Request, lie: Option<(&Lie, Asked)>) -> Response {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let prompt: Value = serde_json::from_slice(&body).unwrap();
        let answer = json!({"prompt_id": prompt["prompt_id"], "number": 1, "node_errors": {}});
        *self.prompt.lock().unwrap_or_else(PoisonError::into_inner) = prompt;
        match lie {
            Some((lie, asked)) => lie(&Asked { prompt_id: self.prompt_id(), ..asked }),
            None => answer.to_string().into_response(),
        }
    }
}

/// Upgrades by hand: what is to be sent may be what no library sends.
async fn socket(State(impostor): State<Arc<Impostor>>, request: Request) -> Response {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut socket = Socket::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let status = json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "x"}});
        if socket.send(Message::text(status.to_string())).await.is_err() {
            return;
        }
        match &impostor.talk {
            Some(talk) => {
                talk(socket, impostor.clone()).await;
                impostor.is_over.store(true, Ordering::SeqCst);
            }
            None => while socket.next().await.is_some_and(|message| message.is_ok()) {},
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, key.unwrap_or_default()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
