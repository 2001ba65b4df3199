//! Reading JSON that Python wrote.
//!
//! Python's `json.dumps` writes `NaN`, `Infinity` and `-Infinity` bare, which JSON forbids and ComfyUI does in
//! `/object_info`, `/history` and error messages. It also escapes half characters (lone surrogates), which stand for the
//! bytes of file names that are no UTF-8. A strict parse comes first; only if it fails are those words replaced by
//! `null`, and those halves by the replacement character.
//!
//! A value in memory takes up to a hundred times the room of its text (`[[],[],…`), so [`Bounded`] counts as it goes.

use std::{cell::Cell, fmt};

use serde::de::{Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// About how much memory one value may take with everything in it.
const MAX_BYTES: usize = 96 << 20;

/// What any value takes, in a list that has grown by doubling.
const VALUE_BYTES: usize = 128;

/// The same in a list of its own length.
const KEPT_BYTES: usize = 96;

/// What an object takes besides, and each of its fields.
const OBJECT_BYTES: usize = 384;
const FIELD_BYTES: usize = 96;

/// The key under which serde_json hands over a number (its `arbitrary_precision`).
const NUMBER_KEY: &str = "$serde_json::private::Number";

/// Parses a document, taking bare `NaN`, `Infinity` and `-Infinity` for `null`, half characters for U+FFFD and a leading
/// byte-order mark for nothing.
///
/// # Errors
/// The strict parser's error when the document is not JSON even so, or would take more than about 96 MiB of memory.
pub(crate) fn parse_lenient(text: &[u8]) -> Result<Value, serde_json::Error> {
    parse_lenient_as::<Bounded>(text).map(|bounded| bounded.0)
}

/// As [`parse_lenient`], straight into a type.
///
/// # Errors
/// As for [`parse_lenient`]; also whatever the type refuses.
pub(crate) fn parse_lenient_as<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    match serde_json::from_slice(text) {
        Err(strict) if strict.is_syntax() => {
            let replaced = replace_what_python_writes(text).ok_or(strict)?;
            serde_json::from_slice(&replaced)
        }
        other => other,
    }
}

/// What is said of what would take more.
pub(crate) const TOO_MUCH_MEMORY: &str = "it would take too much memory";

/// Any value that takes at most about so many bytes of memory, by default 96 MiB.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Bounded<const MOST: usize = MAX_BYTES>(pub(crate) Value);

impl<'de, const MOST: usize> Deserialize<'de> for Bounded<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(MOST);
        Counted(&left).deserialize(deserializer).map(Self)
    }
}

/// Reads one value and takes what it costs from what is left.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<usize>);

impl Counted<'_> {
    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.ok_or_else(|| E::custom(TOO_MUCH_MEMORY))?);
        Ok(())
    }

    fn scalar<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.take(VALUE_BYTES)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.take(text.len())?;
        self.scalar(text)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.take(VALUE_BYTES)?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.take(VALUE_BYTES)?;
        let mut fields = Map::new();
        let Some(mut key) = map.next_key::<String>()? else { return Ok(Value::Object(fields)) };
        if key == NUMBER_KEY {
            let digits: String = map.next_value()?;
            return digits.parse::<Number>().map(Value::Number).map_err(A::Error::custom);
        }
        self.take(OBJECT_BYTES)?;
        loop {
            self.take(FIELD_BYTES + key.len())?;
            let value = map.next_value_seed(self)?;
            fields.insert(key, value);
            key = match map.next_key()? {
                Some(next) => next,
                None => return Ok(Value::Object(fields)),
            };
        }
    }
}

/// About how much memory a value takes that has no room to spare. None is deeper than what was parsed.
pub(crate) fn bytes_of(value: &Value) -> usize {
    KEPT_BYTES
        + match value {
            Value::Null | Value::Bool(_) => 0,
            Value::Number(number) => number.as_str().len(),
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(bytes_of).sum(),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| FIELD_BYTES + name.len() + bytes_of(value));
                OBJECT_BYTES + fields.sum::<usize>()
            }
        }
}

/// `None` when there was nothing to replace.
fn replace_what_python_writes(text: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(text.len());
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < text.len() {
        let rest = &text[at..];
        if in_string && rest[0] == b'\\' {
            let (end, is_half) = escape(rest);
            out.extend_from_slice(if is_half { b"\\ufffd" } else { &rest[..end] });
            at += end;
            found |= is_half;
        } else if let Some(word) = WORDS.iter().find(|word| !in_string && rest.starts_with(word)) {
            out.extend_from_slice(b"null");
            at += word.len();
            found = true;
        } else {
            in_string ^= rest[0] == b'"';
            out.push(rest[0]);
            at += 1;
        }
    }
    found.then_some(out)
}

/// How long the escape is with which this begins, a pair of halves being one; and whether it is a half alone.
fn escape(text: &[u8]) -> (usize, bool) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, false),
        (Some(0xd800..=0xdfff), _) => (6, true),
        _ => (text.len().min(2), false),
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn non_finite_numbers_become_null_outside_strings_only() {
        let text = br#"{"a": NaN, "b": [-Infinity, Infinity], "NaN": "say \"NaN\" \\", "c": 18446744073709551615}"#;
        let value = parse_lenient(text).expect("valid after the replacement");
        assert_eq!(value["a"], json!(null));
        assert_eq!(value["b"], json!([null, null]));
        assert_eq!(value["NaN"], json!("say \"NaN\" \\"));
        assert_eq!(value["c"].to_string(), "18446744073709551615");
    }

    #[test]
    fn half_characters_become_the_replacement_character() {
        let text = br#"{"a\udcff.png": "\ud83d\ude00\ud83d", "b": "\\ud800\\", "c": "\udc00\ud800\udbff\udfff"}"#;
        let expected =
            json!({"a\u{fffd}.png": "\u{1f600}\u{fffd}", "b": "\\ud800\\", "c": "\u{fffd}\u{fffd}\u{10ffff}"});
        assert_eq!(parse_lenient(text).expect("valid after the replacement"), expected);
        for text in [&br#""\ud8"#[..], br#""\ud800"#, br#""\u+d80""#, br#"\ud800"#] {
            assert!(parse_lenient(text).is_err());
        }
    }

    #[test]
    fn every_kind_of_value_is_read_as_serde_json_reads_it() {
        let text =
            br#"{"a": [1, -2.50, 1e400, "x", true, null, {}, {"b": []}], "": 12345678901234567890123, "a2": "\u00e9"}"#;
        let plain: Value = serde_json::from_slice(text).expect("valid");
        assert_eq!(parse_lenient(text).expect("valid"), plain);
        assert_eq!(plain["a"][1].to_string(), "-2.50");
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused() {
        for item in ["[]", "1", "{}", "{\"\":1}", "\"\""] {
            let list = format!("[{}{item}]", format!("{item},").repeat((8 << 20) / item.len()));
            let error = parse_lenient(list.as_bytes()).expect_err("too much");
            assert!(error.to_string().starts_with("it would take too much memory"), "{item}: {error}");
        }
        // A long text is not what costs.
        assert!(parse_lenient(format!("[\"{}\"]", "x".repeat(32 << 20)).as_bytes()).is_ok());
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_rubbish_is_refused() {
        assert!(parse_lenient(b"\xef\xbb\xbf{}").is_ok());
        assert!(parse_lenient(b"{\"a\": NaNN}").is_err());
        assert!(parse_lenient(b"<html>").is_err());
    }
}
