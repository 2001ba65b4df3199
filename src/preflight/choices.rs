//! Whether a value is among choices, looked up rather than searched for: boxes have as many choices as they like, and
//! workflows as many nodes that name one.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::python;
use crate::workflow::InputDefinition;

/// A value for Python's `==`: equal for values that are equal, and for some more whose difference is too fine to say.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Null,
    Text(&'a str),
    /// The bits of a float; `True` equals 1.
    Number(u64),
    /// A list or an object.
    Several,
}

impl<'a> Key<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::String(text) => Self::Text(text),
            Value::Array(_) | Value::Object(_) => Self::Several,
            Value::Bool(_) | Value::Number(_) => {
                let number = python::float(value).as_f64().unwrap_or_default();
                // There are two zeros.
                Self::Number(if number == 0.0 { 0 } else { number.to_bits() })
            }
        }
    }
}

/// The lists that have been looked at.
#[derive(Debug, Default)]
pub(super) struct Lists<'a>(HashMap<*const Vec<Value>, HashSet<Key<'a>>>);

impl<'a> Lists<'a> {
    /// Whether a value is among an input's choices. Of numbers that no float tells apart, and of lists and objects, any
    /// will do.
    pub(super) fn has(&mut self, input: &'a InputDefinition, value: &Value) -> bool {
        let list = &input.choices;
        let choices = self.0.entry(Arc::as_ptr(list)).or_insert_with(|| list.iter().map(Key::of).collect());
        let choices: &HashSet<Key<'_>> = choices;
        choices.contains(&Key::of(value))
    }
}

/// Choices as people read them, but for lists and objects.
pub(super) fn in_words(choices: &[Value]) -> impl Iterator<Item = Cow<'_, str>> {
    choices.iter().filter_map(|choice| match choice {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        Value::Number(number) => Some(Cow::Borrowed(number.as_str())),
        Value::Bool(_) | Value::Null => Some(Cow::Owned(choice.to_string())),
        Value::Array(_) | Value::Object(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_equal_as_in_python() {
        for (a, b) in [
            (json!(1), json!(1.0)),
            (json!(0), json!(-0.0)),
            (json!(true), json!(1)),
            (json!("a"), json!("a")),
            (json!(null), json!(null)),
        ] {
            assert_eq!(Key::of(&a), Key::of(&b), "{a} {b}");
        }
        for (a, b) in [
            (json!("1"), json!(1)),
            (json!(false), json!(null)),
            (json!("a"), json!("A")),
            (json!(1), json!(2)),
            (json!([1]), json!(1)),
        ] {
            assert_ne!(Key::of(&a), Key::of(&b), "{a} {b}");
        }
    }
}
