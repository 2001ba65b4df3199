//! Node definitions as `/object_info` gives them: which classes a box has, which of them end a graph, which inputs a class
//! has, in which order, and what may stand in them. Reads the tuples of old nodes and the objects of V3 nodes alike.

use std::{collections::HashMap, fmt, sync::Arc};

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::own_classes::is_own;
use crate::json::{Bounded, parse_lenient_as};

/// Inputs of node packs that add their upload button in the browser and say nothing about it in the definition
/// (VideoHelperSuite, load_video_nodes.py and VHS.core.js).
const SILENT_UPLOADS: [(&str, &str); 3] =
    [("VHS_LoadVideo", "video"), ("VHS_LoadVideoFFmpeg", "video"), ("VHS_LoadAudioUpload", "audio")];

/// How deep choices with inputs of their own may stand in one another.
const MAX_DEPTH: usize = 8;

/// The definitions of the classes that a box has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeDefinitions {
    classes: IndexMap<String, Arc<NodeDefinition>>,
}

impl NodeDefinitions {
    /// Parses the whole answer of `/object_info` class by class, so that its size counts only once.
    ///
    /// # Errors
    /// When it is not a JSON object, even with Python's bare `NaN` and `Infinity`, or a class takes too much memory.
    pub fn parse(object_info: &[u8]) -> Result<Self, serde_json::Error> {
        parse_lenient_as(object_info)
    }

    /// Reads the whole answer of `/object_info`. What is no definition is left out.
    pub fn read(object_info: &Value) -> Self {
        let mut definitions = Self::default();
        for (class, raw) in object_info.as_object().into_iter().flatten() {
            definitions.insert(class, raw);
        }
        definitions
    }

    /// Adds one class, as `/object_info/{class}` gives it.
    pub fn insert(&mut self, class: &str, raw: &Value) {
        if raw.is_object() {
            self.classes.insert(class.to_owned(), Arc::new(NodeDefinition::read(class, raw)));
        }
    }

    /// Takes in what another list has.
    pub fn extend(&mut self, other: Self) {
        self.classes.extend(other.classes);
    }

    /// How many classes there are.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Whether no class has an input or output, as when it is no answer of `/object_info` that was read.
    pub fn tell_nothing(&self) -> bool {
        self.classes.values().all(|class| class.inputs.is_empty() && class.outputs.is_empty())
    }

    /// How much there is to remember of it: inputs and choices, and texts by their length.
    pub fn weight(&self) -> usize {
        self.classes.values().flat_map(|class| &class.inputs).map(InputDefinition::weight).sum()
    }

    /// The definition of a class.
    pub fn class(&self, name: &str) -> Option<&NodeDefinition> {
        self.classes.get(name).map(Arc::as_ref)
    }
}

impl<'de> Deserialize<'de> for NodeDefinitions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Classes)
    }
}

struct Classes;

impl<'de> Visitor<'de> for Classes {
    type Value = NodeDefinitions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("node definitions by class, as /object_info gives them")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeDefinitions, A::Error> {
        let mut definitions = NodeDefinitions::default();
        while let Some((class, raw)) = map.next_entry::<String, Bounded>()? {
            definitions.insert(&class, &raw.0);
        }
        Ok(definitions)
    }
}

/// What `/object_info` says about one class.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeDefinition {
    /// The name that people see, if there is one.
    pub display_name: Option<String>,
    /// Whether it comes with ComfyUI itself rather than with a pack.
    pub is_core: bool,
    /// Whether that is certain, also where packs register classes in ways that leave no trace.
    pub is_surely_core: bool,
    /// Whether it asks a paid service on the web; those come with ComfyUI too.
    pub is_api_node: bool,
    /// Whether the class ends a graph: its nodes, and what they need, are what runs.
    pub output_node: bool,
    /// Whether it has all the parts by which a graph can be judged; what is not ComfyUI may leave out some.
    pub is_whole: bool,
    /// Required inputs, then optional ones, each in the author's order.
    pub inputs: Vec<InputDefinition>,
    /// The types of its outputs.
    pub outputs: Vec<String>,
}

