//! Everything of ours on disk, as the writer's blocking part sees it: looks after it, and writes it.

use std::{collections::HashMap, sync::Arc};

use super::{Entry, Revision, StoreError, file::StateFile, format, graphs::Graphs, lock::Lock};
use crate::workflow::WorkflowId;

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: StateFile,
    pub(super) lock: Lock,
    pub(super) graphs: Graphs,
    /// Each workflow in words, so that only changed ones are put in words again.
    rendered: HashMap<WorkflowId, (Revision, Arc<[u8]>)>,
}

/// Why something of ours is not on disk as it should be; one cause for each part.
#[derive(Debug, Clone, Default)]
pub(super) struct Troubles {
    pub(super) file: Option<Arc<StoreError>>,
    pub(super) graphs: Option<Arc<StoreError>>,
    pub(super) lock: Option<Arc<StoreError>>,
}

impl Troubles {
    /// Each trouble in one phrase without paths, ids or hosts.
    pub(super) fn phrases(&self) -> Vec<String> {
        let parts = [("the state file", &self.file), ("the graphs", &self.graphs), ("the lock file", &self.lock)];
        let mut phrases: Vec<String> =
            parts.iter().filter_map(|(part, error)| error.as_ref().map(|error| error.phrase(part))).collect();
        phrases.dedup();
        phrases
    }
}

impl Disk {
    pub(super) fn new(file: StateFile, lock: Lock, graphs: Graphs) -> Self {
        Self { file, lock, graphs, rendered: HashMap::new() }
    }

    /// Looks whether the lock and the file are as we left them, and puts the lock back.
    pub(super) fn look(&mut self) -> Troubles {
        let trouble = |result: Result<(), StoreError>| result.err().map(Arc::new);
        Troubles { file: trouble(self.file.check()), lock: trouble(self.lock.keep()), graphs: None }
    }

    /// Looks whether the graphs of active workflows are as we left them, and puts them back.
    pub(super) fn look_at_graphs(&self, entries: &[Entry]) -> Result<(), StoreError> {
        self.graphs.check_folder()?;
        let kept = |entry: &Entry| entry.graph.clone().map(|graph| (entry.state.id.clone(), graph));
        // Each is looked at, whatever is wrong with others.
        let looked = entries.iter().filter_map(kept).map(|(id, graph)| self.graphs.restore(&id, &graph));
        looked.fold(Ok(()), Result::and)
    }

    /// Writes the whole map.
    pub(super) fn write(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut before = std::mem::take(&mut self.rendered);
        for entry in entries {
            let words = match before.remove(&entry.state.id) {
                Some((revision, words)) if revision == entry.revision => words,
                _ => serde_json::to_vec(&*entry.state)?.into(),
            };
            self.rendered.insert(entry.state.id.clone(), (entry.revision, words));
        }
        let words = entries.iter().filter_map(|entry| {
            let id = &entry.state.id;
            self.rendered.get(id).map(|(_, words)| (id.as_str(), &**words))
        });
        self.file.replace(&format::render(words))
    }
}
