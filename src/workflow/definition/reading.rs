//! Reading one class of `/object_info`, and no more of it than there is room for.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Map, Value};

use super::{Editor, InputDefinition, InputKind, NodeDefinition, is_truthy};
use crate::{json::bytes_of, workflow::own_classes::is_own};

/// About how much memory one definition may keep: ten lists of twenty thousand models, say, and lists that are the same
/// count once.
const MAX_BYTES: usize = 24 << 20;

/// What a definition, an input and a name take besides their texts.
const DEFINITION_BYTES: usize = 1024;
const INPUT_BYTES: usize = 512;
const NAME_BYTES: usize = 64;

/// No type is called like that. Types are compared bit by bit.
const MAX_TYPE_BYTES: usize = 1024;

/// Lists from this length on are looked for among so many before them.
const LONG: usize = 100;
const COMPARED: usize = 8;

/// How deep choices with inputs of their own may stand in one another.
const MAX_DEPTH: usize = 8;

/// Inputs of node packs that add their upload button in the browser and say nothing about it in the definition
/// (VideoHelperSuite, load_video_nodes.py and VHS.core.js).
const SILENT_UPLOADS: [(&str, &str); 3] =
    [("VHS_LoadVideo", "video"), ("VHS_LoadVideoFFmpeg", "video"), ("VHS_LoadAudioUpload", "audio")];

/// Reads a class; `None` when it would keep too much.
pub(super) fn read_class(class: &str, raw: &Value) -> Option<NodeDefinition> {
    let mut reader = Reader { left: MAX_BYTES, long_lists: Vec::new() };
    let text = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default();
    let (display_name, module) = (text("display_name"), text("python_module"));
    reader.take(DEFINITION_BYTES + class.len() + display_name.len())?;
    let mut outputs = Vec::new();
    for output in raw.get("output").and_then(Value::as_array).into_iter().flatten() {
        outputs.push(reader.type_name(output)?);
    }
    let mut inputs = reader.inputs(raw.get("input"), raw.get("input_order"), MAX_DEPTH)?;
    for input in &mut inputs {
        input.is_upload |= SILENT_UPLOADS.contains(&(class, &input.name));
    }
    Some(NodeDefinition {
        display_name: Some(display_name).filter(|name| !name.is_empty()).map(Into::into),
        is_core: !module.is_empty() && !module.starts_with("custom_nodes"),
        is_surely_core: is_own(class, module),
        is_api_node: module.starts_with("comfy_api_nodes"),
        output_node: raw.get("output_node").is_some_and(is_truthy),
        is_whole: raw.get("output_node").is_some_and(Value::is_boolean)
            && raw.get("input").is_some_and(Value::is_object)
            && raw.get("output").is_some_and(Value::is_array),
        inputs,
        outputs,
        bytes: MAX_BYTES - reader.left,
    })
}

/// Takes from what is left before it copies anything.
struct Reader {
    left: usize,
    long_lists: Vec<Arc<Vec<Value>>>,
}

impl Reader {
    fn take(&mut self, bytes: usize) -> Option<()> {
        self.left = self.left.checked_sub(bytes)?;
        Some(())
    }

    fn name(&mut self, name: &str) -> Option<String> {
        self.take(NAME_BYTES + name.len())?;
        Some(name.to_owned())
    }

    /// A type as text: lists of choices are `COMBO`, other things that are not text fit everything.
    fn type_name(&mut self, declared: &Value) -> Option<String> {
        self.name(match declared {
            Value::String(name) if name.len() <= MAX_TYPE_BYTES => name,
            Value::Array(_) => "COMBO",
            _ => "*",
        })
    }

    /// The inputs of one `input` object: required, then optional, each in the order of `input_order` where there is one.
    fn inputs(&mut self, input: Option<&Value>, order: Option<&Value>, depth: usize) -> Option<Vec<InputDefinition>> {
        let mut inputs = Vec::new();
        for section in ["required", "optional"] {
            let Some(listed) = input.and_then(|input| input.get(section)).and_then(Value::as_object) else { continue };
            let order = order.and_then(|order| order.get(section)).and_then(Value::as_array);
            let names = order.into_iter().flatten().filter_map(Value::as_str);
            let places: HashMap<&str, usize> = names.enumerate().map(|(at, name)| (name, at)).collect();
            let place = |name: &str| places.get(name).copied().unwrap_or(usize::MAX);
            let mut names: Vec<&String> = listed.keys().collect();
            names.sort_by_cached_key(|name| place(name));
            for name in names {
                inputs.push(self.input(name, section == "required", &listed[name], depth)?);
            }
        }
        Some(inputs)
    }

