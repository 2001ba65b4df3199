//! Parsing only a part of a document, whatever the rest is.
//!
//! Queue and history carry every prompt's whole graph. The types here are read straight from the text: what is not
//! asked for is skipped without being kept, and what has another form than expected counts as absent.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::json::parse_lenient_as;

/// Parses a document, taking bare `NaN` and its like for `null` if it must.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    parse_lenient_as(text).map_err(|error| error.to_string())
}

/// What to do with an object or an array; anything else counts as absent.
pub(super) trait Parts: Sized + Default {
    /// Takes one field. It must consume the value.
    fn field<'de, A: MapAccess<'de>>(&mut self, _key: &str, map: &mut A) -> Result<(), A::Error> {
        map.next_value::<IgnoredAny>().map(drop)
    }

    /// Takes the element at `index` and says whether there was one.
    fn element<'de, A: SeqAccess<'de>>(&mut self, _index: usize, seq: &mut A) -> Result<bool, A::Error> {
        seq.next_element::<IgnoredAny>().map(|element| element.is_some())
    }
}

/// A value of which only the [`Parts`] are kept.
#[derive(Debug, Default)]
pub(super) struct Tolerant<T>(pub(super) T);

impl<'de, T: Parts> Deserialize<'de> for Tolerant<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartsVisitor(T::default())).map(Self)
    }
}

struct PartsVisitor<T>(T);

/// Answers a scalar with what has been found so far, which is nothing.
macro_rules! absent {
    ($($visit:ident: $type:ty),*) => {$(
        fn $visit<E>(self, _: $type) -> Result<T, E> {
            Ok(self.0)
        }
    )*};
}

impl<'de, T: Parts> Visitor<'de> for PartsVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    absent!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(self.0)
    }

    // A number arrives here too, as an object with one private key (serde_json's arbitrary_precision).
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T, A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.0.field(&key, &mut map)?;
        }
        Ok(self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<T, A::Error> {
        let mut index = 0;
        while self.0.element(index, &mut seq)? {
            index += 1;
        }
        Ok(self.0)
    }
}
