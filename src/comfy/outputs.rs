//! What a node reported, read from `executed.output` and from history's `outputs`. Pure.
//!
//! The shape is an object of lists by convention only: files are recognised by their form (an object with a
//! `filename`), at any depth; plain strings in lists are texts; everything else is passed over.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::workflow::{Folder, NodeOutput, RemoteFile};

/// Most files that are taken from one run.
const MAX_FILES: usize = 100_000;

/// Longest text, in bytes; nodes report whole pictures in base64.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// All texts of one run together, in bytes.
const MAX_TEXTS_BYTES: usize = 1 << 20;

/// Longest name and longest path of a folder that are taken whole, in bytes. What is longer is cut, and still so long that
/// whoever writes files refuses it.
const MAX_NAME_BYTES: usize = 1 << 10;
const MAX_SUBFOLDER_BYTES: usize = 8 << 10;

/// Longest key that is taken for a hint at the kind of a file, in bytes. Every file under it has a copy.
const MAX_KEY_BYTES: usize = 64;

/// Deepest nesting that is looked into.
const MAX_DEPTH: usize = 16;

/// Suffixes by which a name says its folder (folder_paths.py, annotated_filepath).
const ANNOTATIONS: [(&str, Folder); 3] =
    [(" [output]", Folder::Output), (" [temp]", Folder::Temp), (" [input]", Folder::Input)];

/// How much more may be taken from one run.
#[derive(Debug)]
pub(super) struct Budget {
    files: usize,
    text_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: MAX_FILES, text_bytes: MAX_TEXTS_BYTES }
    }
}

/// Everything that a node and its expanded children reported.
#[derive(Debug, Default)]
pub(super) struct Reported {
    files: Vec<RemoteFile>,
    known: HashSet<RemoteFile>,
    texts: Vec<String>,
    texts_cut: bool,
}

/// Reads what one node reported in one message.
pub(super) fn read(output: &Value) -> NodeOutput {
    let mut reported = Reported::default();
    reported.add(output, &mut Budget::default());
    reported.finish()
}

impl Reported {
    /// Adds what an output object holds.
    pub(super) fn add(&mut self, output: &Value, budget: &mut Budget) {
        let Some(lists) = output.as_object() else { return };
        for (key, value) in lists {
            if key == "result"
                && let Some(file) = three_d_result(value)
            {
                self.add_file(file, budget);
                continue;
            }
            self.walk(key, value, MAX_DEPTH, budget);
        }
    }

    /// Previews stay only where the node has no result; uploads are no output.
    pub(super) fn finish(self) -> NodeOutput {
        let has_result = self.files.iter().any(|file| file.folder == Folder::Output);
        let kept = |file: &RemoteFile| match file.folder {
            Folder::Output => true,
            Folder::Temp => !has_result,
            Folder::Input => false,
        };
        NodeOutput {
            files: self.files.into_iter().filter(kept).collect(),
            texts: self.texts,
            texts_cut: self.texts_cut,
        }
    }

