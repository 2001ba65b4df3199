//! The list of node types with their inputs, as `/object_info` of ComfyUI 0.3.75 shows them.
//!
//! Used through [`find`] and [`all`]. Names, order, defaults, bounds and tooltips are data that clients read, so they
//! match the real server's; `tests/fidelity` compares them.

use serde_json::{Value, json};

use super::{Class, Input, Kind, Work};

const IMAGE: Kind = Kind::Linked("IMAGE");
const MAX_SEED: u64 = 1 << 53;
const SAVE_HIDDEN: &[(&str, &str)] = &[("prompt", "PROMPT"), ("extra_pnginfo", "EXTRA_PNGINFO")];
const SAVE_DESCRIPTION: &str = "Saves the input images to your ComfyUI output directory.";

/// The class of this name.
pub(crate) fn find(name: &str) -> Option<&'static Class> {
    CLASSES.iter().find(|class| class.name == name)
}

impl Class {
    /// Every class.
    pub(crate) fn all() -> &'static [Self] {
        CLASSES
    }

    const fn stock(name: &'static str, display_name: &'static str, category: &'static str, work: Work) -> Self {
        Self {
            name,
            display_name,
            description: "",
            category,
            module: "nodes",
            is_output: false,
            outputs: &["IMAGE"],
            output_tooltips: &[],
            hidden: &[],
            inputs: |_| vec![],
            work,
        }
    }

    const fn rig(name: &'static str, work: Work) -> Self {
        Self { module: "custom_nodes.rig_nodes", ..Self::stock(name, name, "rig", work) }
    }

    const fn own(name: &'static str, work: Work) -> Self {
        Self { module: "custom_nodes.sandbox_nodes", ..Self::stock(name, name, "sandbox", work) }
    }
}

