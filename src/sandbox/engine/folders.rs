//! ComfyUI's folders in the box, and how names in prompts and queries lead to files.
//!
//! Used all over the sandbox. Paths are canonical; names follow `folder_paths.py`.

use std::io;
use std::path::{Component, Path, PathBuf};

/// `<root>/ComfyUI/{input,output,temp}`.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    pub(crate) root: PathBuf,
    pub(crate) input: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) temp: PathBuf,
}

impl Folders {
    /// Makes the folders that are missing.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let base = root.join("ComfyUI");
        let folders = Self { input: base.join("input"), output: base.join("output"), temp: base.join("temp"), root };
        for folder in [&folders.input, &folders.output, &folders.temp] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(folders)
    }

    pub(super) fn by_type(&self, kind: &str) -> Option<&Path> {
        match kind {
            "input" => Some(&self.input),
            "output" => Some(&self.output),
            "temp" => Some(&self.temp),
            _ => None,
        }
    }

    /// The file a loader's name means: below the input folder unless annotated with another one.
    ///
    /// ComfyUI up to 0.3.75 follows `..` and absolute paths anywhere; this stops at the root of the box.
    pub(super) fn annotated(&self, name: &str) -> Option<PathBuf> {
        let (name, base) = split_annotation(name);
        let base = base.and_then(|kind| self.by_type(kind)).unwrap_or(&self.input);
        let path = abspath(&base.join(name));
        path.starts_with(&self.root).then_some(path)
    }

    /// Files directly in the input folder, sorted, as `LoadImage` lists them.
    pub(super) fn input_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.input).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.path().is_file());
        let mut names: Vec<String> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Empties the temp folder, as ComfyUI does when it starts.
    pub(super) fn wipe_temp(&self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.temp)?;
        std::fs::create_dir_all(&self.temp)
    }
}

/// `x.png [temp]`: the name without, and the folder the annotation names.
pub(super) fn split_annotation(name: &str) -> (&str, Option<&str>) {
    for kind in ["output", "input", "temp"] {
        if let Some(bare) = name.strip_suffix(']').and_then(|name| name.strip_suffix(kind)?.strip_suffix('[')) {
            // ComfyUI cuts one more character, whatever it is.
            let mut characters = bare.chars();
            characters.next_back();
            return (characters.as_str(), Some(kind));
        }
    }
    (name, None)
}

/// Resolves `.` and `..` without looking at the disk, as `os.path.abspath` does.
pub(super) fn abspath(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}
