//! Input files that nodes name.

use std::{borrow::Cow, collections::HashSet};

use serde_json::Value;

use super::{Checker, Place, choices::in_words, values::shown};
use crate::workflow::{FileType, Finding, FindingCode, Folder, InputDefinition, Severity};

/// Classes that refuse a name without a file (v0.3.75: nodes.py, nodes_audio.py, nodes_video.py).
const REFUSING: [&str; 5] = ["LoadAudio", "LoadImage", "LoadImageMask", "LoadImageOutput", "LoadVideo"];

/// A file that a node names and that must be looked for on the box.
#[derive(Debug, Clone, PartialEq)]
pub struct FileReference {
    /// Where it should be.
    pub file: Annotated,
    /// What to tell when it is not there.
    pub missing: Finding,
}

/// A file in one of ComfyUI's folders, as widgets name it: `sub/a.png [output]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Annotated {
    /// Its name.
    pub filename: String,
    /// The path to it below the folder; empty for none.
    pub subfolder: String,
    /// The folder; input where none is named.
    pub folder: Folder,
}

/// Reads a widget's value as ComfyUI does (`folder_paths.py`, `annotated_filepath`, v0.3.75).
pub fn annotated(value: &str) -> Annotated {
    let folders = [("[output]", Folder::Output), ("[input]", Folder::Input), ("[temp]", Folder::Temp)];
    let named = folders.into_iter().find_map(|(mark, folder)| Some((value.strip_suffix(mark)?, folder)));
    // One more character is cut off, whatever it is; usually a blank.
    let without_last = |path: &str| path.char_indices().next_back().map_or(0, |(at, _)| at);
    let named = named.map(|(path, folder)| (&path[..without_last(path)], folder));
    let (path, folder) = named.unwrap_or((value, Folder::Input));
    let (subfolder, filename) = path.rsplit_once('/').unwrap_or(("", path));
    let subfolder = if subfolder.is_empty() && path.starts_with('/') { "/" } else { subfolder };
    Annotated { filename: filename.to_owned(), subfolder: subfolder.to_owned(), folder }
}

impl<'a> Place<'a> {
    /// A value that names an uploaded file.
    pub(super) fn file(&self, checker: &mut Checker<'a>, name: &str, input: &'a InputDefinition, value: &Value) {
        let Value::String(text) = value else { return };
        let plain = text.strip_suffix(" [input]").unwrap_or(text);
        if checker.given.contains(plain) || checker.lists.has(input, value) {
            return;
        }
        let file = annotated(text);
        // ComfyUI lets folders pass as files; those and paths of Windows are not seen by looking for a file.
        let is_media = matches!(FileType::of(&file.filename, ""), FileType::Image | FileType::Video | FileType::Audio);
        let is_seen = is_media && !text.contains('\\');
        let refuses = is_seen && self.definition.is_surely_core && REFUSING.contains(&self.node.class_type());
        let severity = if refuses { self.severity() } else { Severity::Warning };
        let message = format!("{name} names {}, which is neither given nor on the box", shown(value));
        let given = checker.known.given;
        let (there, count) =
            (given.iter().map(Cow::from).chain(in_words(&input.choices)), given.len() + input.choices.len());
        let or = if count == 0 { String::new() } else { format!("; {}", checker.suggestions.of(text, there, count)) };
        let hint = format!("give the file with the workflow, or name one that is there{or}");
        let missing = self.finding(severity, FindingCode::MissingInputFile, name, message).with_hint(hint);
        checker.report.files.push(FileReference { file, missing });
    }
}

impl Checker<'_> {
    /// Files that come with the workflow and that nothing in it names.
    pub(super) fn unused_files(&mut self) {
        let texts: HashSet<&str> =
            self.graph.nodes().flat_map(|(_, node)| node.inputs()).filter_map(|(_, value)| value.as_str()).collect();
        let is_named = |name: &str| texts.contains(name) || texts.contains(format!("{name} [input]").as_str());
        let unused: Vec<&String> = self.known.given.iter().filter(|name| !is_named(name)).collect();
        for name in unused {
            let message = format!("the input file {name} is named by no node of the workflow");
            let finding = Finding::of_all(Severity::Warning, FindingCode::UnusedInputFile, message);
            self.report(finding.with_hint("it is uploaded all the same; if a node should load it, put its name there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_comfyui_reads_them() {
        let read = |value| {
            let Annotated { filename, subfolder, folder } = annotated(value);
            (subfolder, filename, folder)
        };
        for (value, subfolder, filename, folder) in [
            ("a.png", "", "a.png", Folder::Input),
            ("a.png [input]", "", "a.png", Folder::Input),
            ("x/y/a.png [output]", "x/y", "a.png", Folder::Output),
            ("clipspace/a b.png [temp]", "clipspace", "a b.png", Folder::Temp),
            ("a.png_[input]", "", "a.png", Folder::Input),
            ("[output]", "", "", Folder::Output),
            ("/a.png", "/", "a.png", Folder::Input),
        ] {
            assert_eq!(read(value), (subfolder.to_owned(), filename.to_owned(), folder), "{value}");
        }
    }
}
