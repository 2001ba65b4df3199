//! The graphs of the workflows on record, each in a file of a private folder.
//!
//! Graphs can hold API keys: the folder is 0700, the files 0600, and nothing else of them is written anywhere.
//! Those of active workflows are kept in memory too, so that a run does not depend on what others do to the files.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tempfile::{NamedTempFile, PersistError};

use super::{
    StoreError,
    file::{Identity, beside, folder_of, sync_folder},
};
use crate::workflow::{Source, WorkflowId};

const TEMPORARY_PREFIX: &str = ".tmp";

#[derive(Debug, Clone)]
pub(super) struct Graphs {
    folder: PathBuf,
}

/// The graph of an active workflow, in words, and what its file looked like when it was read or written here.
#[derive(Debug)]
pub(super) struct KeptGraph {
    content: Vec<u8>,
    ours: Mutex<Identity>,
}

impl KeptGraph {
    fn new(content: Vec<u8>, ours: Identity) -> Self {
        Self { content, ours: Mutex::new(ours) }
    }
}

impl Graphs {
    /// `<state file>.graphs/`
    pub(super) fn beside(state_file: &Path) -> Self {
        Self { folder: beside(state_file, ".graphs") }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder if it is missing. Blocks.
    pub(super) fn make_folder(&self) -> Result<(), StoreError> {
        make_private(&self.folder)
    }

    /// Returns when the graph is on disk.
    pub(super) async fn save(&self, id: &WorkflowId, source: &Source) -> Result<KeptGraph, StoreError> {
        self.write(id, source, |file, path| file.persist_noclobber(path)).await
    }

    /// Puts another graph in the place of the one that was saved, and returns when it is on disk.
    pub(super) async fn replace(&self, id: &WorkflowId, source: &Source) -> Result<KeptGraph, StoreError> {
        self.write(id, source, |file, path| file.persist(path)).await
    }

    async fn write(
        &self,
        id: &WorkflowId,
        source: &Source,
        persist: fn(NamedTempFile, &Path) -> Result<File, PersistError>,
    ) -> Result<KeptGraph, StoreError> {
        let (this, id) = (self.clone(), id.clone());
        let content = serde_json::to_vec(&source.to_value())?;
        blocking(move || {
            this.make_folder()?;
            let path = this.path(&id);
            let file = this.temporary(&content)?;
            let written = file.as_file().metadata().map_err(StoreError::io("write", &path))?;
            persist(file, &path).map_err(|error| match error.error.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Taken,
                _ => StoreError::io("write", &path)(error.error),
            })?;
            sync_folder(&this.folder).map_err(StoreError::io("write", &this.folder))?;
            Ok(KeptGraph::new(content, Identity::of(&written)))
        })
        .await
    }

    pub(super) async fn load(&self, id: &WorkflowId) -> Result<Source, StoreError> {
        let content = tokio::fs::read(self.path(id))
            .await
            .map_err(|error| unreadable(id, error.to_string(), error.kind() != io::ErrorKind::NotFound))?;
        parse(id, &content)
    }

    pub(super) fn parse_kept(id: &WorkflowId, kept: &KeptGraph) -> Result<Source, StoreError> {
        parse(id, &kept.content)
    }

    /// Reads a file to keep its content in memory; `None` when it can't be read. Blocks.
    pub(super) fn read(&self, id: &WorkflowId) -> Option<KeptGraph> {
        let path = self.path(id);
        let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(KeptGraph::new(fs::read(&path).ok()?, Identity::of(&meta)))
    }

    /// Writes the file of an active workflow again if somebody else has removed or changed it. Blocks.
    pub(super) fn restore(&self, id: &WorkflowId, kept: &KeptGraph) -> Result<(), StoreError> {
        let path = self.path(id);
        let mut ours = kept.ours.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if fs::symlink_metadata(&path).is_ok_and(|meta| Identity::of(&meta) == *ours) {
            return Ok(());
        }
        self.make_folder()?;
        let file = self.temporary(&kept.content)?;
        let written = file.as_file().metadata().map_err(StoreError::io("write", &path))?;
        file.persist(&path).map_err(|error| StoreError::io("write", &path)(error.error))?;
        *ours = Identity::of(&written);
        tracing::warn!(workflow.id = %id, "put back a graph, which somebody had removed or changed");
        sync_folder(&self.folder).map_err(StoreError::io("write", &self.folder))
    }

    pub(super) async fn remove(&self, id: &WorkflowId) {
        let path = self.path(id);
        if let Err(error) = tokio::fs::remove_file(&path).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(workflow.id = %id, %error, "could not remove the graph of a trimmed workflow");
        }
    }

    /// Removes what a killed service left: temporary files, and the graphs of workflows that are not on record, unless
    /// `keep_unknown`. Blocks.
    pub(super) fn sweep<'a>(&self, on_record: impl Iterator<Item = &'a WorkflowId>, keep_unknown: bool) {
        let keep: HashSet<PathBuf> = on_record.map(|id| self.path(id)).collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
            if temporary || !(keep_unknown || keep.contains(&entry.path())) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }

    /// The content in a file that is on the disk and has no lasting name yet.
    fn temporary(&self, content: &[u8]) -> Result<NamedTempFile, StoreError> {
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(&self.folder)
            .map_err(StoreError::io("create a file in", &self.folder))?;
        file.write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::io("write a file in", &self.folder))?;
        Ok(file)
    }

    /// Ids have a fixed form, but they come from a file: only their harmless characters name a path.
    fn path(&self, id: &WorkflowId) -> PathBuf {
        let name: String =
            id.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect();
        self.folder.join(format!("{name}.json"))
    }
}

fn parse(id: &WorkflowId, content: &[u8]) -> Result<Source, StoreError> {
    Source::parse_kept(content).map_err(|error| unreadable(id, format!("it {error}"), false))
}

fn unreadable(id: &WorkflowId, cause: String, may_pass: bool) -> StoreError {
    StoreError::Graph { id: id.clone(), cause, may_pass }
}

fn make_private(folder: &Path) -> Result<(), StoreError> {
    let meta = match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(StoreError::io("create", folder))?;
            return sync_folder(folder_of(folder)).map_err(StoreError::io("write", folder));
        }
        found => found.map_err(StoreError::io("read", folder))?,
    };
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(StoreError::Foreign { path: folder.to_owned(), expected: "a folder of this user" });
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(StoreError::io("protect", folder))?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(StoreError::task)?
}
