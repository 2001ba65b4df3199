//! The graphs of the workflows on record, each in a file of a private folder.
//!
//! Graphs can hold API keys: the folder is 0700, the files 0600, and nothing else of them is written anywhere.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    file::{folder_of, sync_folder},
};
use crate::workflow::{Graph, WorkflowId};

#[derive(Debug, Clone)]
pub(super) struct Graphs {
    folder: PathBuf,
}

impl Graphs {
    /// `<state file>.graphs/`, made if missing.
    pub(super) async fn beside(state_file: &Path) -> Result<Self, StoreError> {
        let mut folder = state_file.as_os_str().to_owned();
        folder.push(".graphs");
        let folder = PathBuf::from(folder);
        let graphs = Self { folder: folder.clone() };
        blocking(move || make_private(&folder)).await?;
        Ok(graphs)
    }

    /// Returns when the graph is on disk.
    pub(super) async fn save(&self, id: &WorkflowId, graph: &Graph) -> Result<(), StoreError> {
        let (folder, path) = (self.folder.clone(), self.path(id));
        let content = serde_json::to_vec(&graph.to_value())?;
        blocking(move || {
            make_private(&folder)?;
            let mut file =
                tempfile::NamedTempFile::new_in(&folder).map_err(StoreError::io("create a file in", &folder))?;
            file.write_all(&content)
                .and_then(|()| file.as_file().sync_all())
                .map_err(StoreError::io("write", &path))?;
            file.persist_noclobber(&path).map_err(|error| match error.error.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Taken,
                _ => StoreError::io("write", &path)(error.error),
            })?;
            sync_folder(&folder).map_err(StoreError::io("write", &folder))
        })
        .await
    }

    pub(super) async fn load(&self, id: &WorkflowId) -> Result<Graph, StoreError> {
        let unreadable = |cause: String, may_pass| StoreError::Graph { id: id.clone(), cause, may_pass };
        let content = tokio::fs::read(self.path(id))
            .await
            .map_err(|error| unreadable(error.to_string(), error.kind() != io::ErrorKind::NotFound))?;
        Graph::parse(&content).map_err(|error| unreadable(format!("it {error}"), false))
    }

    pub(super) async fn remove(&self, id: &WorkflowId) {
        let path = self.path(id);
        if let Err(error) = tokio::fs::remove_file(&path).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(workflow.id = %id, %error, "could not remove the graph of a trimmed workflow");
        }
    }

    /// Removes what a killed service left: graphs of workflows that are not on record.
    pub(super) async fn remove_all_but(&self, on_record: impl Iterator<Item = &WorkflowId>) {
        let (folder, keep) = (self.folder.clone(), on_record.map(|id| self.path(id)).collect::<HashSet<_>>());
        let work = move || {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if !keep.contains(&entry.path()) {
                    fs::remove_file(entry.path()).ok();
                }
            }
            Ok(())
        };
        blocking(work).await.ok();
    }

    /// Ids have a fixed form, but they come from a file: only their harmless characters name a path.
    fn path(&self, id: &WorkflowId) -> PathBuf {
        let name: String =
            id.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect();
        self.folder.join(format!("{name}.json"))
    }
}

fn make_private(folder: &Path) -> Result<(), StoreError> {
    let foreign = || StoreError::Foreign { path: folder.to_owned(), expected: "folder" };
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return sync_folder(folder_of(folder)).map_err(StoreError::io("write", folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(StoreError::io("create", folder)(error)),
    }
    let meta = fs::symlink_metadata(folder).map_err(StoreError::io("read", folder))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign());
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
