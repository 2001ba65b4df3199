//! The graphs of the workflows on record, each in a file of a private folder.
//!
//! Graphs can hold API keys: the folder is 0700, the files 0600, and nothing else of them is written anywhere.
//! Those of active workflows are kept in memory too, so that a run does not depend on what others do to the files; all
//! together up to a bound. Of those beyond it the digest is kept, which tells whether a file is what it was.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, PersistError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    StoreError,
    file::{Identity, beside, check_writable, folder_of, sync_folder},
};
use crate::workflow::{Source, WorkflowId};

const TEMPORARY_PREFIX: &str = ".tmp";

/// What graphs may take in memory, all together, in KiB: a thousand waiting ones of the usual size.
const IN_MEMORY_KIB: usize = 64 << 10;

#[derive(Debug, Clone)]
pub(super) struct Graphs {
    folder: PathBuf,
    room: Arc<Semaphore>,
}

/// The graph of an active workflow, the same one as long as that is active: what is done to its file and what others must
/// know of that goes together.
#[derive(Debug)]
pub(super) struct KeptGraph {
    /// What its file looked like when it was read or written here. Locked while the file is looked at or written.
    ours: Mutex<Option<Identity>>,
    /// Changed only while `ours` is locked, and locked for moments only.
    content: Mutex<Arc<Content>>,
}

#[derive(Debug)]
enum Content {
    /// In words, with its share of the room for such.
    InMemory { words: Vec<u8>, _share: OwnedSemaphorePermit },
    /// There was no room for it.
    OnDisk([u8; 32]),
    /// It could not be read at the start, or is not wanted any more.
    Unknown,
}

impl KeptGraph {
    fn new(content: Content, ours: Option<Identity>) -> Self {
        Self { ours: Mutex::new(ours), content: Mutex::new(Arc::new(content)) }
    }

    /// Waits until nobody else works on the file. Blocks.
    fn file(&self) -> MutexGuard<'_, Option<Identity>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self) -> Arc<Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, content: Content) {
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(content);
    }
}

impl Content {
    fn new(words: Vec<u8>, room: &Arc<Semaphore>) -> Self {
        let kib = u32::try_from(words.len().div_ceil(1 << 10)).unwrap_or(u32::MAX);
        match Arc::clone(room).try_acquire_many_owned(kib) {
            Ok(share) => Self::InMemory { words, _share: share },
            Err(_) => Self::OnDisk(Sha256::digest(&words).into()),
        }
    }
}

