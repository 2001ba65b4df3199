//! The one task that writes the state file.
//!
//! It lets changes gather for a while, takes the newest snapshot and writes it; each workflow is put in words only
//! when it has changed. A failed write is reported once, tried again with the next change or after a pause, and
//! fails those who wait for it.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Entry, Revision, Shared, StoreError, file};
use crate::workflow::WorkflowId;

/// How long after a failed write the next try comes by itself.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How far the writer has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// On disk.
    pub(super) written: Revision,
    /// Covered by the last try.
    pub(super) tried: Revision,
    /// Tries so far.
    pub(super) tries: u64,
    /// Why the last try failed.
    pub(super) error: Option<Arc<StoreError>>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    file: PathBuf,
    interval: Duration,
    rendered: HashMap<WorkflowId, (Revision, Arc<[u8]>)>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        progress: watch::Sender<Progress>,
        file: PathBuf,
        interval: Duration,
    ) -> Self {
        Self { shared, progress, file, interval, rendered: HashMap::new() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let failed = self.progress.borrow().error.is_some();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.urgent.notified() => {}
                () = self.shared.changed.notified() => tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.shared.urgent.notified() => {}
                    () = tokio::time::sleep(self.interval) => {}
                },
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
            self.write().await;
        }
        self.write().await;
    }

    async fn write(&mut self) {
        let trimmed = self.shared.trim();
        let (entries, revision) = {
            let map = self.shared.map.read();
            (map.workflows.values().cloned().collect::<Vec<_>>(), map.revision)
        };
        if revision == self.progress.borrow().written {
            self.publish(revision, None);
            return;
        }
        let result = self.write_entries(entries).await;
        if result.is_ok() {
            for id in &trimmed {
                self.shared.graphs.remove(id).await;
            }
        }
        self.publish(revision, result.err());
    }

    async fn write_entries(&mut self, entries: Vec<Entry>) -> Result<(), StoreError> {
        let (mut rendered, path) = (std::mem::take(&mut self.rendered), self.file.clone());
        let work = move || {
            let mut current = HashMap::with_capacity(entries.len());
            let mut order = Vec::with_capacity(entries.len());
            for entry in entries {
                let id = entry.state.id.clone();
                let words = match rendered.remove(&id) {
                    Some((revision, words)) if revision == entry.revision => words,
                    _ => serde_json::to_vec(&*entry.state)?.into(),
                };
                order.push((id.clone(), words.clone()));
                current.insert(id, (entry.revision, words));
            }
            let content = file::render(order.iter().map(|(id, words)| (id.as_str(), &**words)));
            Ok::<_, StoreError>((current, file::replace(&path, &content)))
        };
        let (rendered, written) = tokio::task::spawn_blocking(work).await.map_err(StoreError::task)??;
        self.rendered = rendered;
        written
    }

    fn publish(&self, revision: Revision, error: Option<StoreError>) {
        self.progress.send_modify(|progress| {
            match (&error, &progress.error) {
                (Some(error), None) => {
                    tracing::error!(%error, "could not write the state; going on from memory and trying again");
                }
                (None, Some(_)) => tracing::info!("the state is on disk again"),
                _ => {}
            }
            progress.tries += 1;
            progress.tried = revision;
            if error.is_none() {
                progress.written = revision;
            }
            progress.error = error.map(Arc::new);
        });
    }
}
