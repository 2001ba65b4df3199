//! A websocket that is read all the time, whatever else its owner does.
//!
//! ComfyUI sends to its sockets one after the other and waits for each, so a reader that pauses holds up everybody
//! (server.py, send, v0.3.64). A task of its own reads, answers pings, and drops the pictures that nobody here looks at.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::comfy::{Socket, SocketMessage};

/// Messages that may wait for their reader, and bytes of them. Beyond that the socket is not read until there is room
/// again; a longer message waits alone.
const BACKLOG: usize = 1024;
const BACKLOG_BYTES: u32 = 4 << 20;

/// How long saying goodbye may take.
const CLOSE: Duration = Duration::from_secs(2);

/// An open websocket. Dropped, it says goodbye in the background.
#[derive(Debug)]
pub(super) struct Ear {
    messages: mpsc::Receiver<(SocketMessage, OwnedSemaphorePermit)>,
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
        self.messages.recv().await.map(|(message, _)| message)
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

async fn read(
    mut socket: Socket,
    sender: mpsc::Sender<(SocketMessage, OwnedSemaphorePermit)>,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(BACKLOG_BYTES as usize));
    let forward = async {
        loop {
            match socket.next().await {
                Ok(SocketMessage::Binary(_)) => {}
                Ok(message) => {
                    let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX).min(BACKLOG_BYTES);
                    let Ok(permit) = room.clone().acquire_many_owned(bytes).await else { break };
                    if sender.send((message, permit)).await.is_err() {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::comfy::told;

    const MESSAGES: usize = 64;

    #[tokio::test]
    async fn what_waits_for_its_reader_is_bounded_in_bytes() {
        let (socket, sent) = told("x".repeat(1 << 20), MESSAGES).await;
        let mut ear = Ear::new(socket);
        // All of this happens in one thread and in memory: it has come to rest long before.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let before = sent.load(Ordering::SeqCst);
        assert!((4..12).contains(&before), "{before} MiB");
        for _ in 0..MESSAGES {
            assert!(ear.next().await.is_some());
        }
        assert_eq!(sent.load(Ordering::SeqCst), MESSAGES);
    }
}
