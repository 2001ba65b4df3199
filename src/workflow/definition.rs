//! Node definitions as `/object_info` gives them: which classes a box has, which of them end a graph, which inputs a class
//! has, in which order, and what may stand in them. Reads the tuples of old nodes and the objects of V3 nodes alike.

mod reading;

use std::{fmt, sync::Arc};

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use self::reading::read_class;
use crate::json::{Bounded, TOO_MUCH_MEMORY, parse_lenient_as};

/// About how much memory the text of one class may take while it is read.
const MAX_RAW_BYTES: usize = 48 << 20;

/// About how much memory a whole list may keep.
const MAX_BYTES: usize = 256 << 20;

/// The definitions of the classes that a box has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeDefinitions {
    classes: IndexMap<String, Arc<NodeDefinition>>,
}

impl NodeDefinitions {
    /// Parses the whole answer of `/object_info` class by class, so that its size counts only once.
    ///
    /// # Errors
    /// When it is not a JSON object, even with Python's bare `NaN` and `Infinity`, or takes too much memory: about 48 MiB
    /// for one class, or 24 MiB for what is kept of it, or 256 MiB for what is kept of all.
    pub fn parse(object_info: &[u8]) -> Result<Self, serde_json::Error> {
        parse_lenient_as(object_info)
    }

    /// Reads the whole answer of `/object_info`. What is no definition, or too large for one, is left out.
    pub fn read(object_info: &Value) -> Self {
        let mut definitions = Self::default();
        for (class, raw) in object_info.as_object().into_iter().flatten().filter(|(_, raw)| raw.is_object()) {
            definitions.classes.extend(read_class(class, raw).map(|definition| (class.clone(), definition.into())));
        }
        definitions
    }

    /// Adds one class.
    pub fn insert(&mut self, class: String, definition: NodeDefinition) {
        self.classes.insert(class, definition.into());
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

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        self.classes.values().map(|class| class.bytes).sum()
    }

    /// Whether no class has an input or output, as when it is no answer of `/object_info` that was read.
    pub fn tell_nothing(&self) -> bool {
        self.classes.values().all(|class| class.inputs.is_empty() && class.outputs.is_empty())
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
        let (mut definitions, mut left) = (NodeDefinitions::default(), MAX_BYTES);
        while let Some((class, definition)) = next_class(&mut map)? {
            let Some(definition) = definition else { continue };
            left = left.checked_sub(definition.bytes).ok_or_else(|| A::Error::custom(TOO_MUCH_MEMORY))?;
            definitions.insert(class, definition);
        }
        Ok(definitions)
    }
}

/// A class and its definition, if that is one.
type ReadClass = (String, Option<NodeDefinition>);

fn next_class<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<ReadClass>, A::Error> {
    let Some((class, raw)) = map.next_entry::<String, Bounded<MAX_RAW_BYTES>>()? else { return Ok(None) };
    if !raw.0.is_object() {
        return Ok(Some((class, None)));
    }
    let definition = read_class(&class, &raw.0).ok_or_else(|| A::Error::custom(TOO_MUCH_MEMORY))?;
    Ok(Some((class, Some(definition))))
}

/// The answer of `/object_info/{class}`: the class that it tells of, if any. More than one would not be read.
#[derive(Debug)]
pub struct OneClass(pub Option<ReadClass>);

impl OneClass {
    /// Parses the answer.
    ///
    /// # Errors
    /// As for [`NodeDefinitions::parse`].
    pub fn parse(object_info: &[u8]) -> Result<Self, serde_json::Error> {
        parse_lenient_as(object_info)
    }
}

impl<'de> Deserialize<'de> for OneClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FirstClass)
    }
}

struct FirstClass;

impl<'de> Visitor<'de> for FirstClass {
    type Value = OneClass;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the definition of a class, as /object_info gives it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OneClass, A::Error> {
        let first = next_class(&mut map)?;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(OneClass(first))
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
    /// About how much memory it takes.
    pub(crate) bytes: usize,
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
    pub choices: Arc<Vec<Value>>,
    /// Whether the choices stand in the place of the type, as in all nodes before V3.
    pub is_listed: bool,
    /// Whether it takes the name of an uploaded file.
    pub is_upload: bool,
    /// Everything else that is said about it, but for `options`.
    options: Map<String, Value>,
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
    /// An option by its name in `/object_info`.
    pub fn option(&self, key: &str) -> Option<&Value> {
        self.options.get(key)
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