    fn walk(&mut self, key: &str, value: &Value, depth: usize, budget: &mut Budget) {
        if depth == 0 {
            return;
        }
        match value {
            Value::String(text) => self.add_text(text, budget),
            Value::Array(items) => match joined(items) {
                Some(text) => self.add_text(&text, budget),
                None => items.iter().for_each(|item| self.walk(key, item, depth - 1, budget)),
            },
            Value::Object(fields) => match file(key, fields) {
                Some(file) => self.add_file(file, budget),
                None => {
                    for (key, value) in fields.iter().filter(|(_, value)| value.is_object() || value.is_array()) {
                        self.walk_files(key, value, depth - 1, budget);
                    }
                }
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Inside objects that are no files, strings are labels and settings rather than texts.
    fn walk_files(&mut self, key: &str, value: &Value, depth: usize, budget: &mut Budget) {
        match value {
            Value::Array(items) if depth > 0 => {
                items.iter().for_each(|item| self.walk_files(key, item, depth - 1, budget));
            }
            Value::Object(_) => self.walk(key, value, depth, budget),
            _ => {}
        }
    }

    fn add_file(&mut self, file: RemoteFile, budget: &mut Budget) {
        if budget.files > 0 && self.known.insert(file.clone()) {
            budget.files -= 1;
            self.files.push(file);
        }
    }

    fn add_text(&mut self, text: &str, budget: &mut Budget) {
        let limit = MAX_TEXT_BYTES.min(budget.text_bytes);
        self.texts_cut |= text.len() > limit;
        let text = cut(text, limit);
        if !text.is_empty() {
            budget.text_bytes -= text.len();
            self.texts.push(text);
        }
    }
}

/// A node that returned a bare string where ComfyUI wants a list: it has become a list of characters.
fn joined(items: &[Value]) -> Option<String> {
    let is_character =
        |item: &Value| item.as_str().is_some_and(|text| text.chars().nth(1).is_none() && !text.is_empty());
    if items.len() < 2 || !items.iter().all(is_character) {
        return None;
    }
    // A cap here too: the list can have millions of elements.
    Some(items.iter().take(MAX_TEXT_BYTES + 1).filter_map(Value::as_str).collect())
}

fn file(key: &str, fields: &Map<String, Value>) -> Option<RemoteFile> {
    let filename = fields.get("filename")?.as_str().filter(|name| !name.is_empty())?;
    let subfolder = fields.get("subfolder").and_then(Value::as_str).unwrap_or_default();
    let folder = match fields.get("type").and_then(Value::as_str) {
        Some("temp") => Folder::Temp,
        Some("input") => Folder::Input,
        _ => Folder::Output,
    };
    Some(remote_file(filename, subfolder, folder, key))
}

/// Preview3D names its file by a path in the output folder, with a camera or null and a background behind it
/// (comfy_api/latest/_ui.py, PreviewUI3D). Anything else under `result` is not a file.
fn three_d_result(value: &Value) -> Option<RemoteFile> {
    const EXTENSIONS: [&str; 10] = ["glb", "gltf", "obj", "ply", "stl", "fbx", "usdz", "splat", "spz", "ksplat"];
    let (mut path, mut folder) = (value.get(0)?.as_str()?, Folder::Output);
    for (suffix, named) in ANNOTATIONS {
        if let Some(bare) = path.strip_suffix(suffix) {
            (path, folder) = (bare, named);
        }
    }
    let (_, extension) = path.rsplit_once('.')?;
    let is_3d = EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    let is_url = path.contains("://");
    (is_3d && !is_url).then(|| remote_file(&path.replace('\\', "/"), "", folder, "result"))
}

/// `/view` takes the base name only, so a relative path in a name moves to the subfolder. Names that point elsewhere
/// stay as they are: whoever writes files must see and refuse them.
fn remote_file(filename: &str, subfolder: &str, folder: Folder, listed_as: &str) -> RemoteFile {
    let mut subfolder = subfolder.replace('\\', "/").trim_end_matches('/').to_owned();
    let mut filename = filename.to_owned();
    let split = filename
        .rsplit_once('/')
        .filter(|(parent, name)| !name.is_empty() && parent.split('/').all(|part| !matches!(part, "" | "." | "..")));
    if let Some((parent, name)) = split {
        subfolder = if subfolder.is_empty() { parent.to_owned() } else { format!("{subfolder}/{parent}") };
        filename = name.to_owned();
    }
    RemoteFile {
        filename: cut(&filename, MAX_NAME_BYTES),
        subfolder: cut(&subfolder, MAX_SUBFOLDER_BYTES),
        folder,
        listed_as: cut(listed_as, MAX_KEY_BYTES),
    }
}

/// The beginning of a text, at most `limit` bytes; what was cut shows.
fn cut(text: &str, limit: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= limit {
        return text.to_owned();
    }
    if limit < MARK.len() {
        return String::new();
    }
    let end = (0..=limit - MARK.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(output: &Value) -> Vec<String> {
        let name = |file: RemoteFile| format!("{}:{}/{}", file.folder.as_str(), file.subfolder, file.filename);
        read(output).files.into_iter().map(name).collect()
    }

    #[test]
    fn files_are_recognised_by_their_form() {
        assert_eq!(
            names(&json!({
                "images": [{"filename": "a.png", "subfolder": "", "type": "output", "abs_path": "/srv/a.png"}],
                "animated": [true],
                "gifs": [{"filename": "v.mp4", "subfolder": "s\\t", "type": "output", "fullpath": "/srv/v.mp4",
                          "format": "video/h264-mp4", "workflow": "v.png"}],
                "nested": [[{"deep": {"er": [{"filename": "n.png", "subfolder": null}]}}]],
                "ui_width": [512], "odd": null, "empty": [{"filename": ""}, {"filename": 3}],
            })),
            ["output:/a.png", "output:s/t/v.mp4", "output:/n.png"]
        );
        for odd in [json!(null), json!([]), json!("x"), json!(3), json!({})] {
            assert_eq!(read(&odd), NodeOutput::default());
        }
    }

    #[test]
    fn previews_give_way_to_results_and_uploads_never_count() {
        let item = |name: &str, kind: &str| json!({"filename": name, "subfolder": "", "type": kind});
        let temp = json!({"images": [item("t.png", "temp"), item("i.png", "input")]});
        assert_eq!(names(&temp), ["temp:/t.png"]);
        let both = json!({"images": [item("t.png", "temp"), item("o.png", "output"), item("o.png", "output")]});
        assert_eq!(names(&both), ["output:/o.png"]);
        assert_eq!(
            names(&json!({"images": [{"filename": "x.png"}, item("y.png", "strange")]})),
            ["output:/x.png", "output:/y.png"]
        );
    }

    #[test]
    fn a_path_in_a_name_moves_to_the_subfolder_unless_it_points_elsewhere() {
        let one =
            |filename: &str, subfolder: &str| names(&json!({"f": [{"filename": filename, "subfolder": subfolder}]}));
        assert_eq!(one("a/b.png", ""), ["output:a/b.png"]);
        assert_eq!(one("a/b.png", "s/"), ["output:s/a/b.png"]);
        assert_eq!(one("../b.png", ""), ["output:/../b.png"]);
        assert_eq!(one("/etc/passwd", ""), ["output://etc/passwd"]);
        assert_eq!(one("a b%c&d.png", "sub/ünï cödé"), ["output:sub/ünï cödé/a b%c&d.png"]);
    }

    #[test]
    fn names_without_end_are_cut_to_what_is_refused() {
        let long = "x/".repeat(1 << 20);
        let key = "k".repeat(1 << 20);
        let output = json!({&key: [{"filename": "n".repeat(1 << 20), "subfolder": long}]});
        let file = &read(&output).files[0];
        assert!(file.filename.len() > 255 && file.filename.len() <= MAX_NAME_BYTES);
        assert!(file.subfolder.len() > 16 * 256 && file.subfolder.len() <= MAX_SUBFOLDER_BYTES);
        assert!(file.listed_as.len() <= MAX_KEY_BYTES);
    }

    #[test]
    fn of_a_3d_preview_only_the_mesh_is_a_file() {
        let camera = json!({"position": {"x": 1}, "cameraType": "perspective"});
        assert_eq!(
            names(&json!({"result": ["mesh\\a_00001_.glb", camera, "temp/bg.png"]})),
            ["output:mesh/a_00001_.glb"]
        );
        assert_eq!(names(&json!({"result": ["a.GLB [temp]", null]})), ["temp:/a.GLB"]);
        assert_eq!(names(&json!({"result": ["https://x/a.glb"]})), Vec::<String>::new());
        assert_eq!(read(&json!({"result": ["a caption"]})).texts, ["a caption"]);
    }

    #[test]
    fn texts_are_lists_of_strings_and_characters_are_joined_again() {
        let texts = |output: Value| read(&output).texts;
        assert_eq!(texts(json!({"text": ["one", "two"]})), ["one", "two"]);
        assert_eq!(texts(json!({"text": ["o", "n", "é", " "]})), ["oné "]);
        assert_eq!(
            texts(json!({"text": ["a"], "string": "bare", "value": [1, "2", ["x y"]]})),
            ["a", "bare", "2", "x y"]
        );
        assert_eq!(texts(json!({"images": [{"filename": "a.png", "format": "png"}], "s": [{"k": "label"}]})), [""; 0]);
    }

    #[test]
    fn long_texts_and_long_lists_are_cut() {
        assert!(!read(&json!({"text": ["short"]})).texts_cut);
        let read_long = read(&json!({"text": ["é".repeat(100_000)]}));
        let text = &read_long.texts[0];
        assert!(read_long.texts_cut);
        assert!(
            text.len() <= MAX_TEXT_BYTES && text.len() > MAX_TEXT_BYTES - 8 && text.ends_with("é…"),
            "{}",
            text.len()
        );
        let texts = read(&json!({"text": vec!["x".repeat(60_000); 100]})).texts;
        assert!(
            texts.iter().map(String::len).sum::<usize>() <= MAX_TEXTS_BYTES && texts.len() == 18,
            "{}",
            texts.len()
        );
        let many: Vec<_> = (0..MAX_FILES + 5).map(|i| json!({"filename": format!("{i}.png")})).collect();
        assert_eq!(read(&json!({"images": many})).files.len(), MAX_FILES);
        let joined = read(&json!({"text": vec!["x"; 200_000]})).texts;
        assert_eq!((joined.len(), joined[0].len() <= MAX_TEXT_BYTES), (1, true));
    }
}