    fn input(&mut self, name: &str, required: bool, spec: &Value, depth: usize) -> Option<InputDefinition> {
        self.take(INPUT_BYTES)?;
        let declared = spec.get(0).unwrap_or(&Value::Null);
        let options = spec.get(1).and_then(Value::as_object);
        let offered = options.and_then(|options| options.get("options")).and_then(Value::as_array);
        let mut input = InputDefinition {
            name: self.name(name)?,
            type_name: self.type_name(declared)?,
            required,
            kind: InputKind::Socket,
            choices: Arc::default(),
            is_listed: declared.is_array(),
            is_upload: options.is_some_and(takes_upload),
            options: self.options(options)?,
        };
        input.kind = self.kind(&input, offered, depth)?;
        if matches!(input.kind, InputKind::Widget(Editor::Combo)) {
            input.choices = self.list(declared.as_array().or(offered).map_or(&[], Vec::as_slice))?;
        }
        Some(input)
    }

    /// All but the choices, which are kept by themselves.
    fn options(&mut self, options: Option<&Map<String, Value>>) -> Option<Map<String, Value>> {
        let mut kept = Map::new();
        for (key, value) in options.into_iter().flatten().filter(|(key, _)| *key != "options") {
            self.take(NAME_BYTES + key.len() + bytes_of(value))?;
            kept.insert(key.clone(), value.clone());
        }
        Some(kept)
    }

    /// Choices are kept once where many inputs have the same, such as the slots of a stack of loras.
    fn list(&mut self, choices: &[Value]) -> Option<Arc<Vec<Value>>> {
        let known = self.long_lists.iter().rev().take(COMPARED).find(|known| known.as_slice() == choices);
        if let Some(known) = known {
            return Some(Arc::clone(known));
        }
        for choice in choices {
            self.take(bytes_of(choice))?;
        }
        let list = Arc::new(choices.to_vec());
        if choices.len() >= LONG {
            self.long_lists.push(Arc::clone(&list));
        }
        Some(list)
    }

    fn kind(&mut self, input: &InputDefinition, offered: Option<&Vec<Value>>, depth: usize) -> Option<InputKind> {
        if input.flag("forceInput") {
            return Some(InputKind::Socket);
        }
        let widget_type = input.option("widgetType").and_then(Value::as_str).unwrap_or(&input.type_name);
        Some(match widget_type {
            "COMFY_AUTOGROW_V3" => InputKind::Growing,
            "COMFY_DYNAMICCOMBO_V3" => InputKind::Choice(self.choices(offered, depth)?),
            other => editor(other, input.flag("multiline")).map_or(InputKind::Socket, InputKind::Widget),
        })
    }

    /// What each key of a choice brings. Deeper than anybody nests them, nothing.
    fn choices(&mut self, offered: Option<&Vec<Value>>, depth: usize) -> Option<Vec<(String, Vec<InputDefinition>)>> {
        let mut choices = Vec::new();
        for option in offered.filter(|_| depth > 0).into_iter().flatten() {
            let Some(key) = option.get("key") else { continue };
            let key = match key {
                Value::String(key) => self.name(key)?,
                other => {
                    self.take(bytes_of(other))?;
                    other.to_string()
                }
            };
            choices.push((key, self.inputs(option.get("inputs"), None, depth - 1)?));
        }
        Some(choices)
    }
}

/// `upload`, `image_upload`, `video_upload` and the like.
fn takes_upload(options: &Map<String, Value>) -> bool {
    options.iter().any(|(key, value)| (key == "upload" || key.ends_with("_upload")) && is_truthy(value))
}

