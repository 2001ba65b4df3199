//! `SandboxFiles`: an output node that reports whatever a test wants to see reported.
//!
//! Used by [`Class::run`](super::Class::run). Its input is the JSON object to report as the node's ui result, so kinds
//! of custom nodes (`gifs`, `audio`, `3d`, …), hostile names and missing files need no node of their own. A file item
//! with `_text`, `_hex` or `_size` is also written, if its name stays inside its folder; these keys are not reported.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::{Failure, Inputs, Product};
use crate::sandbox::engine::Folders;
use crate::sandbox::engine::execute::Step;

const MAX_SIZE: u64 = 64 << 20;

pub(super) async fn report(step: &Step<'_>, inputs: &Inputs) -> Result<Product, Failure> {
    let text = inputs.text("report")?;
    let mut report: Value = serde_json::from_str(text)
        .map_err(|error| Failure::exception("json.decoder.JSONDecodeError", error.to_string()))?;
    let Some(kinds) = report.as_object_mut() else {
        return Err(Failure::exception("TypeError", "the report is not an object"));
    };
    let items = kinds.values_mut().filter_map(Value::as_array_mut).flatten();
    let files: Vec<_> =
        items.filter_map(Value::as_object_mut).filter_map(|item| wanted(item, step.folders())).collect();
    step.blocking(move || {
        for (path, content) in files {
            let write = || {
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                std::fs::write(&path, content)
            };
            write().map_err(|error| Failure::io(&error, &path))?;
        }
        Ok(Product { outputs: vec![], ui: Some(report) })
    })
    .await
}

/// Takes the instructions out of an item; says what to write where.
fn wanted(item: &mut Map<String, Value>, folders: &Folders) -> Option<(PathBuf, Vec<u8>)> {
    let mut take = |key: &str| item.shift_remove(key);
    let (text, hex, size) = (take("_text"), take("_hex"), take("_size"));
    let content = match (text, hex, size) {
        (Some(Value::String(text)), _, _) => text.into_bytes(),
        (_, Some(Value::String(digits)), _) => hex::decode(digits).ok()?,
        (_, _, Some(Value::Number(size))) => counting(usize::try_from(size.as_u64()?.min(MAX_SIZE)).ok()?),
        _ => return None,
    };
    let word = |key: &str, default: &'static str| item.get(key).map_or(Some(default), Value::as_str);
    let base = folders.by_type(word("type", "output")?)?;
    let relative = Path::new(word("subfolder", "")?).join(word("filename", "")?);
    let tame = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (tame && relative.file_name().is_some()).then(|| (base.join(relative), content))
}

/// So many bytes, of which no eight are like eight others: a piece in the wrong place shows.
fn counting(size: usize) -> Vec<u8> {
    let mut content: Vec<u8> = (0..size as u64 / 8 + 1).flat_map(u64::to_le_bytes).collect();
    content.truncate(size);
    content
}
