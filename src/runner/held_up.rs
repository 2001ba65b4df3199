//! For tests: a disk that takes its time, until the test lets it go on.

#![allow(clippy::unwrap_used)]

use std::sync::mpsc;

use tokio::{sync::oneshot, task};

/// Holds up the one thread on which everything happens that blocks, until it is dropped.
pub(super) struct HeldUp {
    reached: oneshot::Receiver<()>,
    _let_go: mpsc::Sender<()>,
}

impl HeldUp {
    /// What was begun before is done before.
    pub(super) fn behind_what_is_to_do() -> Self {
        let ((tell, reached), (let_go, wait)) = (oneshot::channel(), mpsc::channel::<()>());
        task::spawn_blocking(move || tell.send(()).is_ok() && wait.recv().is_ok());
        Self { reached, _let_go: let_go }
    }

    /// Waits until everything before it is done.
    pub(super) async fn is_reached(&mut self) {
        (&mut self.reached).await.unwrap();
    }
}

/// Runs a test in which there is only one such thread.
pub(super) fn with_one_blocking_thread(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().max_blocking_threads(1).build().unwrap().block_on(test);
}
