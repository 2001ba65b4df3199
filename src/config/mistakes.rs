//! What is wrong with a setting, in a sentence that names the key and where it stands.

use std::path::Path;

use figment::{Error, error::Kind};

use super::{ENV_PREFIX, tokens};

/// The first of figment's errors as `configuration key server.bind: … (in config.toml)`; `file` is the one that was read.
pub(super) fn sentence(error: Error, file: &Path) -> String {
    let Some(first) = error.into_iter().next() else {
        return "the configuration can't be read".into();
    };
    let source = first.metadata.as_ref().map(|metadata| {
        let is_variable = metadata.name.contains("environment variable");
        if is_variable { format!(" (from {})", variable(&first.path)) } else { format!(" (in {})", file.display()) }
    });
    let key = match first.path.as_slice() {
        [] => "configuration".to_owned(),
        path => format!("configuration key {}", path.join(".")),
    };
    let kind = match (&first.kind, first.path.last()) {
        // Not repeated: figment would show the value.
        (_, Some(key)) if key == tokens::KEY => "must be a text in quotes".to_owned(),
        (Kind::UnknownField(_, expected), _) => format!("unknown field, expected one of {}", expected.join(", ")),
        (Kind::UnknownVariant(value, expected), _) => {
            format!("unknown variant {value}, expected one of {}", expected.join(", "))
        }
        (kind, _) => without_picture(&kind.to_string()),
    };
    format!("{key}: {kind}{}", source.unwrap_or_default())
}

/// The environment variable that is about a key: it can stand for a section, or for a list whose entry is wrong.
fn variable(path: &[String]) -> String {
    let wanted = format!("{ENV_PREFIX}{}", path.join("__").to_uppercase());
    let belongs = |name: &String| {
        let name = name.to_uppercase();
        let below =
            |longer: &str, shorter: &str| longer.strip_prefix(shorter).is_some_and(|rest| rest.starts_with("__"));
        name == wanted || below(&name, &wanted) || below(&wanted, &name)
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(belongs).min().unwrap_or(wanted)
}

/// A message of the TOML parser on one line, without the lines that point into the file.
fn without_picture(text: &str) -> String {
    let is_picture = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_picture(line)).collect::<Vec<_>>().join(": ")
}
