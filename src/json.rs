//! Reading JSON that Python wrote.
//!
//! Python's `json.dumps` writes `NaN`, `Infinity` and `-Infinity` bare, which JSON forbids and ComfyUI does in
//! `/object_info`, `/history` and error messages. A strict parse comes first; only if it fails are those
//! words replaced by `null`.

use serde_json::Value;

/// Parses a document, taking bare `NaN`, `Infinity` and `-Infinity` for `null` and a leading byte-order mark for nothing.
///
/// # Errors
/// The strict parser's error when the document is not JSON even so.
pub(crate) fn parse_lenient(text: &[u8]) -> Result<Value, serde_json::Error> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    serde_json::from_slice(text).or_else(|strict| {
        let replaced = replace_non_finite(text).ok_or(strict)?;
        serde_json::from_slice(&replaced)
    })
}

/// `None` when there was nothing to replace.
fn replace_non_finite(text: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(text.len());
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < text.len() {
        let rest = &text[at..];
        if in_string && rest[0] == b'\\' {
            let end = rest.len().min(2);
            out.extend_from_slice(&rest[..end]);
            at += end;
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
    fn a_byte_order_mark_is_skipped_and_rubbish_is_refused() {
        assert!(parse_lenient(b"\xef\xbb\xbf{}").is_ok());
        assert!(parse_lenient(b"{\"a\": NaNN}").is_err());
        assert!(parse_lenient(b"<html>").is_err());
    }
}
