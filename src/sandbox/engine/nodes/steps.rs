//! Nodes that take time, fail or talk: the rig of the recordings and a sampler lookalike.
//!
//! Used by [`Class::run`](super::Class::run). Stepping nodes look for interrupts where ComfyUI's do: before each step
//! and when they report progress.

use std::time::Duration;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use super::images::mix;
use super::{Data, Failure, Images, Inputs, Product};
use crate::sandbox::engine::execute::Step;
use crate::sandbox::engine::json::{dumps, python_str};

pub(super) async fn slow_steps(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let images = inputs.images("image")?;
    let (steps, pause) = (inputs.int("steps")?, milliseconds(inputs.int("step_ms")?));
    let every = inputs.int_or("preview_every", 0)?;
    let preview = images.first();
    for done in 1..=steps {
        step.check()?;
        tokio::time::sleep(pause).await;
        let shown = preview.filter(|_| every > 0 && done % every == 0).cloned();
        step.tick(done, steps, shown).await?;
    }
    step.check()?;
    Ok(passed_on(images))
}

pub(super) async fn sampler(step: &Step<'_>, inputs: Inputs) -> Result<Product, Failure> {
    let images = inputs.images("image")?;
    let (seed, steps) = (inputs.int("seed")?, inputs.int("steps")?);
    let pause = milliseconds(inputs.int_or("step_ms", 50)?);
    let every = inputs.int_or("preview_every", 1)?;
    let noise = if inputs.is_on("add_noise", true) { inputs.float_or("denoise", 1.0) } else { 0.0 };
    for done in 1..=steps {
        step.check()?;
        tokio::time::sleep(pause).await;
        let wanted = images.first().filter(|_| every > 0 && done % every == 0);
        let shown = wanted.map(|image| noisy(image, seed, noise * remaining(done, steps)));
        step.tick(done, steps, shown).await?;
    }
    Ok(passed_on(images))
}

/// Cannot be interrupted.
pub(super) async fn block(inputs: Inputs) -> Result<Product, Failure> {
    tokio::time::sleep(milliseconds(inputs.int("ms")?)).await;
    Ok(passed_on(inputs.images("image")?))
}

pub(super) fn fail(inputs: &Inputs) -> Result<Product, Failure> {
    let message = inputs.text("message").unwrap_or("rig: forced failure");
    Err(Failure::exception("RuntimeError", message))
}

pub(super) fn out_of_memory(inputs: &Inputs) -> Result<Product, Failure> {
    match inputs.text("kind")? {
        "torch" => Err(Failure::out_of_memory("Allocation on device 0 would exceed allowed memory. (out of memory)")),
        _ => Err(Failure::exception("MemoryError", "rig: forced MemoryError")),
    }
}

pub(super) fn text(inputs: &Inputs) -> Result<Product, Failure> {
    let text = inputs.text("text")?;
    Ok(Product { outputs: vec![Data::Value(text.into())], ui: Some(json!({"text": [text]})) })
}

pub(super) fn preview_any(inputs: &Inputs) -> Result<Product, Failure> {
    let shown = match inputs.0.get("source") {
        Some(Data::Value(value @ (Value::Array(_) | Value::Object(_)))) => dumps(value),
        Some(data) => python_str(&data.to_report()),
        None => "None".to_owned(),
    };
    Ok(Product { outputs: vec![], ui: Some(json!({"text": [shown]})) })
}

fn passed_on(images: Images) -> Product {
    Product { outputs: vec![Data::Images(images)], ui: None }
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Which part of the steps is still to come, from 1 to 0.
fn remaining(done: u64, steps: u64) -> f64 {
    1.0 - done as f64 / steps.max(1) as f64
}

/// The picture under noise of this strength, from 0 to 1; at most 128 pixels wide or high.
fn noisy(image: &RgbImage, seed: u64, strength: f64) -> RgbImage {
    let (width, height) = image.dimensions();
    let shrink = width.max(height).div_ceil(128).max(1);
    let clear = 256 - (strength.clamp(0.0, 1.0) * 256.0) as u16;
    RgbImage::from_fn(width.div_ceil(shrink).max(1), height.div_ceil(shrink).max(1), |x, y| {
        let pixel = image.get_pixel_checked(x * shrink, y * shrink).map_or([0; 3], |pixel| pixel.0);
        let [red, green, blue, ..] = mix(seed, (u64::from(y) << 32) | u64::from(x)).to_le_bytes();
        let blend = |clean: u8, noise: u8| {
            let mixed = u16::from(clean) * clear + u16::from(noise) * (256 - clear);
            u8::try_from(mixed >> 8).unwrap_or(u8::MAX)
        };
        let [r, g, b] = pixel;
        Rgb([blend(r, red), blend(g, green), blend(b, blue)])
    })
}
