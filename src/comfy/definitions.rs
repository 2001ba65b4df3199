//! Node definitions: which classes the box has, which of them end a graph, and which inputs name files.
//!
//! Only the classes that a graph uses are asked for: the whole list is tens of megabytes on a furnished box.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{
    client::{Client, LARGE, MAX_JSON_BYTES, percent_encode, within},
    error::ComfyError,
};

const WHAT: &str = "GET /object_info";

/// How many classes are asked for at once.
const PARALLEL: usize = 4;

/// Deadline for all classes together.
const ALL: Duration = Duration::from_secs(180);

/// Inputs of node packs that add their upload button in the browser and say nothing about it in the definition
/// (VideoHelperSuite, load_video_nodes.py and VHS.core.js).
const SILENT_UPLOADS: [(&str, &str); 3] =
    [("VHS_LoadVideo", "video"), ("VHS_LoadVideoFFmpeg", "video"), ("VHS_LoadAudioUpload", "audio")];

/// The definitions of the classes that were asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definitions {
    known: BTreeMap<String, Definition>,
    missing: BTreeSet<String>,
}

/// What ComfyUI says about one class of nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Whether the class ends a graph: its nodes, and what they need, are what runs.
    pub output_node: bool,
    /// The definition as ComfyUI sent it.
    pub raw: Value,
    inputs: BTreeMap<String, Input>,
}

/// What ComfyUI says about one input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Input {
    /// Whether it takes the name of an uploaded file.
    pub is_upload: bool,
    /// Whether what is linked to it runs only if the node asks for it.
    pub lazy: bool,
    /// Whether it must be given.
    pub required: bool,
}

impl Client {
    /// Asks for the definitions of these classes.
    ///
    /// # Errors
    /// As for every read; also [`ComfyError::TooBig`] when all together are longer than 64 MiB.
    pub async fn definitions(&self, classes: &BTreeSet<String>) -> Result<Definitions, ComfyError> {
        let answers = stream::iter(classes.clone())
            .map(|class| async move {
                let definition = self.definition(&class).await?;
                Ok((class, definition))
            })
            .buffer_unordered(PARALLEL);
        let all =
            answers.try_fold((Definitions::default(), 0), |(mut definitions, total), (class, answer)| async move {
                let Some((definition, size)) = answer else {
                    definitions.missing.insert(class);
                    return Ok((definitions, total));
                };
                let total = total + size;
                if total > MAX_JSON_BYTES {
                    return Err(ComfyError::TooBig { what: WHAT, limit: MAX_JSON_BYTES });
                }
                definitions.known.insert(class, definition);
                Ok((definitions, total))
            });
        within(WHAT, ALL, all).await.map(|(definitions, _)| definitions)
    }

    /// One definition and its size in bytes; `None` when the box lacks the class.
    async fn definition(&self, class: &str) -> Result<Option<(Definition, u64)>, ComfyError> {
        if matches!(class, "" | "." | "..") {
            // As a path segment these would ask for something else.
            return Ok(None);
        }
        let answer = self.get(WHAT, &format!("/object_info/{}", percent_encode(class)), LARGE).await?;
        let mut document = answer.json()?;
        let Some(classes) = document.as_object_mut() else {
            return Err(answer.malformed("not an object"));
        };
        let raw = classes.swap_remove(class).filter(Value::is_object);
        Ok(raw.map(|raw| (Definition::read(class, raw), answer.body.len() as u64)))
    }
}

impl Definitions {
    /// The definition of a class; `None` when the box lacks it.
    pub fn class(&self, name: &str) -> Option<&Definition> {
        self.known.get(name)
    }

    /// Those that the box has.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Definition)> {
        self.known.iter().map(|(class, definition)| (class.as_str(), definition))
    }

    /// The classes that the box lacks, of those that were asked for.
    pub fn missing(&self) -> &BTreeSet<String> {
        &self.missing
    }
}

impl Definition {
    /// What is said about an input; `None` for names that are not listed, as dynamic inputs are not.
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.get(name)
    }

    fn read(class: &str, raw: Value) -> Self {
        let mut inputs = BTreeMap::new();
        for section in ["required", "optional"] {
            let listed = raw.get("input").and_then(|input| input.get(section)).and_then(Value::as_object);
            for (name, spec) in listed.into_iter().flatten() {
                let mut input = Input::read(spec);
                input.required = section == "required";
                input.is_upload |= SILENT_UPLOADS.contains(&(class, name));
                inputs.insert(name.clone(), input);
            }
        }
        Self { output_node: raw.get("output_node").is_some_and(is_truthy), raw, inputs }
    }
}

impl Input {
    /// Reads `[type]` or `[type, options]`.
    fn read(spec: &Value) -> Self {
        let options = spec.get(1).and_then(Value::as_object);
        let is_upload = options.is_some_and(|options| {
            options.iter().any(|(key, value)| (key == "upload" || key.ends_with("_upload")) && is_truthy(value))
        });
        let lazy = options.and_then(|options| options.get("lazy")).is_some_and(is_truthy);
        Self { is_upload, lazy, required: false }
    }
}

/// As Python sees it.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn recorded_definitions_are_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/traces/comfyui-0.3.75-pypi/object_info.json");
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let definition = |class: &str| Definition::read(class, document[class].clone());
        let image = definition("LoadImage");
        assert_eq!(image.input("image"), Some(&Input { is_upload: true, lazy: false, required: true }));
        assert_eq!(definition("SaveImage").input("images"), Some(&Input { required: true, ..Input::default() }));
        let ends = |class: &str| definition(class).output_node;
        assert!(ends("SaveImage") && ends("PreviewImage") && ends("PreviewAny"));
        assert!(!ends("LoadImage") && !ends("ImageInvert"));
    }

    fn input(class: &str, spec: Value) -> Input {
        let raw = json!({"input": {"required": {"video": spec}}, "output_node": false});
        Definition::read(class, raw).input("video").copied().unwrap_or_default()
    }

    #[test]
    fn uploads_are_recognised_however_they_are_said() {
        for spec in [
            json!([["a.png"], {"image_upload": true}]),
            json!([["a.flac"], {"audio_upload": true}]),
            json!(["COMBO", {"options": [], "video_upload": true}]),
            json!([[], {"file_upload": true, "upload": null}]),
            json!([[], {"upload": "image"}]),
        ] {
            assert!(input("Any", spec.clone()).is_upload, "{spec}");
        }
        assert!(input("VHS_LoadVideo", json!([["a.mp4"]])).is_upload);
        for spec in [json!([["a.mp4"]]), json!(["STRING", {"image_upload": false}]), json!(null), json!("STRING")] {
            assert!(!input("Any", spec.clone()).is_upload, "{spec}");
        }
    }

    #[test]
    fn nulls_and_absences_mean_no() {
        let definition =
            Definition::read("A", json!({"output_node": null, "input": {"optional": {"a": ["INT", {"lazy": true}]}}}));
        assert!(!definition.output_node);
        assert_eq!(definition.input("a"), Some(&Input { is_upload: false, lazy: true, required: false }));
        assert_eq!(definition.input("b"), None);
        assert!(!Definition::read("A", json!({"input": 3})).output_node);
        assert!(Definition::read("A", json!({"output_node": true})).output_node);
    }
}
