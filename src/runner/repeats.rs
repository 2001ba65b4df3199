//! Requests that come again under the name that their caller has given them.
//!
//! Those of one name take turns. A turn lasts from the look at the record until the workflow is on record and its answer
//! noted there. From when something is written it belongs to that work, which goes on when the caller hangs up: who asks
//! again finds nothing or everything, and never a workflow of which it is not certain yet whether it stays.

use tokio::sync::OwnedSemaphorePermit;

use super::{ExecuteError, ExecuteRequest, Runner, Started};
use crate::workflow::{Caller, ErrorCode, Failure, Idempotency, WorkflowState};

/// The turn of a request; others of its name wait until it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// What becomes of a request that has a name.
pub(super) enum Named {
    /// It is to be carried out.
    New(Idempotency, Turn),
    /// It was; this was the answer.
    Known(Started),
}

impl Runner {
    /// Waits for the turn of a name and looks what is on record under it.
    ///
    /// # Errors
    /// When that was another request.
    pub(super) async fn named(
        &self,
        request: &ExecuteRequest,
        caller: &Caller,
        key: String,
    ) -> Result<Named, ExecuteError> {
        let fingerprint = request.fingerprint();
        let turn = self.inner.turns.take(format!("{caller:?} {key}")).await;
        match self.inner.store.by_idempotency_key(caller, &key) {
            Some(known) => answer_again(&known, &fingerprint).map(Named::Known),
            None => Ok(Named::New(Idempotency { key, fingerprint, tunnel_error: None }, turn)),
        }
    }
}

/// The answer that the first request of this name got.
fn answer_again(known: &WorkflowState, fingerprint: &str) -> Result<Started, ExecuteError> {
    let Some(idempotency) = known.idempotency.as_ref().filter(|first| first.fingerprint == fingerprint) else {
        return Err(ExecuteError::KeyReused);
    };
    let failed = idempotency.tunnel_error.as_ref().map(|message| match known.failure() {
        Some(failure) => Failure { message: message.clone(), ..failure.clone() },
        None => Failure::new(ErrorCode::Internal, message),
    });
    Ok(Started { workflow_id: known.id.clone(), warnings: Vec::new(), failed })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, time::Duration};

    use futures_util::poll;
    use tokio::task;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        runner::{
            Defaults, Options,
            held_up::{HeldUp, with_one_blocking_thread},
        },
        ssh::{self, Pool},
        store::{self, Store},
    };

    /// A runner in whose line everybody waits.
    struct Stage {
        folder: tempfile::TempDir,
        store: Store,
        runner: Runner,
    }

    impl Stage {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("w.json"), r#"{"1": {"class_type": "A"}}"#).unwrap();
            let file = folder.path().join("state.json");
            let kept = store::Options { file, write_interval: Duration::from_secs(3600), keep_finished: 2 };
            let store = Store::open(kept, CancellationToken::new()).await.unwrap().store;
            let options = Options::of_a_test(Defaults {
                comfyui_port: 1,
                comfyui_input_dir: "/in".into(),
                comfyui_output_dir: "/out".into(),
                output_dir: folder.path().join("out").display().to_string(),
            });
            let runner = Runner::start(store.clone(), Pool::new(ssh::Options::default()).unwrap(), options);
            Self { folder, store, runner }
        }

        async fn execute(&self) -> Result<Started, ExecuteError> {
            let request = ExecuteRequest {
                ssh_connection: "ssh root@127.0.0.1".into(),
                workflow_file: self.folder.path().join("w.json").display().to_string(),
                ..ExecuteRequest::default()
            };
            self.runner.execute(request, Caller::new("me"), Vec::new(), Some("key".into())).await
        }

        /// Asks and hangs up while the graph is about to be saved, which goes no further than to the returned hold.
        async fn hang_up_half_way(&self) -> HeldUp {
            let mut asked = Box::pin(self.execute());
            assert!(poll!(&mut asked).is_pending(), "the request is being checked");
            let mut hold = HeldUp::behind_what_is_to_do();
            hold.is_reached().await;
            assert!(poll!(&mut asked).is_pending(), "it is being put on record");
            drop(asked);
            task::yield_now().await;
            hold
        }
    }

    #[test]
    fn who_hangs_up_and_asks_again_gets_the_one_workflow() {
        with_one_blocking_thread(async {
            let stage = Stage::new().await;
            let hold = stage.hang_up_half_way().await;
            let mut again = Box::pin(stage.execute());
            assert!(poll!(&mut again).is_pending());
            drop(hold);
            let started = again.await.unwrap();
            let on_record: Vec<_> = stage.store.active().iter().map(|state| state.id.clone()).collect();
            assert_eq!(on_record, [started.workflow_id]);
        });
    }

    #[test]
    fn who_asks_again_is_told_of_no_workflow_that_does_not_stay() {
        with_one_blocking_thread(async {
            let stage = Stage::new().await;
            let saving = stage.hang_up_half_way().await;
            let mut writing = HeldUp::behind_what_is_to_do();
            drop(saving);
            writing.is_reached().await;
            while stage.store.active().is_empty() {
                task::yield_now().await;
            }
            let mut again = Box::pin(stage.execute());
            assert!(poll!(&mut again).is_pending(), "in memory, and not on the disk");
            let state_file = stage.folder.path().join("state.json");
            fs::remove_file(&state_file).ok();
            fs::create_dir(&state_file).unwrap();
            drop(writing);
            assert!(matches!(again.await, Err(ExecuteError::NotRecorded(_))));
            assert!(stage.store.active().is_empty());
        });
    }
}
