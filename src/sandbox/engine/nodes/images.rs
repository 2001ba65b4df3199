//! Nodes that make or change pictures.
//!
//! Used by [`Class::run`](super::Class::run). The work goes to blocking threads; sizes are checked before memory is
//! taken, and too big ones fail the way a full GPU does.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageReader, Rgb, RgbImage};
use sha2::{Digest, Sha256};

use super::{Data, Failure, Images, Inputs, MAX_PIXELS, Product};
use crate::sandbox::engine::execute::Step;

/// Larger input files are refused.
const MAX_FILE: u64 = 256 << 20;

pub(super) async fn load(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let name = inputs.text("image")?;
    let path = step.folders().annotated(name).ok_or_else(|| unidentified(Path::new(name)))?;
    step.blocking(move || {
        let bytes = read(&path).map_err(|error| Failure::io(&error, &path))?;
        let (picture, mask) = decode(bytes).ok_or_else(|| unidentified(&path))?;
        let outputs = vec![Data::Images(Arc::new(vec![picture])), Data::Mask(Arc::new(vec![mask]))];
        Ok(Product { outputs, ui: None })
    })
    .await
}

/// SHA-256 of a file, which decides whether a cached picture is still good.
pub(super) fn hash(path: &Path) -> std::io::Result<String> {
    Ok(hex::encode(Sha256::digest(read(path)?)))
}

pub(super) async fn empty(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let (width, height) = (size(&inputs, "width")?, size(&inputs, "height")?);
    let (count, color) = (inputs.int("batch_size")?, inputs.int("color")?);
    afford(width, height, count)?;
    let [_, red, green, blue] = u32::try_from(color).unwrap_or(0).to_be_bytes();
    step.blocking(move || {
        let picture = RgbImage::from_pixel(width, height, Rgb([red, green, blue]));
        Ok(Product::of_images((0..count).map(|_| picture.clone()).collect()))
    })
    .await
}

pub(super) fn empty_latent(inputs: &Inputs) -> Result<Product, Failure> {
    let (width, height) = (size(inputs, "width")?, size(inputs, "height")?);
    let count = usize::try_from(inputs.int("batch_size")?).unwrap_or(usize::MAX);
    Ok(Product { outputs: vec![Data::Latent { width, height, count }], ui: None })
}

pub(super) async fn invert(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let images = inputs.images("image")?;
    map(step, images, |mut image| {
        imageops::invert(&mut image);
        image
    })
    .await
}

pub(super) async fn scale(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let images = inputs.images("image")?;
    let filter = match inputs.text("upscale_method")? {
        "nearest-exact" => FilterType::Nearest,
        "bicubic" => FilterType::CatmullRom,
        "lanczos" => FilterType::Lanczos3,
        _ => FilterType::Triangle,
    };
    let crop = inputs.text("crop")? == "center";
    let (width, height) = (size(&inputs, "width")?, size(&inputs, "height")?);
    let Some(first) = images.first() else { return Ok(Product::of_images(vec![])) };
    // Zero means: keep the proportions; twice zero: keep the size.
    let (width, height) = match (width, height) {
        (0, 0) => first.dimensions(),
        (0, height) => (proportional(first.width(), height, first.height()), height),
        (width, 0) => (width, proportional(first.height(), width, first.width())),
        both => both,
    };
    afford(width, height, images.len() as u64)?;
    map(step, images, move |image| {
        let image = if crop { crop_to(&image, width, height) } else { image };
        imageops::resize(&image, width, height, filter)
    })
    .await
}

pub(super) async fn batch(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let (first, second) = (inputs.images("image1")?, inputs.images("image2")?);
    let (width, height) = first.first().map_or((1, 1), RgbImage::dimensions);
    afford(width, height, (first.len() + second.len()) as u64)?;
    step.blocking(move || {
        let mut images = first.to_vec();
        images.extend(second.iter().map(|image| {
            if image.dimensions() == (width, height) {
                image.clone()
            } else {
                imageops::resize(image, width, height, FilterType::Triangle)
            }
        }));
        Ok(Product::of_images(images))
    })
    .await
}

/// Pictures of one colour each, all different.
pub(super) async fn many(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let (count, size, seed) = (inputs.int("count")?, size(&inputs, "size")?, inputs.int("seed")?);
    afford(size, size, count)?;
    step.blocking(move || {
        let picture = |index| RgbImage::from_pixel(size, size, Rgb(color(seed, index)));
        Ok(Product::of_images((0..count).map(picture).collect()))
    })
    .await
}

/// A well mixed number from two others (the finaliser of SplitMix64).
pub(super) fn mix(seed: u64, index: u64) -> u64 {
    let mut bits = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

fn color(seed: u64, index: u64) -> [u8; 3] {
    let [red, green, blue, ..] = mix(seed, index).to_le_bytes();
    [red, green, blue]
}

async fn map(
    step: &Step<'_>,
    images: Images,
    change: impl Fn(RgbImage) -> RgbImage + Send + 'static,
) -> Result<Product, Failure> {
    step.blocking(move || Ok(Product::of_images(images.iter().cloned().map(change).collect()))).await
}

fn size(inputs: &Inputs, name: &str) -> Result<u32, Failure> {
    Ok(u32::try_from(inputs.int(name)?).unwrap_or(u32::MAX))
}

fn proportional(length: u32, other: u32, by: u32) -> u32 {
    let scaled = u64::from(length) * u64::from(other) / u64::from(by.max(1));
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}

/// The middle part with the proportions of `width` to `height`.
fn crop_to(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    let new_width = old_width.min(proportional(old_height, width, height));
    let new_height = old_height.min(proportional(old_width, height, width));
    let (x, y) = ((old_width - new_width) / 2, (old_height - new_height) / 2);
    imageops::crop_imm(image, x, y, new_width, new_height).to_image()
}

fn afford(width: u32, height: u32, count: u64) -> Result<(), Failure> {
    let pixels = u64::from(width).saturating_mul(u64::from(height)).saturating_mul(count);
    if pixels > MAX_PIXELS {
        return Err(Failure::out_of_memory("Allocation on device 0 would exceed allowed memory. (out of memory)"));
    }
    Ok(())
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read(path)
}

/// The picture and its mask, which is white where the picture is transparent.
fn decode(bytes: Vec<u8>) -> Option<(RgbImage, GrayImage)> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let picture = reader.decode().ok()?;
    let mask = if picture.color().has_alpha() {
        let rgba = picture.to_rgba8();
        GrayImage::from_fn(rgba.width(), rgba.height(), |x, y| {
            let [.., alpha] = rgba.get_pixel(x, y).0;
            image::Luma([255 - alpha])
        })
    } else {
        // As in ComfyUI: no alpha, a mask of 64 by 64.
        GrayImage::new(64, 64)
    };
    Some((DynamicImage::into_rgb8(picture), mask))
}

/// What Pillow says about an empty or broken file.
fn unidentified(path: &Path) -> Failure {
    Failure::exception("PIL.UnidentifiedImageError", format!("cannot identify image file '{}'", path.display()))
}