impl Graphs {
    /// `<state file>.graphs/`
    pub(super) fn beside(state_file: &Path) -> Self {
        Self { folder: beside(state_file, ".graphs"), room: Arc::new(Semaphore::new(IN_MEMORY_KIB)) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sees to it that the folder is there, and says why nothing could be put in it. Blocks.
    pub(super) fn check_folder(&self) -> Result<(), StoreError> {
        self.make_folder()?;
        check_writable(&self.folder)
    }

    /// Makes the folder if it is missing. Blocks.
    pub(super) fn make_folder(&self) -> Result<(), StoreError> {
        make_private(&self.folder)
    }

    /// Returns when the graph is on disk.
    pub(super) async fn save(&self, id: &WorkflowId, source: &Source) -> Result<Arc<KeptGraph>, StoreError> {
        let (this, id, words) = (self.clone(), id.clone(), serde_json::to_vec(&source.to_value())?);
        blocking(move || {
            let ours = this.put(&id, &words, |file, path| file.persist_noclobber(path))?;
            this.sync()?;
            Ok(Arc::new(KeptGraph::new(Content::new(words, &this.room), Some(ours))))
        })
        .await
    }

    /// Puts another graph in the place of the one that is kept, and returns when it is on disk.
    pub(super) async fn replace(
        &self,
        id: &WorkflowId,
        kept: Arc<KeptGraph>,
        source: &Source,
    ) -> Result<(), StoreError> {
        let (this, id, words) = (self.clone(), id.clone(), serde_json::to_vec(&source.to_value())?);
        blocking(move || {
            let mut ours = kept.file();
            *ours = Some(this.put(&id, &words, |file, path| file.persist(path))?);
            kept.set(Content::new(words, &this.room));
            this.sync()
        })
        .await
    }

    /// Removes a graph that is not wanted any more, also where a look at it is under way.
    pub(super) async fn discard(&self, id: &WorkflowId, kept: Arc<KeptGraph>) {
        let (this, id) = (self.clone(), id.clone());
        let discard = move || {
            let _ours = kept.file();
            kept.set(Content::Unknown);
            fs::remove_file(this.path(&id)).map_err(StoreError::io("remove", this.path(&id)))
        };
        if let Err(error) = blocking(discard).await {
            tracing::warn!(%error, "the graph of a workflow that was not accepted stays until the next start");
        }
    }

    /// Gives a file with these words its place. Blocks.
    fn put(
        &self,
        id: &WorkflowId,
        words: &[u8],
        persist: fn(NamedTempFile, &Path) -> Result<File, PersistError>,
    ) -> Result<Identity, StoreError> {
        self.make_folder()?;
        let path = self.path(id);
        let file = self.temporary(words)?;
        let written = file.as_file().metadata().map_err(StoreError::io("write", &path))?;
        persist(file, &path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Taken,
            _ => StoreError::io("write", &path)(error.error),
        })?;
        Ok(Identity::of(&written))
    }

    /// Makes what was put in its place survive a power cut. Blocks.
    fn sync(&self) -> Result<(), StoreError> {
        sync_folder(&self.folder).map_err(StoreError::io("write", &self.folder))
    }

    pub(super) async fn load(&self, id: &WorkflowId) -> Result<Source, StoreError> {
        parse(id, &self.content(id).await?)
    }

    /// That of an active workflow, as it was when it was written here.
    pub(super) async fn load_kept(&self, id: &WorkflowId, kept: &KeptGraph) -> Result<Source, StoreError> {
        match &*kept.content() {
            Content::InMemory { words, .. } => parse(id, words),
            Content::OnDisk(digest) => {
                let content = self.content(id).await?;
                if Sha256::digest(&content).as_slice() != digest {
                    return Err(unreadable(id, "somebody else has changed it".to_owned(), false));
                }
                parse(id, &content)
            }
            Content::Unknown => self.load(id).await,
        }
    }

    async fn content(&self, id: &WorkflowId) -> Result<Vec<u8>, StoreError> {
        let read = tokio::fs::read(self.path(id)).await;
        read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unreadable(id, "somebody has removed it".to_owned(), false),
            _ => unreadable(id, error.to_string(), true),
        })
    }

    /// Reads a file to keep its content, or its digest, if it can be read. Blocks.
    pub(super) fn read(&self, id: &WorkflowId) -> Arc<KeptGraph> {
        let path = self.path(id);
        let read = || {
            let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some((Content::new(fs::read(&path).ok()?, &self.room), Identity::of(&meta)))
        };
        let (content, ours) = read().map_or((Content::Unknown, None), |(content, ours)| (content, Some(ours)));
        Arc::new(KeptGraph::new(content, ours))
    }

    /// Writes the file of an active workflow again if somebody else has removed or changed it. Blocks.
    pub(super) fn restore(&self, id: &WorkflowId, kept: &KeptGraph) -> Result<(), StoreError> {
        let path = self.path(id);
        let mut ours = kept.file();
        let found = fs::symlink_metadata(&path);
        if found.as_ref().is_ok_and(|meta| Some(Identity::of(meta)) == *ours) {
            return Ok(());
        }
        match &*kept.content() {
            Content::InMemory { words, .. } => {
                *ours = Some(self.put(id, words, |file, path| file.persist(path))?);
                tracing::warn!(workflow.id = %id, "put back a graph, which somebody had removed or changed");
                self.sync()
            }
            Content::OnDisk(_) => {
                let what = if found.is_ok() { "was replaced or changed" } else { "was removed" };
                Err(StoreError::Tampered { path, what })
            }
            Content::Unknown => Ok(()),
        }
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
            .map_err(StoreError::no_file(&self.folder))?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(mib: usize) -> Source {
        let text = format!(r#"{{"1": {{"class_type": "A", "inputs": {{"text": "{}"}}}}}}"#, "x".repeat(mib << 20));
        Source::parse_kept(text.as_bytes()).unwrap()
    }

    fn in_memory(kept: &Arc<KeptGraph>) -> bool {
        matches!(*kept.content(), Content::InMemory { .. })
    }

    #[tokio::test]
    async fn graphs_take_memory_up_to_a_bound_and_are_there_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let graphs = Graphs::beside(&folder.path().join("state.json"));
        let ids: Vec<WorkflowId> = (0..4).map(|tail| WorkflowId::new(chrono::Utc::now(), tail)).collect();
        let large = source(40);
        let first = graphs.save(&ids[0], &large).await.unwrap();
        let second = graphs.save(&ids[1], &large).await.unwrap();
        let small = graphs.save(&ids[2], &source(1)).await.unwrap();
        assert_eq!([&first, &second, &small].map(in_memory), [true, false, true]);
        assert!(graphs.load_kept(&ids[1], &second).await.unwrap() == large, "from the disk");
        graphs.restore(&ids[1], &second).unwrap();
        drop(first);
        assert!(in_memory(&graphs.read(&ids[1])), "there is room again");

        fs::write(graphs.path(&ids[1]), r#"{"1": {"class_type": "Another", "inputs": {}}}"#).unwrap();
        let changed = graphs.load_kept(&ids[1], &second).await.unwrap_err().to_string();
        assert!(changed.ends_with("can't be read: somebody else has changed it"), "{changed}");
        let told = |what| format!("{} {what} by somebody else", graphs.path(&ids[1]).display());
        assert_eq!(graphs.restore(&ids[1], &second).unwrap_err().to_string(), told("was replaced or changed"));
        fs::remove_file(graphs.path(&ids[1])).unwrap();
        assert_eq!(graphs.restore(&ids[1], &second).unwrap_err().to_string(), told("was removed"));
    }
    #[tokio::test]
    async fn a_graph_that_was_replaced_is_no_trouble_where_there_is_no_room_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let graphs = Graphs { room: Arc::new(Semaphore::new(0)), ..Graphs::beside(&folder.path().join("state.json")) };
        let id = WorkflowId::new(chrono::Utc::now(), 1);
        let kept = graphs.save(&id, &source(0)).await.unwrap();
        graphs.replace(&id, kept.clone(), &source(1)).await.unwrap();
        graphs.restore(&id, &kept).unwrap();
        assert!(graphs.load_kept(&id, &kept).await.unwrap() == source(1));
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_is_not_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let graphs = Graphs::beside(&folder.path().join("state.json"));
        let id = WorkflowId::new(chrono::Utc::now(), 1);
        let kept = graphs.save(&id, &source(0)).await.unwrap();
        graphs.discard(&id, kept.clone()).await;
        graphs.restore(&id, &kept).unwrap();
        assert!(!graphs.path(&id).exists());
    }
}
