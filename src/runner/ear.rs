//! A websocket that is read all the time, whatever else its owner does.
//!
//! ComfyUI sends to its sockets one after the other and waits for each, so a reader that pauses holds up everybody
//! (server.py, send, v0.3.64). A task of its own reads, answers pings, and drops the pictures that nobody here looks at.

use std::time::Duration;

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::comfy::{Socket, SocketMessage};

/// Messages that may wait for their reader. Beyond that the socket is not read until there is room again.
const BACKLOG: usize = 1024;

/// How long saying goodbye may take.
const CLOSE: Duration = Duration::from_secs(2);

/// An open websocket. Dropped, it says goodbye in the background.
#[derive(Debug)]
pub(super) struct Ear {
    messages: mpsc::Receiver<SocketMessage>,
    stop: CancellationToken,
    reader: JoinHandle<()>,
}

impl Ear {
    pub(super) fn new(socket: Socket) -> Self {
        let (sender, messages) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        let reader = tokio::spawn(read(socket, sender, stop.clone()));
        Self { messages, stop, reader }
    }

    /// The next message; `None` when the socket is gone. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<SocketMessage> {
        self.messages.recv().await
    }

    /// Says goodbye and waits until that is done: a goodbye that comes after another socket has opened under the same
    /// client id makes that one deaf (server.py, websocket_handler, v0.3.64).
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        tokio::time::timeout(CLOSE, &mut self.reader).await.ok();
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn read(mut socket: Socket, sender: mpsc::Sender<SocketMessage>, stop: CancellationToken) {
    let forward = async {
        loop {
            match socket.next().await {
                Ok(SocketMessage::Binary(_)) => {}
                Ok(message) => {
                    if sender.send(message).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the websocket ended");
                    break;
                }
            }
        }
    };
    stop.run_until_cancelled(forward).await;
    drop(sender);
    socket.close().await;
}