/// What `/object_info` says about one input.
#[derive(Debug, Clone, PartialEq)]
pub struct InputDefinition {
    /// Its name.
    pub name: String,
    /// Its type, such as `IMAGE`; `COMBO` for a list of choices.
    pub type_name: String,
    /// Whether it must be given.
    pub required: bool,
    /// Whether it is a value, a link or something that grows.
    pub kind: InputKind,
    /// The choices of a `COMBO`; empty for other types and for lists that only the browser can get.
    pub choices: Vec<Value>,
    /// Whether the choices stand in the place of the type, as in all nodes before V3.
    pub is_listed: bool,
    /// Whether it takes the name of an uploaded file.
    pub is_upload: bool,
    /// Everything else that is said about it.
    options: Option<Map<String, Value>>,
}

/// What an input is to its user.
#[derive(Debug, Clone, PartialEq)]
pub enum InputKind {
    /// Takes links only.
    Socket,
    /// Has a value that the user sets; takes a link in its place.
    Widget(Editor),
    /// A choice that brings inputs of its own: for each key, those inputs.
    Choice(Vec<(String, Vec<InputDefinition>)>),
    /// Stands for any number of sockets below its name.
    Growing,
}

/// With what the user sets a value; decides what stands in for a missing one, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Editor {
    /// A number.
    Number,
    /// A text; whether it has several lines.
    Text {
        /// Whether line breaks may be typed.
        multiline: bool,
    },
    /// Yes or no.
    Switch,
    /// One of a list.
    Combo,
    /// An editor of its own, such as for colours; its value is kept as it is.
    Special,
    /// A curve, which the server gets as a typed object.
    Curve,
    /// Two pictures side by side; it holds no value worth sending.
    Compare,
    /// The browser makes the value when the prompt is sent, such as from a camera.
    Browser,
}

impl NodeDefinition {
    fn read(class: &str, raw: &Value) -> Self {
        let module = raw.get("python_module").and_then(Value::as_str).unwrap_or_default();
        let outputs = raw.get("output").and_then(Value::as_array).into_iter().flatten().map(type_name).collect();
        let mut inputs = read_inputs(raw.get("input"), raw.get("input_order"), MAX_DEPTH);
        for input in &mut inputs {
            input.is_upload |= SILENT_UPLOADS.contains(&(class, &input.name));
        }
        Self {
            display_name: raw
                .get("display_name")
                .and_then(Value::as_str)
                .filter(|name| !name.is_empty())
                .map(Into::into),
            is_core: !module.is_empty() && !module.starts_with("custom_nodes"),
            is_surely_core: is_own(class, module),
            is_api_node: module.starts_with("comfy_api_nodes"),
            output_node: raw.get("output_node").is_some_and(is_truthy),
            is_whole: raw.get("output_node").is_some_and(Value::is_boolean)
                && raw.get("input").is_some_and(Value::is_object)
                && raw.get("output").is_some_and(Value::is_array),
            inputs,
            outputs,
        }
    }

    /// Whether an input of that name may be given: one that is listed, one that a choice brings, or one that grows.
    pub fn may_have(&self, name: &str) -> bool {
        let below = |input: &InputDefinition| {
            let is_open = matches!(input.kind, InputKind::Growing | InputKind::Choice(_));
            is_open && name.strip_prefix(&input.name).is_some_and(|rest| rest.starts_with('.'))
        };
        self.inputs.iter().any(|input| input.name == name || below(input))
    }

    /// The input of that name.
    pub fn input(&self, name: &str) -> Option<&InputDefinition> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

impl InputDefinition {
    fn read(name: &str, required: bool, spec: &Value, depth: usize) -> Self {
        let declared = spec.get(0).unwrap_or(&Value::Null);
        let options = spec.get(1).and_then(Value::as_object);
        let option = |key: &str| options.and_then(|options| options.get(key));
        let choices = declared.as_array().or_else(|| option("options").and_then(Value::as_array));
        let mut input = Self {
            name: name.to_owned(),
            type_name: type_name(declared),
            required,
            kind: InputKind::Socket,
            choices: choices.cloned().unwrap_or_default(),
            is_listed: declared.is_array(),
            is_upload: options.is_some_and(takes_upload),
            options: options.cloned(),
        };
        input.kind = input.find_kind(depth);
        if !matches!(input.kind, InputKind::Widget(Editor::Combo)) {
            input.choices.clear();
        }
        input
    }

    fn weight(&self) -> usize {
        let options = self.options.iter().flatten().map(|(name, value)| name.len() / 64 + weight_of(value));
        1 + self.choices.iter().map(weight_of).sum::<usize>() + options.sum::<usize>()
    }

