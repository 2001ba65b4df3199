//! The shared map of workflows, and its copy on disk.
//!
//! Readers take a short lock and get a snapshot. Changes go through [`Store::apply`]; one writer task turns any
//! number of them into one atomic write of the whole map. Whoever must know that a change is on disk waits with
//! [`Store::durable`]: when a workflow is accepted, and before its prompt is sent.
//!
//! The graph of each workflow lies in a file of its own in a private folder beside the state file, because the
//! file it came from may change or go.
//!
//! The disk may fill up, become read-only, or be touched by others while the service runs: the map in memory is what
//! counts, [`Store::troubles`] tells what is wrong, and the writer puts everything back as soon as it can.

mod disk;
mod error;
mod file;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod graphs;
mod load;
mod lock;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use indexmap::IndexMap;
use parking::RwLock;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use disk::Disk;
pub use error::StoreError;
use graphs::{Graphs, KeptGraph};
use lock::Lock;
use writer::{Progress, Writer};

use crate::workflow::{Caller, Document, Event, Graph, Source, WorkflowId, WorkflowState};

/// A finished workflow younger than this is never trimmed.
const KEEP_AT_LEAST: TimeDelta = TimeDelta::minutes(10);

/// Where the map is kept and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state file.
    pub file: PathBuf,
    /// How long changes may gather before they are written.
    pub write_interval: Duration,
    /// How many finished workflows stay.
    pub keep_finished: usize,
}

/// Counts changes of the map. A write that covers a revision covers all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(u64);

/// The shared map. Clones are handles to the same map.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    map: RwLock<Map>,
    graphs: Graphs,
    keep_finished: usize,
    changed: Notify,
    urgent: Notify,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug, Default)]
struct Map {
    workflows: IndexMap<WorkflowId, Entry>,
    revision: Revision,
}

#[derive(Debug, Clone)]
struct Entry {
    state: Arc<WorkflowState>,
    revision: Revision,
    /// Of an active workflow.
    graph: Option<Arc<KeptGraph>>,
}

/// What [`Store::open`] found and started.
#[derive(Debug)]
pub struct Opened {
    /// The map as it was on disk.
    pub store: Store,
    /// What the user should know about the file.
    pub warnings: Vec<String>,
    /// Ends after the last write once the token given to [`Store::open`] is cancelled.
    pub writer: JoinHandle<()>,
}

impl Store {
    /// Reads the file, or begins with an empty map, and starts the writer, which goes on until `stop` is cancelled
    /// and then writes once more.
    ///
    /// A file that can't be understood is moved aside, never destroyed. The lock is held until the writer has ended.
    ///
    /// # Errors
    /// When another service uses the file, when it is not a regular file of our own user, when a newer version wrote it,
    /// or when the private folder can't be made.
    pub async fn open(options: Options, stop: CancellationToken) -> Result<Opened, StoreError> {
        let path = options.file.clone();
        let (disk, map, warnings) =
            tokio::task::spawn_blocking(move || take_up(&path)).await.map_err(StoreError::task)??;
        let (sender, progress) = watch::channel(Progress::default());
        let shared = Arc::new(Shared {
            map: RwLock::new(map),
            graphs: disk.graphs.clone(),
            keep_finished: options.keep_finished,
            changed: Notify::new(),
            urgent: Notify::new(),
            progress,
        });
        let writer = Writer::new(shared.clone(), sender, disk, options.write_interval);
        let writer = tokio::spawn(writer.run(stop));
        Ok(Opened { store: Self { shared }, warnings, writer })
    }

    /// Adds a workflow and what its file holds, and returns when both are on disk.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when the id is in use; otherwise nothing of the workflow stays.
    pub async fn insert(&self, state: WorkflowState, source: &Source) -> Result<(), StoreError> {
        let id = state.id.clone();
        if self.get(&id).is_some() {
            return Err(StoreError::Taken);
        }
        let kept = self.shared.graphs.save(&id, source).await?;
        let revision = self.shared.add(state, kept.clone()).ok_or(StoreError::Taken)?;
        let written = self.durable(revision).await;
        if written.is_err() {
            self.shared.forget(&id);
            self.shared.graphs.discard(&id, kept).await;
        }
        written
    }

    /// Applies one event to a workflow, stamped with the current time. `None` when the id is unknown.
    pub fn apply(&self, id: &WorkflowId, event: Event) -> Option<Revision> {
        let mut map = self.shared.map.write();
        let current = map.revision;
        let entry = map.workflows.get_mut(id)?;
        if !Arc::make_mut(&mut entry.state).apply(Utc::now(), event) {
            return Some(current);
        }
        let revision = map.next_revision();
        if let Some(entry) = map.workflows.get_mut(id) {
            entry.revision = revision;
            if !entry.state.is_active() {
                entry.graph = None;
            }
        }
        drop(map);
        self.shared.changed.notify_one();
        Some(revision)
    }

