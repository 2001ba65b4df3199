//! How large a conversion may become. A file can say a thing once and use it ten thousand times.

use serde_json::Value;

use super::ConvertError;

/// What a conversion may take in memory, about.
const MAX_BYTES: usize = 128 << 20;

/// What a value takes besides its text, about.
const VALUE_BYTES: usize = 64;

/// What is left.
pub(super) struct Room(usize);

impl Room {
    pub(super) fn new() -> Self {
        Self(MAX_BYTES)
    }

    /// Takes room for a number of values.
    pub(super) fn take_values(&mut self, count: usize) -> Result<(), ConvertError> {
        self.take(count.saturating_mul(VALUE_BYTES))
    }

    /// Takes room for a copy of a value.
    pub(super) fn take_copy(&mut self, value: &Value) -> Result<(), ConvertError> {
        self.take(size(value))
    }

    fn take(&mut self, bytes: usize) -> Result<(), ConvertError> {
        self.0 = self.0.checked_sub(bytes).ok_or(ConvertError::TooLarge)?;
        Ok(())
    }
}

/// The depth is that of the file, which its reading has bounded.
fn size(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(fields) => fields.iter().map(|(key, value)| VALUE_BYTES + key.len() + size(value)).sum(),
        }
}
