//! The one task that writes the state file and looks after it.
//!
//! It lets changes gather for a while, takes the newest snapshot and writes it. Between changes it looks every few
//! seconds whether what it wrote is still there, and writes it again if not. A failed write is reported once, tried
//! again with the next change or after a pause, and fails those who wait for it. While another service holds the lock,
//! nothing is written at all.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Entry, Revision, Shared, StoreError,
    disk::{Disk, Troubles},
};

/// How long after trouble the next try comes by itself.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How often the files are looked at while nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// How far the writer has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// On disk.
    pub(super) written: Revision,
    /// Covered by the last try.
    pub(super) tried: Revision,
    /// Tries so far.
    pub(super) tries: u64,
    /// Why not everything is on disk as it should be.
    pub(super) troubles: Troubles,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    disk: Arc<Mutex<Disk>>,
    interval: Duration,
    /// Whether the file holds a map of ours; at first it may hold an older version's, or there may be none.
    begun: bool,
    graphs_looked_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, progress: watch::Sender<Progress>, disk: Disk, interval: Duration) -> Self {
        Self { shared, progress, disk: Arc::new(Mutex::new(disk)), interval, begun: false, graphs_looked_at: None }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        // At once, so that a disk that can't be written shows before the first workflow is refused.
        self.keep().await;
        while !stop.is_cancelled() {
            let pause = if self.troubles().phrases().is_empty() { LOOK_EVERY } else { RETRY_AFTER };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.urgent.notified() => {}
                () = self.shared.changed.notified() => tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.shared.urgent.notified() => {}
                    () = tokio::time::sleep(self.interval) => {}
                },
                () = tokio::time::sleep(pause) => {}
            }
            self.keep().await;
        }
        self.keep().await;
    }

    /// Looks, and writes what has changed here or there.
    async fn keep(&mut self) {
        let trimmed = self.shared.trim();
        let (entries, revision) = {
            let map = self.shared.map.read();
            (Arc::new(map.workflows.values().cloned().collect::<Vec<_>>()), map.revision)
        };
        let found = match self.look(&entries).await {
            Ok(found) => found,
            Err(error) => return self.tried(revision, Some(error)),
        };
        let file = found.file.clone();
        let taken = found.lock.clone().filter(|error| matches!(**error, StoreError::InUse { .. }));
        // A failed write stays a trouble until one succeeds.
        let pending = self.troubles().file;
        self.publish(Troubles { file: file.clone().or_else(|| pending.clone()), ..found });
        if let Some(taken) = taken {
            return self.tried(revision, Some(StoreError::Unwritten(taken)));
        }
        if self.begun && file.is_none() && pending.is_none() && revision == self.progress.borrow().written {
            return;
        }
        let result = self.on_disk(move |disk| disk.write(&entries)).await.and_then(|result| result);
        if result.is_ok() {
            self.begun = true;
            for id in &trimmed {
                self.shared.graphs.remove(id).await;
            }
        }
        self.tried(revision, result.err());
    }

    async fn look(&mut self, entries: &Arc<Vec<Entry>>) -> Result<Troubles, StoreError> {
        let before = self.troubles().graphs;
        let due = before.is_some() || self.graphs_looked_at.is_none_or(|last| last.elapsed() >= LOOK_EVERY);
        if due {
            self.graphs_looked_at = Some(Instant::now());
        }
        let entries = entries.clone();
        self.on_disk(move |disk| {
            let graphs = if due { disk.look_at_graphs(&entries).err().map(Arc::new) } else { before };
            Troubles { graphs, ..disk.look() }
        })
        .await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Disk) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let disk = self.disk.clone();
        let work = move || work(&mut disk.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.map_err(StoreError::task)
    }

    fn troubles(&self) -> Troubles {
        self.progress.borrow().troubles.clone()
    }

    fn tried(&self, revision: Revision, error: Option<StoreError>) {
        let troubles = Troubles { file: error.map(Arc::new), ..self.troubles() };
        self.publish(troubles);
        self.progress.send_modify(|progress| {
            progress.tries += 1;
            progress.tried = revision;
            if progress.troubles.file.is_none() {
                progress.written = revision;
            }
        });
    }

    fn publish(&self, troubles: Troubles) {
        let before = self.troubles();
        report("the state file", &before.file, &troubles.file);
        report("the graphs", &before.graphs, &troubles.graphs);
        report("the lock file", &before.lock, &troubles.lock);
        self.progress.send_modify(|progress| progress.troubles = troubles);
    }
}

/// Logs a trouble when it comes, changes or goes.
fn report(part: &'static str, before: &Option<Arc<StoreError>>, now: &Option<Arc<StoreError>>) {
    let phrase = |error: &Option<Arc<StoreError>>| error.as_ref().map(|error| error.phrase(part));
    match (phrase(before), now) {
        (Some(_), None) => tracing::info!("{part} is as it should be again"),
        (before, Some(error)) if before != phrase(now) => {
            tracing::error!(%error, "{part} is not as it should be; going on from memory and trying again");
        }
        _ => {}
    }
}
