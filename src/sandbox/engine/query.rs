//! The query string of a request, as aiohttp reads it.
//!
//! Used by the routes. `+` and `%20` are spaces, the first value of a name counts, broken escapes stay as they are.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use indexmap::IndexMap;

/// Names and values, in the order they came.
pub(super) struct Parameters(IndexMap<String, String>);

impl Parameters {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn parse(query: &str) -> Self {
        let mut values = IndexMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decode(name)).or_insert_with(|| decode(value));
        }
        Self(values)
    }
}

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, escape(tail)) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some((byte, tail))) => {
                bytes.push(byte);
                rest = tail;
            }
            (other, _) => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Two hexadecimal digits.
fn escape(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_at_checked(2)?;
    let mut byte = [0];
    hex::decode_to_slice(digits, &mut byte).ok()?;
    Some((byte[0], rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded() {
        let query =
            Parameters::parse("filename=a%20b%25c%26d+%C3%BC.png&subfolder=&type=temp&type=input&bad=%zz%2&flag");
        assert_eq!(query.get("filename"), Some("a b%c&d ü.png"));
        assert_eq!(query.get("subfolder"), Some(""));
        assert_eq!(query.get("type"), Some("temp"));
        assert_eq!(query.get("bad"), Some("%zz%2"));
        assert_eq!((query.get("flag"), query.get("other")), (Some(""), None));
    }
}
