//! The node types the engine knows: what `/object_info` says about them and what they do.
//!
//! Used by validation, the cache, the routes and the worker. Stock classes have ComfyUI's names, inputs and defaults;
//! those that begin with `Rig` or `Sandbox` exist for tests and the demo. All of them work on RGB pixels in memory.

mod catalog;
mod files;
mod images;
mod save;
mod steps;

use std::path::Path;
use std::sync::Arc;

use image::{GrayImage, RgbImage};
use indexmap::IndexMap;
use serde_json::{Value, json};

use super::Folders;
use super::execute::Step;
use super::json::{INFINITY, NAN, Object, python_str};

pub(super) use catalog::find;

/// Most pixels one node may make, over all images of a batch (200 MB).
pub(super) const MAX_PIXELS: u64 = 1 << 26;

/// A node type.
pub(super) struct Class {
    pub(super) name: &'static str,
    display_name: &'static str,
    description: &'static str,
    category: &'static str,
    module: &'static str,
    /// Whether the node is a reason to run a prompt.
    pub(super) is_output: bool,
    /// Types of its outputs.
    pub(super) outputs: &'static [&'static str],
    output_tooltips: &'static [&'static str],
    hidden: &'static [(&'static str, &'static str)],
    inputs: fn(&Folders) -> Vec<Input>,
    work: Work,
}

/// One input of a node type.
pub(super) struct Input {
    pub(super) name: &'static str,
    pub(super) required: bool,
    pub(super) kind: Kind,
    /// `None` where the class gives no options at all.
    pub(super) options: Option<Value>,
}

/// The type of an input.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Int,
    Float,
    Text,
    Boolean,
    /// One of a list.
    Choice(Vec<String>),
    /// Comes from another node: `IMAGE`, `MASK`, `LATENT` or `*` for anything.
    Linked(&'static str),
}

impl Kind {
    /// As `/object_info` writes it.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Choice(choices) => json!(choices),
            other => json!(other.name()),
        }
    }

    /// As error messages write it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Int => "INT",
            Self::Float => "FLOAT",
            Self::Text => "STRING",
            Self::Boolean => "BOOLEAN",
            Self::Choice(_) => "COMBO",
            Self::Linked(name) => name,
        }
    }

    /// Whether an output of type `received` fits.
    pub(super) fn accepts(&self, received: &str) -> bool {
        self.name() == received || self.name() == "*" || received == "*"
    }
}

impl Input {
    /// `[type, options]` as in error messages, where options are never left out.
    pub(super) fn config(&self) -> Value {
        json!([self.kind.to_json(), self.options.clone().unwrap_or_else(|| json!({}))])
    }

    /// A bound of a number.
    pub(super) fn bound(&self, which: &str) -> Option<f64> {
        self.options.as_ref()?.get(which)?.as_f64()
    }