static CLASSES: &[Class] = &[
    Class {
        outputs: &["IMAGE", "MASK"],
        inputs: |folders| {
            let options = json!({"image_upload": true});
            vec![required("image", Kind::Choice(folders.input_files()), options)]
        },
        ..Class::stock("LoadImage", "Load Image", "image", Work::LoadImage)
    },
    Class {
        inputs: |_| {
            let size = || json!({"default": 512, "min": 1, "max": 16384, "step": 1});
            vec![
                required("width", Kind::Int, size()),
                required("height", Kind::Int, size()),
                required("batch_size", Kind::Int, json!({"default": 1, "min": 1, "max": 4096})),
                required(
                    "color",
                    Kind::Int,
                    json!({"default": 0, "min": 0, "max": 0xFF_FFFF, "step": 1, "display": "color"}),
                ),
            ]
        },
        ..Class::stock("EmptyImage", "EmptyImage", "image", Work::EmptyImage)
    },
    Class {
        description: "Create a new batch of empty latent images to be denoised via sampling.",
        outputs: &["LATENT"],
        output_tooltips: &["The empty latent image batch."],
        inputs: |_| {
            let size = |of: &str| {
                let tooltip = format!("The {of} of the latent images in pixels.");
                json!({"default": 512, "min": 16, "max": 16384, "step": 8, "tooltip": tooltip})
            };
            let batch = json!({
                "default": 1, "min": 1, "max": 4096, "tooltip": "The number of latent images in the batch."
            });
            vec![
                required("width", Kind::Int, size("width")),
                required("height", Kind::Int, size("height")),
                required("batch_size", Kind::Int, batch),
            ]
        },
        ..Class::stock("EmptyLatentImage", "Empty Latent Image", "latent", Work::EmptyLatent)
    },
    Class { inputs: |_| vec![linked("image")], ..Class::stock("ImageInvert", "Invert Image", "image", Work::Invert) },
    Class {
        inputs: |_| {
            let size = || json!({"default": 512, "min": 0, "max": 16384, "step": 1});
            vec![
                linked("image"),
                choice("upscale_method", &["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]),
                required("width", Kind::Int, size()),
                required("height", Kind::Int, size()),
                choice("crop", &["disabled", "center"]),
            ]
        },
        ..Class::stock("ImageScale", "Upscale Image", "image/upscaling", Work::Scale)
    },
    Class {
        inputs: |_| vec![linked("image1"), linked("image2")],
        ..Class::stock("ImageBatch", "Batch Images", "image", Work::Batch)
    },
    Class {
        description: SAVE_DESCRIPTION,
        is_output: true,
        outputs: &[],
        hidden: SAVE_HIDDEN,
        inputs: |_| {
            let tooltip = "The prefix for the file to save. This may include formatting information such as %date:yyyy-MM-dd% or %Empty Latent Image.width% to include values from nodes.";
            vec![
                required("images", IMAGE, json!({"tooltip": "The images to save."})),
                required("filename_prefix", Kind::Text, json!({"default": "ComfyUI", "tooltip": tooltip})),
            ]
        },
        ..Class::stock("SaveImage", "Save Image", "image", Work::Save)
    },
    Class {
        description: SAVE_DESCRIPTION,
        is_output: true,
        outputs: &[],
        hidden: SAVE_HIDDEN,
        inputs: |_| vec![linked("images")],
        ..Class::stock("PreviewImage", "Preview Image", "image", Work::Preview)
    },
    Class {
        module: "comfy_extras.nodes_preview_any",
        is_output: true,
        outputs: &[],
        inputs: |_| vec![required("source", Kind::Linked("*"), json!({}))],
        ..Class::stock("PreviewAny", "Preview as Text", "utils", Work::PreviewAny)
    },
    Class {
        hidden: &[("unique_id", "UNIQUE_ID")],
        inputs: |_| {
            vec![
                linked("image"),
                required("steps", Kind::Int, json!({"default": 20, "min": 1, "max": 100_000})),
                required("step_ms", Kind::Int, json!({"default": 100, "min": 0, "max": 600_000})),
                optional("preview_every", Kind::Int, json!({"default": 0, "min": 0, "max": 100_000})),
                nonce(),
            ]
        },
        ..Class::rig("RigSlowSteps", Work::SlowSteps)
    },
    Class {
        inputs: |_| {
            let ms = json!({"default": 3000, "min": 0, "max": 600_000});
            vec![linked("image"), required("ms", Kind::Int, ms), nonce()]
        },
        ..Class::rig("RigBlock", Work::Block)
    },
    Class {
        inputs: |_| vec![linked("image"), optional("message", Kind::Text, json!({"default": "rig: forced failure"}))],
        ..Class::rig("RigFail", Work::Fail)
    },
    Class {
        inputs: |_| vec![linked("image"), choice("kind", &["torch", "python"])],
        ..Class::rig("RigOOM", Work::OutOfMemory)
    },
    Class {
        is_output: true,
        outputs: &["STRING"],
        inputs: |_| vec![required("text", Kind::Text, json!({"default": "hello", "multiline": true}))],
        ..Class::rig("RigText", Work::Text)
    },
    Class {
        inputs: |_| {
            vec![
                required("count", Kind::Int, json!({"default": 8, "min": 1, "max": 4096})),
                required("size", Kind::Int, json!({"default": 32, "min": 8, "max": 4096})),
                required("seed", Kind::Int, json!({"default": 0, "min": 0, "max": MAX_SEED})),
            ]
        },
        ..Class::rig("RigManyImages", Work::ManyImages)
    },
    Class {
        description: "Takes steps as a sampler does: noise that clears up into the image.",
        inputs: |_| {
            vec![
                linked("image"),
                required("seed", Kind::Int, json!({"default": 0, "min": 0, "max": u64::MAX})),
                required("steps", Kind::Int, json!({"default": 20, "min": 1, "max": 10_000})),
                optional("step_ms", Kind::Int, json!({"default": 50, "min": 0, "max": 600_000})),
                optional("preview_every", Kind::Int, json!({"default": 1, "min": 0, "max": 10_000})),
                optional("denoise", Kind::Float, json!({"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})),
                optional("add_noise", Kind::Boolean, json!({"default": true})),
            ]
        },
        ..Class::own("SandboxSampler", Work::Sampler)
    },
    Class {
        description: "Reports the outputs given as JSON, and writes the files asked for.",
        is_output: true,
        outputs: &[],
        inputs: |_| vec![required("report", Kind::Text, json!({"default": "{}", "multiline": true}))],
        ..Class::own("SandboxFiles", Work::Files)
    },
];

fn linked(name: &'static str) -> Input {
    Input { name, required: true, kind: IMAGE, options: None }
}

fn choice(name: &'static str, choices: &[&str]) -> Input {
    let kind = Kind::Choice(choices.iter().map(|choice| (*choice).to_owned()).collect());
    Input { name, required: true, kind, options: None }
}

fn required(name: &'static str, kind: Kind, options: Value) -> Input {
    Input { name, required: true, kind, options: Some(options) }
}

fn optional(name: &'static str, kind: Kind, options: Value) -> Input {
    Input { name, required: false, kind, options: Some(options) }
}

/// Changes the cache key without changing the result.
fn nonce() -> Input {
    optional("nonce", Kind::Int, json!({"default": 0, "min": 0, "max": MAX_SEED}))
}