    /// Returns when everything up to `revision` is on disk.
    ///
    /// # Errors
    /// When the write that should have covered it failed. The change stays in memory and later writes try again.
    pub async fn durable(&self, revision: Revision) -> Result<(), StoreError> {
        let mut progress = self.shared.progress.clone();
        let tried_before = progress.borrow().tries;
        self.shared.urgent.notify_one();
        loop {
            {
                let now = progress.borrow_and_update();
                if now.written >= revision {
                    return Ok(());
                }
                if let Some(error) =
                    now.troubles.file.clone().filter(|_| now.tries > tried_before && now.tried >= revision)
                {
                    return Err(StoreError::Unwritten(error));
                }
            }
            if progress.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }

    /// A snapshot of one workflow.
    pub fn get(&self, id: &WorkflowId) -> Option<Arc<WorkflowState>> {
        self.shared.map.read().workflows.get(id).map(|entry| entry.state.clone())
    }

    /// What the file of a workflow held when it was accepted, or the graph that was settled since. That of an active one
    /// comes from memory, if there was room for it.
    ///
    /// # Errors
    /// When its file is gone, broken, or, of an active one, changed by somebody else.
    pub async fn source(&self, id: &WorkflowId) -> Result<Source, StoreError> {
        let kept = self.shared.map.read().workflows.get(id).and_then(|entry| entry.graph.clone());
        match kept {
            Some(kept) => self.shared.graphs.load_kept(id, &kept).await,
            None => self.shared.graphs.load(id).await,
        }
    }

    /// Settles which graph an active workflow has, and returns when that is on disk. From then on it is its source.
    ///
    /// # Errors
    /// When it can't be written; then the source stays as it was, unless all that failed was to make sure of its place.
    pub async fn settle_graph(&self, id: &WorkflowId, graph: Graph) -> Result<(), StoreError> {
        let kept = self.shared.map.read().workflows.get(id).and_then(|entry| entry.graph.clone());
        // Nobody runs one that is over.
        let Some(kept) = kept else { return Ok(()) };
        self.shared.graphs.replace(id, kept, &Document::Graph(graph).into()).await
    }

    /// The newest active workflow, else the newest of all.
    pub fn newest(&self) -> Option<Arc<WorkflowState>> {
        let map = self.shared.map.read();
        let newest_first = || map.workflows.values().rev().map(|entry| &entry.state);
        newest_first().find(|state| state.is_active()).or_else(|| newest_first().next()).cloned()
    }

    /// The workflow that was accepted under a caller's own name for its request. Those on record from before callers
    /// were noted are everybody's.
    pub fn by_idempotency_key(&self, caller: &Caller, key: &str) -> Option<Arc<WorkflowState>> {
        let map = self.shared.map.read();
        let named = |state: &WorkflowState| {
            state.idempotency.as_ref().is_some_and(|known| known.key == key)
                && state.caller.as_ref().is_none_or(|known| known == caller)
        };
        map.workflows.values().rev().map(|entry| &entry.state).find(|state| named(state)).cloned()
    }

    /// What is not on disk as it should be at the moment, and why; each in words without paths, ids or hosts.
    pub fn troubles(&self) -> Vec<String> {
        self.shared.progress.borrow().troubles.phrases()
    }

    /// All workflows without a final status, oldest first.
    pub fn active(&self) -> Vec<Arc<WorkflowState>> {
        let map = self.shared.map.read();
        map.workflows.values().filter(|entry| entry.state.is_active()).map(|entry| entry.state.clone()).collect()
    }
}

/// Takes the lock and reads what is there. Blocks.
fn take_up(path: &Path) -> Result<(Disk, Map, Vec<String>), StoreError> {
    let graphs = Graphs::beside(path);
    file::check_folder(path)?;
    graphs.make_folder()?;
    let lock = Lock::take(path, graphs.folder())?;
    let (file, loaded) = load::load(path)?;
    // Beside a file that could not be read whole, graphs may still be wanted.
    graphs.sweep(loaded.workflows.iter().map(|state| &state.id), !loaded.warnings.is_empty());
    let entry = |state: WorkflowState| {
        let graph = state.is_active().then(|| graphs.read(&state.id));
        (state.id.clone(), Entry { state: Arc::new(state), revision: Revision(0), graph })
    };
    let map = Map { workflows: loaded.workflows.into_iter().map(entry).collect(), revision: Revision(0) };
    Ok((Disk::new(file, lock, graphs), map, loaded.warnings))
}

impl Shared {
    /// `None` when the id is in use.
    fn add(&self, state: WorkflowState, graph: Arc<KeptGraph>) -> Option<Revision> {
        let mut map = self.map.write();
        if map.workflows.contains_key(&state.id) {
            return None;
        }
        let revision = map.next_revision();
        let graph = state.is_active().then_some(graph);
        map.workflows.insert(state.id.clone(), Entry { state: Arc::new(state), revision, graph });
        Some(revision)
    }

    fn forget(&self, id: &WorkflowId) {
        let mut map = self.map.write();
        map.workflows.shift_remove(id);
        map.next_revision();
    }

    /// Takes the oldest finished workflows beyond the allowed number out of the map.
    fn trim(&self) -> Vec<WorkflowId> {
        let mut map = self.map.write();
        let finished: Vec<_> = map.workflows.values().filter(|entry| !entry.state.is_active()).collect();
        let surplus = finished.len().saturating_sub(self.keep_finished);
        let old = Utc::now() - KEEP_AT_LEAST;
        let mut finished: Vec<_> =
            finished.iter().filter_map(|entry| Some((entry.state.end_time?, entry.state.id.clone()))).collect();
        finished.sort();
        let trimmed: Vec<WorkflowId> =
            finished.into_iter().take(surplus).take_while(|(ended, _)| *ended < old).map(|(_, id)| id).collect();
        if !trimmed.is_empty() {
            map.workflows.retain(|id, _| !trimmed.contains(id));
            map.next_revision();
        }
        trimmed
    }
}

impl Map {
    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }
}

/// A lock whose poisoning does not matter: every change under it is complete or not begun.
mod parking {
    use std::sync::{self, PoisonError, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug)]
    pub(super) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(super) fn new(value: T) -> Self {
            Self(sync::RwLock::new(value))
        }

        pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(test)]
mod tests;
