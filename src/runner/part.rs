//! Files that are on their way into the output folder.
//!
//! A part lies in the folder of its file, under a private name that says whose it is, of which file, and of which content
//! of that file. So a download goes on where it was cut, also after the service was killed, and never with bytes of
//! another content. When its workflow is over, nothing of it stays.
//!
//! All work on a part blocks, and what was begun on another thread goes on when the one who waits for it is dropped. So a
//! part has one user at a time: who works on it has its turn, in the background too, and who comes next waits for that.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    digest::sha256_of,
    output_folder::{Place, StoreFileError},
    turns::Turns,
};
use crate::{
    files::{Folder, Roots, publish},
    workflow::{RemoteFile, WorkflowId},
};

const SUFFIX: &str = ".part";

/// The parts of one workflow. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    owner: WorkflowId,
    roots: Roots,
    known: Arc<Mutex<Known>>,
    turns: Arc<Turns<RemoteFile>>,
}

/// The turn of who works on the part of one file.
pub(super) type PartTurn = OwnedSemaphorePermit;

#[derive(Debug, Default)]
struct Known {
    /// Where parts have come into being.
    folders: BTreeSet<PathBuf>,
    /// No further one does. The work of a dropped task may go on in the background for a moment.
    is_over: bool,
}

/// One file of which some bytes may be here. Only this user can read it before it is whole. Clones are for work on other
/// threads, and have the same turn.
#[derive(Debug, Clone)]
pub(super) struct Part {
    name: String,
    folder: Arc<Folder>,
    length: u64,
    place: Arc<Place>,
    _turn: Arc<PartTurn>,
}

impl Parts {
    /// Those of `owner`, whose folders lie in `roots`.
    pub(super) fn of(owner: WorkflowId, roots: Roots) -> Self {
        Self { owner, roots, known: Arc::default(), turns: Arc::default() }
    }

    /// Waits until nobody works on the part of a file any more.
    pub(super) async fn turn(&self, file: &RemoteFile) -> PartTurn {
        self.turns.take(file.clone()).await
    }

    /// The part of a file with this content, below `output_dir`; empty if there was none, or if `content` is not known.
    /// Parts of the same file with other content are removed. Blocks.
    pub(super) fn open(
        &self,
        turn: PartTurn,
        output_dir: &Path,
        file: &RemoteFile,
        content: Option<&str>,
    ) -> Result<Part, StoreFileError> {
        let place = Place::of(output_dir, file)?;
        // One file that is listed twice comes twice.
        let listing = [file.folder.as_str(), &file.listed_as, &file.filename].join("\0");
        let of_file = format!("{}{}-", self.prefix(), brief(&listing));
        let name = format!("{of_file}{}{SUFFIX}", brief(content.unwrap_or_default()));
        let path = place.folder().join(&name);
        let mut known = self.known();
        if known.is_over {
            let over = io::Error::new(io::ErrorKind::Interrupted, "the workflow is over");
            return Err(StoreFileError::io("create", &path)(over));
        }
        let folder = place.make_folder(&self.roots)?;
        remove(&folder, |other| other.starts_with(&of_file) && other != name);
        let opened = folder.file(OsStr::new(&name), OFlags::CREATE).and_then(|file| Ok(file.metadata()?.len()));
        let length = opened.map_err(StoreFileError::io("create", &path))?;
        known.folders.insert(place.folder().to_owned());
        drop(known);
        let (folder, place) = (Arc::new(folder), Arc::new(place));
        let mut part = Part { name, folder, length, place, _turn: Arc::new(turn) };
        if content.is_none() {
            part.cut_to(0)?;
        }
        Ok(part)
    }