    fn find_kind(&self, depth: usize) -> InputKind {
        if self.flag("forceInput") {
            return InputKind::Socket;
        }
        let widget_type = self.option("widgetType").and_then(Value::as_str).unwrap_or(&self.type_name);
        match widget_type {
            "COMFY_AUTOGROW_V3" => InputKind::Growing,
            "COMFY_DYNAMICCOMBO_V3" => InputKind::Choice(read_choices(self.option("options"), depth)),
            other => editor(other, self.flag("multiline")).map_or(InputKind::Socket, InputKind::Widget),
        }
    }

    /// An option by its name in `/object_info`.
    pub fn option(&self, key: &str) -> Option<&Value> {
        self.options.as_ref()?.get(key)
    }

    /// Whether an option is set to something that JavaScript takes for true.
    pub fn flag(&self, key: &str) -> bool {
        self.option(key).is_some_and(is_truthy)
    }

    /// The types that may be linked to it: what a template allows, else its own.
    pub fn link_type(&self) -> &str {
        let allowed = self.option("template").and_then(|template| template.get("allowed_types"));
        allowed.and_then(Value::as_str).unwrap_or(&self.type_name)
    }

    /// Whether it has no socket, so that nothing can be linked to it.
    pub fn socketless(&self) -> bool {
        self.flag("socketless")
    }
}

/// The inputs of one `input` object: required, then optional, each in the order of `input_order` where there is one.
fn read_inputs(input: Option<&Value>, order: Option<&Value>, depth: usize) -> Vec<InputDefinition> {
    let mut inputs = Vec::new();
    for section in ["required", "optional"] {
        let Some(listed) = input.and_then(|input| input.get(section)).and_then(Value::as_object) else { continue };
        let order = order.and_then(|order| order.get(section)).and_then(Value::as_array);
        let names = order.into_iter().flatten().filter_map(Value::as_str);
        let places: HashMap<&str, usize> = names.enumerate().map(|(at, name)| (name, at)).collect();
        let place = |name: &str| places.get(name).copied().unwrap_or(usize::MAX);
        let mut names: Vec<&String> = listed.keys().collect();
        names.sort_by_cached_key(|name| place(name));
        inputs.extend(
            names.into_iter().map(|name| InputDefinition::read(name, section == "required", &listed[name], depth)),
        );
    }
    inputs
}

/// What each key of a choice brings. Deeper than anybody nests them, nothing.
fn read_choices(options: Option<&Value>, depth: usize) -> Vec<(String, Vec<InputDefinition>)> {
    let options = options.and_then(Value::as_array).filter(|_| depth > 0);
    let read = |option: &Value| {
        let key = option.get("key")?;
        let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        Some((key, read_inputs(option.get("inputs"), None, depth.saturating_sub(1))))
    };
    options.into_iter().flatten().filter_map(read).collect()
}

/// Counts values, long texts several times. No value here is deeper than what was parsed.
fn weight_of(value: &Value) -> usize {
    match value {
        Value::String(text) => 1 + text.len() / 64,
        Value::Array(items) => 1 + items.iter().map(weight_of).sum::<usize>(),
        Value::Object(fields) => {
            1 + fields.iter().map(|(name, value)| name.len() / 64 + weight_of(value)).sum::<usize>()
        }
        _ => 1,
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

/// A type as text: lists of choices are `COMBO`, other things that are not text fit everything.
fn type_name(declared: &Value) -> String {
    match declared {
        Value::String(name) => name.clone(),
        Value::Array(_) => "COMBO".to_owned(),
        _ => "*".to_owned(),
    }
}

/// As JavaScript sees it.
pub(crate) fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
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

    fn is_upload(class: &str, spec: Value) -> bool {
        let raw = json!({"input": {"required": {"video": spec}}, "output_node": false});
        NodeDefinition::read(class, &raw).input("video").unwrap().is_upload
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
        let definition = NodeDefinition::read("A", &raw);
        assert!(!definition.output_node && definition.input("b").is_none());
        let a = definition.input("a").unwrap();
        assert!(!a.is_upload && !a.required && a.flag("lazy"));
        assert!(!NodeDefinition::read("A", &json!({"input": 3})).output_node);
        assert!(NodeDefinition::read("A", &json!({"output_node": true})).output_node);
    }
}