    fn info(&self) -> Value {
        match &self.options {
            Some(options) => json!([self.kind.to_json(), options]),
            None => json!([self.kind.to_json()]),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    LoadImage,
    EmptyImage,
    EmptyLatent,
    Invert,
    Scale,
    Batch,
    Save,
    Preview,
    PreviewAny,
    SlowSteps,
    Block,
    Fail,
    OutOfMemory,
    Text,
    ManyImages,
    Sampler,
    Files,
}

impl Class {
    pub(super) fn inputs(&self, folders: &Folders) -> Vec<Input> {
        (self.inputs)(folders)
    }

    /// Whether results of this class depend on the node's id.
    pub(super) fn knows_its_id(&self) -> bool {
        self.hidden.iter().any(|(_, kind)| *kind == "UNIQUE_ID")
    }

    /// What the class itself has against its inputs; a text for each failed input.
    pub(super) fn refuse(&self, inputs: &Object, folders: &Folders) -> Vec<(&'static str, String)> {
        match (self.work, inputs.get("image")) {
            (Work::LoadImage, Some(name @ Value::String(_))) => {
                let name = python_str(name);
                let exists = folders.annotated(&name).is_some_and(|path| path.exists());
                if exists { vec![] } else { vec![("image", format!("Invalid image file: {name}"))] }
            }
            _ => vec![],
        }
    }

    /// Whether the class checks this input itself, so that the stock checks are skipped.
    pub(super) fn checks_itself(&self, input: &str) -> bool {
        self.work == Work::LoadImage && input == "image"
    }

    /// What besides the inputs decides about the result: a file's content. `Err` if it cannot be had; then nothing is
    /// cached.
    pub(super) fn fingerprint(&self, inputs: &Object, folders: &Folders) -> Result<Option<String>, ()> {
        match (self.work, inputs.get("image")) {
            (Work::LoadImage, Some(Value::String(name))) => {
                let path = folders.annotated(name).ok_or(())?;
                images::hash(&path).map(Some).map_err(|_| ())
            }
            _ => Ok(None),
        }
    }

    /// The class's entry in `/object_info`.
    pub(super) fn info(&self, folders: &Folders, with_nan: bool) -> Value {
        let inputs = self.inputs(folders);
        let (mut groups, mut order) = (Object::new(), Object::new());
        for (group, required) in [("required", true), ("optional", false)] {
            let members: Vec<&Input> = inputs.iter().filter(|input| input.required == required).collect();
            if required || !members.is_empty() {
                let specs: Object = members.iter().map(|input| (input.name.to_owned(), input.info())).collect();
                groups.insert(group.into(), specs.into());
                order.insert(group.into(), members.iter().map(|input| input.name).collect());
            }
        }
        if !self.hidden.is_empty() {
            let hidden: Object = self.hidden.iter().map(|(name, kind)| ((*name).to_owned(), json!(kind))).collect();
            groups.insert("hidden".into(), hidden.into());
            order.insert("hidden".into(), self.hidden.iter().map(|(name, _)| *name).collect());
        }
        let mut info = json!({
            "input": groups,
            "input_order": order,
            "output": self.outputs,
            "output_is_list": vec![false; self.outputs.len()],
            "output_name": self.outputs,
            "name": self.name,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": self.module,
            "category": self.category,
            "output_node": self.is_output,
        });
        if let Some(map) = info.as_object_mut() {
            if !self.output_tooltips.is_empty() {
                map.insert("output_tooltips".into(), json!(self.output_tooltips));
            }
            if with_nan {
                map.insert("sandbox_bounds".into(), json!([NAN, INFINITY]));
            }
        }
        info
    }

    /// Does the work. Cancelled by dropping, except for what already went to a blocking thread.
    pub(super) async fn run(&self, step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
        match self.work {
            Work::LoadImage => images::load(step, inputs).await,
            Work::EmptyImage => images::empty(step, inputs).await,
            Work::EmptyLatent => images::empty_latent(&inputs),
            Work::Invert => images::invert(step, inputs).await,
            Work::Scale => images::scale(step, inputs).await,
            Work::Batch => images::batch(step, inputs).await,
            Work::ManyImages => images::many(step, inputs).await,
            Work::Save => save::save(step, inputs).await,
            Work::Preview => save::preview(step, inputs).await,
            Work::PreviewAny => steps::preview_any(&inputs),
            Work::SlowSteps => steps::slow_steps(step, inputs).await,
            Work::Block => steps::block(inputs).await,
            Work::Fail => steps::fail(&inputs),
            Work::OutOfMemory => steps::out_of_memory(&inputs),
            Work::Text => steps::text(&inputs),
            Work::Sampler => steps::sampler(step, inputs).await,
            Work::Files => files::report(step, &inputs).await,
        }
    }
}

/// A batch of pictures.
pub(super) type Images = Arc<Vec<RgbImage>>;

/// What flows along a link.
#[derive(Debug, Clone)]
pub(super) enum Data {
    Images(Images),
    Mask(Arc<Vec<GrayImage>>),
    Latent { width: u32, height: u32, count: usize },
    Value(Value),
}

impl Data {
    /// Python's `str()` of it, roughly: enough for error reports.
    pub(super) fn to_report(&self) -> Value {
        match self {
            Self::Value(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => value.clone(),
            Self::Value(other) => python_str(other).into(),
            Self::Images(images) => {
                let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
                format!("tensor([[[[0., 0., 0.],\n          ...]]]])  # {} x {height} x {width} x 3", images.len())
                    .into()
            }
            Self::Mask(masks) => format!("tensor([[[0., ...]]])  # {} masks", masks.len()).into(),
            Self::Latent { width, height, count } => {
                format!("{{'samples': tensor([[[[0., ...]]]])}}  # {count} x 4 x {} x {}", height / 8, width / 8).into()
            }
        }
    }
}

/// The inputs of one node, links resolved.
pub(super) struct Inputs(pub(super) IndexMap<String, Data>);

impl Inputs {
    fn images(&self, name: &str) -> Result<Images, Failure> {
        match self.0.get(name) {
            Some(Data::Images(images)) => Ok(Arc::clone(images)),
            _ => Err(self.wrong(name)),
        }
    }

    fn int(&self, name: &str) -> Result<u64, Failure> {
        self.value(name).and_then(Value::as_u64).ok_or_else(|| self.wrong(name))
    }

    fn int_or(&self, name: &str, default: u64) -> Result<u64, Failure> {
        if self.0.contains_key(name) { self.int(name) } else { Ok(default) }
    }

    fn float_or(&self, name: &str, default: f64) -> f64 {
        self.value(name).and_then(Value::as_f64).unwrap_or(default)
    }

    fn is_on(&self, name: &str, default: bool) -> bool {
        self.value(name).and_then(Value::as_bool).unwrap_or(default)
    }

    fn text(&self, name: &str) -> Result<&str, Failure> {
        self.value(name).and_then(Value::as_str).ok_or_else(|| self.wrong(name))
    }

    fn value(&self, name: &str) -> Option<&Value> {
        match self.0.get(name) {
            Some(Data::Value(value)) => Some(value),
            _ => None,
        }
    }

    fn wrong(&self, name: &str) -> Failure {
        let what = if self.0.contains_key(name) { "unexpected value for" } else { "missing 1 required argument:" };
        Failure::exception("TypeError", format!("{what} '{name}'"))
    }
}

/// What a node made.
#[derive(Debug, Default)]
pub(super) struct Product {
    pub(super) outputs: Vec<Data>,
    /// What `executed` and the history show; `None` for nodes without a ui result.
    pub(super) ui: Option<Value>,
}

impl Product {
    fn of_images(images: Vec<RgbImage>) -> Self {
        Self { outputs: vec![Data::Images(Arc::new(images))], ui: None }
    }
}

/// Why a node did not finish.
#[derive(Debug)]
pub(super) enum Failure {
    /// Somebody asked for it.
    Interrupted,
    /// The node raised an exception.
    Exception {
        /// Qualified with the module except for built-ins, as `torch.OutOfMemoryError`.
        kind: String,
        /// As ComfyUI reports it, without the newline it appends.
        message: String,
        /// What ComfyUI appends after that newline.
        tips: &'static str,
    },
}

impl Failure {
    pub(super) fn exception(kind: &str, message: impl Into<String>) -> Self {
        Self::Exception { kind: kind.into(), message: message.into(), tips: "" }
    }

    fn out_of_memory(message: impl Into<String>) -> Self {
        Self::Exception {
            kind: "torch.OutOfMemoryError".into(),
            message: message.into(),
            tips: "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have accidentally set the batch_size to a large number.",
        }
    }

    fn io(error: &std::io::Error, path: &Path) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => "FileNotFoundError",
            std::io::ErrorKind::PermissionDenied => "PermissionError",
            _ => "OSError",
        };
        Self::exception(kind, format!("{error}: '{}'", path.display()))
    }
}