    /// Removes every part, also those that a killed service left beside where `files` are to lie, and lets no further one
    /// come into being. Blocks.
    pub(super) fn remove_all<'f>(&self, output_dir: &Path, files: impl Iterator<Item = &'f RemoteFile>) {
        let mut known = self.known();
        known.is_over = true;
        let places = files.filter_map(|file| Place::of(output_dir, file).ok());
        known.folders.extend(places.map(|place| place.folder().to_owned()));
        for path in std::mem::take(&mut known.folders) {
            if let Ok(folder) = Folder::open(&path, &self.roots) {
                remove(&folder, |name| name.starts_with(&self.prefix()));
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prefix(&self) -> String {
        format!(".{}-", self.owner)
    }
}

/// Whether a name could be that of a part. The box knows the ids of its workflows: a file of such a name would be taken
/// for one, and removed.
pub(super) fn is_part(name: &str) -> bool {
    name.starts_with('.') && name.to_ascii_lowercase().ends_with(SUFFIX)
}

impl Part {
    /// Where it lies, for people.
    pub(super) fn path(&self) -> PathBuf {
        self.place.folder().join(&self.name)
    }

    /// What may still be written where it lies, and the path of that folder; `None` when that is not known. Blocks.
    pub(super) fn free_bytes(&self) -> Option<(u64, &Path)> {
        Some((self.folder.free_bytes()?, self.place.folder()))
    }

    /// How many bytes of the file are here.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Keeps only the first `length` bytes. Blocks.
    pub(super) fn cut_to(&mut self, length: u64) -> Result<(), StoreFileError> {
        let cut = || self.file()?.set_len(length);
        cut().map_err(StoreFileError::io("write", &self.path()))?;
        self.length = length;
        Ok(())
    }

    /// A handle to write the rest to. Blocks.
    pub(super) fn writer(&self) -> Result<tokio::fs::File, StoreFileError> {
        let open = || {
            let mut file = self.file()?;
            file.seek(SeekFrom::Start(self.length))?;
            Ok(tokio::fs::File::from_std(file))
        };
        open().map_err(StoreFileError::io("open", &self.path()))
    }

    /// Takes note of bytes that were written behind those that were there.
    pub(super) fn grew(&mut self, bytes: u64) {
        self.length += bytes;
    }

    /// The SHA-256 of all its bytes, as they are on the disk. Blocks.
    pub(super) fn sha256(&self) -> Result<[u8; 32], StoreFileError> {
        let read = || Ok(sha256_of(&mut self.folder.read(OsStr::new(&self.name))?)?.1);
        read().map_err(StoreFileError::io("read", &self.path()))
    }

    /// Makes the file of it, and returns where that is. Blocks.
    pub(super) fn keep(self) -> Result<PathBuf, StoreFileError> {
        let finish = || {
            let file = self.file()?;
            publish(&file)?;
            file.sync_all()
        };
        finish().map_err(StoreFileError::io("write", &self.path()))?;
        self.place.take(&self.folder, OsStr::new(&self.name))
    }

    fn file(&self) -> io::Result<File> {
        self.folder.file(OsStr::new(&self.name), OFlags::empty())
    }
}

fn remove(folder: &Folder, is_meant: impl Fn(&str) -> bool) {
    for name in folder.names().unwrap_or_default() {
        if name.ends_with(SUFFIX) && is_meant(&name) {
            folder.remove(OsStr::new(&name)).ok();
        }
    }
}

/// 16 hex digits that stand for a text.
fn brief(text: &str) -> String {
    let mut digits = hex::encode(Sha256::digest(text));
    digits.truncate(16);
    digits
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use futures_util::FutureExt;

    use super::*;
    use crate::workflow::Folder;

    fn named(filename: &str) -> RemoteFile {
        let (filename, subfolder, listed_as) = (filename.to_owned(), "sub".to_owned(), "images".to_owned());
        RemoteFile { filename, subfolder, folder: Folder::Output, listed_as }
    }

    fn parts(owner: &str) -> Parts {
        Parts::of(owner.into(), Roots::anywhere())
    }

    /// The part of a file that nobody works on.
    fn open(parts: &Parts, folder: &Path, name: &str, content: Option<&str>) -> Result<Part, StoreFileError> {
        let turn = parts.turn(&named(name)).now_or_never().unwrap();
        parts.open(turn, folder, &named(name), content)
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder.join("sub")).unwrap().count()
    }

    #[test]
    fn a_part_goes_on_for_the_same_content_only() {
        let folder = tempfile::tempdir().unwrap();
        let open = |content| open(&parts("mine"), folder.path(), "a.png", content).unwrap();
        let first = open(Some("7 bytes of yesterday"));
        fs::write(first.path(), "1234").unwrap();
        assert_eq!(open(Some("7 bytes of yesterday")).length(), 4);
        assert_eq!(open(Some("7 bytes of today")).length(), 0);
        assert_eq!(count(folder.path()), 1, "the old one is gone");
        let unknown = open(None);
        fs::write(unknown.path(), "1234").unwrap();
        assert_eq!(open(None).length(), 0);
    }

    #[test]
    fn a_whole_part_becomes_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = open(&parts("mine"), folder.path(), "a.png", Some("x")).unwrap();
        fs::write(part.path(), "12345678").unwrap();
        part.cut_to(7).unwrap();
        assert_eq!(fs::metadata(part.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(part.sha256().unwrap(), <[u8; 32]>::from(Sha256::digest("1234567")));
        let path = part.keep().unwrap();
        assert_eq!((path.as_path(), count(folder.path())), (folder.path().join("sub/a.png").as_path(), 1));
        assert_eq!(fs::read_to_string(&path).unwrap(), "1234567");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        fs::write(folder.path().join("new"), "").unwrap();
        assert_eq!(mode(&path), mode(&folder.path().join("new")), "as any new file of the user");
    }

    #[test]
    fn when_it_is_over_nothing_stays_and_nothing_comes() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, other) = (parts("mine"), parts("other"));
        for (parts, name) in [(&mine, "a.png"), (&mine, "b.png"), (&other, "a.png")] {
            open(parts, folder.path(), name, Some("x")).unwrap();
        }
        mine.remove_all(folder.path(), [named("a.png")].iter());
        assert_eq!(count(folder.path()), 1);
        open(&mine.clone(), folder.path(), "a.png", Some("x")).unwrap_err();
        assert_eq!(count(folder.path()), 1);
    }

    #[test]
    fn a_link_in_the_place_of_a_part_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let precious = folder.path().join("precious");
        fs::write(&precious, "same").unwrap();
        let path = open(&parts("mine"), folder.path(), "a.png", Some("x")).unwrap().path();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        open(&parts("mine"), folder.path(), "a.png", Some("x")).unwrap_err();
        assert_eq!(fs::read_to_string(precious).unwrap(), "same");
    }
}
