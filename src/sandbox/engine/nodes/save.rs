//! Nodes that write pictures: `SaveImage` into the output folder, `PreviewImage` into the temp folder.
//!
//! Used by [`Class::run`](super::Class::run). Names follow `get_save_image_path` in ComfyUI's `folder_paths.py`: the
//! prefix may name a subfolder, and the counter is recomputed from the folder each time, so names are reused after
//! files were deleted.

use std::io::BufWriter;
use std::path::{Component, Path, PathBuf};

use chrono::{Datelike, Local, Timelike};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use serde_json::{Value, json};

use super::{Failure, Images, Inputs, Product};
use crate::sandbox::engine::execute::Step;

pub(super) async fn save(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let prefix = inputs.text("filename_prefix")?.to_owned();
    let folder = step.folders().output.clone();
    write_all(step, inputs.images("images")?, folder, prefix, "output").await
}

pub(super) async fn preview(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    // Five small letters, drawn anew for each run of the node.
    let random = uuid::Uuid::new_v4();
    let letters: String = random.as_bytes().iter().take(5).map(|byte| char::from(b'a' + byte % 26)).collect();
    let folder = step.folders().temp.clone();
    write_all(step, inputs.images("images")?, folder, format!("ComfyUI_temp_{letters}"), "temp").await
}

async fn write_all(
    step: &Step<'_>,
    images: Images,
    base: PathBuf,
    prefix: String,
    kind: &'static str,
) -> Result<Product, Failure> {
    step.blocking(move || {
        let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
        let target = Target::new(&base, &expand(&prefix, width, height))?;
        let first = target.next_counter()?;
        let mut results = vec![];
        for (index, image) in images.iter().enumerate() {
            let name = target.name.replace("%batch_num%", &index.to_string());
            let filename = format!("{name}_{:05}_.png", first + index as u64);
            let path = target.folder.join(&filename);
            write_png(image, &path).map_err(|error| Failure::io(&error, &path))?;
            results.push(json!({"filename": filename, "subfolder": target.subfolder, "type": kind}));
        }
        Ok(Product { outputs: vec![], ui: Some(json!({"images": Value::Array(results)})) })
    })
    .await
}

/// Where a prefix leads.
struct Target {
    folder: PathBuf,
    subfolder: String,
    name: String,
}

impl Target {
    fn new(base: &Path, prefix: &str) -> Result<Self, Failure> {
        let mut parts: Vec<&str> = vec![];
        for part in Path::new(prefix).components() {
            match part {
                Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
                Component::CurDir => {}
                Component::ParentDir if parts.pop().is_some() => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside(base, prefix)),
            }
        }
        let name = parts.pop().unwrap_or("").to_owned();
        let subfolder = parts.join("/");
        Ok(Self { folder: base.join(&subfolder), subfolder, name })
    }

    fn next_counter(&self) -> Result<u64, Failure> {
        let wrap = |error: std::io::Error| Failure::io(&error, &self.folder);
        std::fs::create_dir_all(&self.folder).map_err(wrap)?;
        let taken = std::fs::read_dir(&self.folder).map_err(wrap)?.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let rest = name.to_str()?.strip_prefix(&self.name)?.strip_prefix('_')?;
            rest.split('_').next()?.parse::<u64>().ok()
        });
        Ok(taken.max().unwrap_or(0).saturating_add(1))
    }
}

fn outside(base: &Path, prefix: &str) -> Failure {
    let (base, full) = (base.display(), base.join(prefix));
    Failure::exception(
        "Exception",
        format!(
            "**** ERROR: Saving image outside the output folder is not allowed.\n full_output_folder: {}\n         output_dir: {base}",
            full.display()
        ),
    )
}

fn expand(prefix: &str, width: u32, height: u32) -> String {
    if !prefix.contains('%') {
        return prefix.to_owned();
    }
    let now = Local::now();
    prefix
        .replace("%width%", &width.to_string())
        .replace("%height%", &height.to_string())
        .replace("%year%", &now.year().to_string())
        .replace("%month%", &format!("{:02}", now.month()))
        .replace("%day%", &format!("{:02}", now.day()))
        .replace("%hour%", &format!("{:02}", now.hour()))
        .replace("%minute%", &format!("{:02}", now.minute()))
        .replace("%second%", &format!("{:02}", now.second()))
}

fn write_png(image: &RgbImage, path: &Path) -> std::io::Result<()> {
    let file = BufWriter::new(std::fs::File::create(path)?);
    PngEncoder::new_with_quality(file, CompressionType::Fast, FilterType::Up)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(std::io::Error::other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_follows_the_folder() {
        let base = tempfile::tempdir().unwrap();
        let target = Target::new(base.path(), "sub/./x/../img").unwrap();
        assert_eq!((target.subfolder.as_str(), target.name.as_str()), ("sub", "img"));
        assert_eq!(target.next_counter().unwrap(), 1);
        for name in ["img_00007_.png", "img_other_00009_.png", "imgs_00011_.png", "img_x"] {
            std::fs::write(base.path().join("sub").join(name), "").unwrap();
        }
        assert_eq!(target.next_counter().unwrap(), 8);
    }

    #[test]
    fn a_prefix_cannot_leave_the_folder() {
        for prefix in ["../x", "/etc/x", "a/../../x"] {
            assert!(Target::new(Path::new("/out"), prefix).is_err(), "{prefix}");
        }
    }
}
