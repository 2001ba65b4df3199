//! What is asked for, and what must come out: graphs whose pictures nobody else makes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

/// The base name of every input picture: on purpose the same.
const PICTURE: &str = "photo.png";

/// One workflow to be run, perhaps more than once.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Names its folder on the box, its graph and its request.
    pub(crate) tag: String,
    pub(crate) kind: Kind,
    pub(crate) graph: Value,
    /// Its input picture, if it has one.
    pub(crate) input: Option<RgbImage>,
    pub(crate) expected: Vec<Expected>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Inverts an input picture.
    Invert,
    /// Takes steps, then saves one picture.
    Steps,
    /// Saves pictures early, late and in several folders, and a text.
    Several,
    /// Shows a preview and saves nothing.
    Preview,
    /// Saves one picture, then fails in a node.
    Failing,
}

/// A picture that must come out.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Folder and beginning of the name, `w00001/main`; `None` for a preview, whose name is drawn.
    pub(crate) prefix: Option<String>,
    pub(crate) picture: RgbImage,
}

impl Case {
    /// The `number`th case.
    pub(crate) fn draw(number: u32, rng: &mut fastrand::Rng) -> Self {
        let kind = match rng.u32(0..20) {
            0..7 => Kind::Invert,
            7..12 => Kind::Steps,
            12..16 => Kind::Several,
            16..18 => Kind::Preview,
            _ => Kind::Failing,
        };
        let tag = format!("w{number:05}");
        let colors = [color(number, 0), color(number, 1), color(number, 2)];
        let steps = json!({
            "class_type": "RigSlowSteps",
            "inputs": {"image": ["1", 0], "steps": rng.u32(1..8), "step_ms": rng.u32(5..150), "nonce": number},
        });
        let (graph, input, expected) = match kind {
            Kind::Invert => {
                let picture = noise(rng);
                let mut inverted = picture.clone();
                image::imageops::invert(&mut inverted);
                (inverting(&tag), Some(picture), vec![Expected::saved(&tag, "main", inverted)])
            }
            Kind::Steps => {
                let graph = json!({"1": empty(colors[0]), "2": steps, "3": save("2", &tag, "main")});
                (graph, None, vec![Expected::plain(&tag, "main", colors[0])])
            }
            Kind::Several => several(&tag, colors, steps),
            Kind::Preview => {
                let preview = json!({"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}});
                let expected = Expected { prefix: None, picture: plain(colors[0]) };
                (json!({"1": empty(colors[0]), "2": steps, "3": preview}), None, vec![expected])
            }
            Kind::Failing => {
                let fail = json!({"class_type": "RigFail", "inputs": {"image": ["2", 0], "message": tag}});
                let (before, never) = (save("1", &tag, "main"), save("4", &tag, "never"));
                let graph = json!({"1": empty(colors[0]), "2": steps, "3": before, "4": fail, "5": never});
                (graph, None, vec![])
            }
        };
        Self { tag, kind, graph, input, expected }
    }

    /// Writes graph and picture below `folder`; returns the paths.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<(PathBuf, Vec<PathBuf>)> {
        let folder = folder.join(&self.tag);
        fs::create_dir_all(&folder)?;
        let file = folder.join("workflow.json");
        fs::write(&file, self.graph.to_string())?;
        let mut pictures = Vec::new();
        if let Some(picture) = &self.input {
            let path = folder.join(PICTURE);
            picture.save(&path).map_err(io::Error::other)?;
            pictures.push(path);
        }
        Ok((file, pictures))
    }

    /// The text that must be among the results, if one must.
    pub(crate) fn text(&self) -> Option<String> {
        (self.kind == Kind::Several).then(|| format!("a caption, ünï {}", self.tag))
    }
}

impl Expected {
    fn saved(tag: &str, name: &str, picture: RgbImage) -> Self {
        Self { prefix: Some(format!("{tag}/{name}_")), picture }
    }

    fn plain(tag: &str, name: &str, color: u32) -> Self {
        Self::saved(tag, name, plain(color))
    }

    /// Whether an output with this place and these pixels is it.
    pub(crate) fn is(&self, place: &str, picture: &RgbImage) -> bool {
        self.prefix.as_ref().is_none_or(|prefix| place.starts_with(prefix)) && self.picture == *picture
    }
}

fn inverting(tag: &str) -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": PICTURE}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": save("2", tag, "main"),
    })
}

fn several(tag: &str, [a, b, c]: [u32; 3], steps: Value) -> (Value, Option<RgbImage>, Vec<Expected>) {
    let graph = json!({
        "1": empty(a), "2": steps, "3": save("2", tag, "main"), "4": save("1", tag, "early"),
        "5": empty(b), "6": empty(c),
        "7": {"class_type": "ImageBatch", "inputs": {"image1": ["5", 0], "image2": ["6", 0]}},
        "8": save("7", tag, "deep/er/batch"),
        "9": {"class_type": "RigText", "inputs": {"text": format!("a caption, ünï {tag}")}},
    });
    let places = [("main", a), ("early", a), ("deep/er/batch", b), ("deep/er/batch", c)];
    (graph, None, places.map(|(name, color)| Expected::plain(tag, name, color)).into())
}

fn empty(color: u32) -> Value {
    json!({"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}})
}

fn save(from: &str, tag: &str, name: &str) -> Value {
    json!({"class_type": "SaveImage", "inputs": {"images": [from, 0], "filename_prefix": format!("{tag}/{name}")}})
}

fn plain(color: u32) -> RgbImage {
    let [_, red, green, blue] = color.to_be_bytes();
    RgbImage::from_pixel(16, 16, Rgb([red, green, blue]))
}

/// A color that no other case has: the factor is odd, so nothing repeats before 2^24.
fn color(number: u32, index: u32) -> u32 {
    (number * 3 + index).wrapping_mul(0x9E_3779) & 0xFF_FFFF
}

/// A picture that does not compress, of up to some hundred kilobytes.
fn noise(rng: &mut fastrand::Rng) -> RgbImage {
    let (width, height) = (rng.u32(16..400), rng.u32(16..400));
    RgbImage::from_fn(width, height, |_, _| Rgb(rng.u32(..).to_le_bytes().first_chunk().copied().unwrap_or_default()))
}
