//! JSON as Python's `json.dumps` writes it, and small helpers on values.
//!
//! Used by everything in the engine that answers or sends. Differences from `serde_json` a client can see: spaces after
//! `:` and `,`, everything beyond ASCII escaped, and bare `NaN` and `Infinity` where a test asks for them.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value};

/// Becomes a bare `NaN` in the text.
pub(super) const NAN: &str = "\u{1}NaN";
/// Becomes a bare `Infinity` in the text.
pub(super) const INFINITY: &str = "\u{1}Infinity";

pub(super) type Object = Map<String, Value>;

/// The text of `value`.
pub(super) fn dumps(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, Python);
    // Writing a value into memory cannot fail; an empty text would make every test complain.
    if value.serialize(&mut serializer).is_err() {
        text.clear();
    }
    let text = String::from_utf8(text).unwrap_or_default();
    if text.contains("\"\\u0001") {
        text.replace("\"\\u0001NaN\"", "NaN").replace("\"\\u0001Infinity\"", "Infinity")
    } else {
        text
    }
}

/// Python's `str()` of a value, near enough for messages.
pub(super) fn python_str(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => python_repr(other),
    }
}

/// Python's `repr()` of a value.
pub(super) fn python_repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.contains('\'') && !text.contains('"') => format!("\"{text}\""),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        Value::Array(items) => format!("[{}]", items.iter().map(python_repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let items: Vec<_> = map.iter().map(|(key, value)| format!("'{key}': {}", python_repr(value))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks_like_python() {
        let value = json!({"a": [1, 2.5, null, true], "ü\n😀": {}, "n": NAN, "i": [INFINITY]});
        assert_eq!(
            dumps(&value),
            r#"{"a": [1, 2.5, null, true], "\u00fc\n\ud83d\ude00": {}, "n": NaN, "i": [Infinity]}"#
        );
        assert_eq!(python_repr(&json!(["a", 1, null, {"b": false}])), "['a', 1, None, {'b': False}]");
    }
}