/// The editor that ComfyUI's front end has for a type; `None` for what can only be linked.
fn editor(type_name: &str, multiline: bool) -> Option<Editor> {
    Some(match type_name {
        "INT" | "FLOAT" => Editor::Number,
        "STRING" => Editor::Text { multiline },
        "BOOLEAN" => Editor::Switch,
        "COMBO" => Editor::Combo,
        "MARKDOWN" | "TEXTAREA" => Editor::Text { multiline: true },
        "CURVE" => Editor::Curve,
        "IMAGECOMPARE" => Editor::Compare,
        "LOAD_3D" | "LOAD_3D_ANIMATION" | "WEBCAM" | "AUDIO_RECORD" => Editor::Browser,
        "COLOR" | "BOUNDING_BOX" | "BOUNDINGBOX" | "RANGE" | "PAINTER" | "CHART" | "GALLERIA" => Editor::Special,
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::workflow::NodeDefinitions;
    use serde_json::json;

    #[test]
    fn recorded_definitions_are_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/traces/comfyui-0.3.75-pypi/object_info.json");
        let definitions = NodeDefinitions::parse(&std::fs::read(path).unwrap()).unwrap();
        let class = |name: &str| definitions.class(name).unwrap();
        let image = class("LoadImage").input("image").unwrap();
        assert!(image.is_upload && image.is_listed && image.required && !image.flag("lazy"));
        let images = class("SaveImage").input("images").unwrap();
        assert!(images.required && !images.is_upload && !images.is_listed);
        let ends = |name: &str| class(name).output_node;
        assert!(ends("SaveImage") && ends("PreviewImage") && ends("PreviewAny"));
        assert!(!ends("LoadImage") && !ends("ImageInvert"));
    }

    fn read(class: &str, raw: &Value) -> NodeDefinition {
        read_class(class, raw).unwrap()
    }

    fn is_upload(class: &str, spec: Value) -> bool {
        let raw = json!({"input": {"required": {"video": spec}}, "output_node": false});
        read(class, &raw).input("video").unwrap().is_upload
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
            assert!(is_upload("Any", spec.clone()), "{spec}");
        }
        assert!(is_upload("VHS_LoadVideo", json!([["a.mp4"]])));
        for spec in [json!([["a.mp4"]]), json!(["STRING", {"image_upload": false}]), json!(null), json!("STRING")] {
            assert!(!is_upload("Any", spec.clone()), "{spec}");
        }
    }

    #[test]
    fn nulls_and_absences_mean_no() {
        let raw = json!({"output_node": null, "input": {"optional": {"a": ["INT", {"lazy": true}]}}});
        let definition = read("A", &raw);
        assert!(!definition.output_node && definition.input("b").is_none());
        let a = definition.input("a").unwrap();
        assert!(!a.is_upload && !a.required && a.flag("lazy"));
        assert!(!read("A", &json!({"input": 3})).output_node);
        assert!(read("A", &json!({"output_node": true})).output_node);
    }

    #[test]
    fn lists_of_models_are_kept_once_and_nobody_keeps_without_end() {
        let loras: Vec<String> =
            (0..20_000).map(|n| format!("styles/a name as long as they are {n}.safetensors")).collect();
        let slots: Map<String, Value> = (0..50).map(|n| (format!("lora_{n}"), json!([loras]))).collect();
        let stack = read("Stack", &json!({"input": {"required": slots}, "output": ["LORA_STACK"]}));
        assert_eq!(stack.inputs.len(), 50);
        assert!(stack.inputs.iter().all(|input| Arc::ptr_eq(&input.choices, &stack.inputs[0].choices)));
        assert!((2 << 20..4 << 20).contains(&stack.bytes), "{}", stack.bytes);
        let many = vec![json!([]); 370_000];
        let brings = json!([{"key": "a", "inputs": {"required": {"b": [many]}}}]);
        for raw in [
            json!({"output": many}),
            json!({"input": {"required": {"a": [many]}}}),
            json!({"input": {"required": {"a": ["COMBO", {"options": many}]}}}),
            json!({"input": {"required": {"a": ["INT", {"odd": many}]}}}),
            json!({"input": {"required": {"a": ["COMFY_DYNAMICCOMBO_V3", {"options": brings}]}}}),
        ] {
            assert!(read_class("A", &raw).is_none());
            let error = NodeDefinitions::parse(json!({"A": raw}).to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("it would take too much memory"), "{error}");
        }
        let (long, link) = ("A,".repeat(1000), "IMAGE,MASK");
        let odd = read("A", &json!({"input": {"required": {"a": [long], "b": [link]}}, "output": [long, link]}));
        assert_eq!((odd.inputs[0].link_type(), odd.inputs[1].link_type()), ("*", link));
        assert_eq!(odd.outputs, ["*", link]);
    }
}
