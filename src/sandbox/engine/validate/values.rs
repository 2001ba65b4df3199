//! Literal values: converting them as Python's `int()`, `float()`, `str()` and `bool()` do, and checking their bounds.
//!
//! Used by [`validate`](super). The texts are Python's, because clients show them.

use serde_json::{Number, Value, json};

use super::fault;
use crate::sandbox::engine::json::{python_repr, python_str};
use crate::sandbox::engine::nodes::{Input, Kind};

/// Longer choice lists are not sent back.
const MAX_LISTED_CHOICES: usize = 20;

/// Makes the value what the input wants, as `int()`, `float()`, `str()` and `bool()` do.
pub(super) fn convert(value: &mut Value, input: &Input) -> Result<(), Value> {
    if let Some(inner) = value.as_object_mut().and_then(|map| map.get_mut("__value__")) {
        let inner = inner.take();
        *value = inner;
    }
    let converted = match input.kind {
        Kind::Int => to_int(value),
        Kind::Float => to_float(value),
        Kind::Text => Ok(python_str(value).into()),
        Kind::Boolean => Ok(is_true(value).into()),
        Kind::Choice(_) | Kind::Linked(_) => return Ok(()),
    };
    match converted {
        Ok(converted) => {
            *value = converted;
            Ok(())
        }
        Err(message) => {
            let (name, kind) = (input.name, input.kind.name());
            Err(fault(
                "invalid_input_type",
                format!("Failed to convert an input value to a {kind} value"),
                format!("{name}, {}, {message}", python_str(value)),
                json!({
                    "input_name": name,
                    "input_config": input.config(),
                    "received_value": value,
                    "exception_message": message,
                }),
            ))
        }
    }
}

fn to_int(value: &Value) -> Result<Value, String> {
    let whole = |text: &str| text.trim().replace('_', "").parse::<i128>().ok();
    match value {
        Value::Bool(on) => Ok(json!(u8::from(*on))),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(value.clone()),
        Value::Number(number) => {
            // Whole numbers beyond 64 bits keep their digits.
            if whole(&number.to_string()).is_some() {
                return Ok(value.clone());
            }
            let truncated = format!("{:.0}", number.as_f64().unwrap_or(0.0).trunc());
            Ok(whole(&truncated).map_or_else(|| value.clone(), |number| json!(number)))
        }
        Value::String(text) => match whole(text) {
            Some(number) => Ok(json!(number)),
            None => Err(format!("invalid literal for int() with base 10: {}", python_repr(value))),
        },
        _ => Err(format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            type_name(value)
        )),
    }
}

fn to_float(value: &Value) -> Result<Value, String> {
    let float = match value {
        Value::Bool(on) => f64::from(u8::from(*on)),
        Value::Number(number) => number.as_f64().unwrap_or(0.0),
        Value::String(text) => {
            let parsed = text.trim().parse().ok();
            parsed.ok_or_else(|| format!("could not convert string to float: {}", python_repr(value)))?
        }
        _ => return Err(format!("float() argument must be a string or a real number, not '{}'", type_name(value))),
    };
    Ok(Number::from_f64(float).map_or(Value::Null, Value::Number))
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// Bounds and choices.
pub(super) fn check_value(value: &Value, input: &Input) -> Option<Value> {
    let name = input.name;
    let info = |config: Value| json!({"input_name": name, "input_config": config, "received_value": value});
    if let (Some(number), Kind::Int | Kind::Float) = (value.as_f64(), &input.kind) {
        let written = |which: &str| input.options.as_ref().and_then(|options| options.get(which)).map(python_str);
        if let Some(min) = input.bound("min").filter(|min| number < *min).and_then(|_| written("min")) {
            let message = format!("Value {} smaller than min of {min}", python_str(value));
            return Some(fault("value_smaller_than_min", message, name, info(input.config())));
        }
        if let Some(max) = input.bound("max").filter(|max| number > *max).and_then(|_| written("max")) {
            let message = format!("Value {} bigger than max of {max}", python_str(value));
            return Some(fault("value_bigger_than_max", message, name, info(input.config())));
        }
    }
    let Kind::Choice(choices) = &input.kind else { return None };
    if value.as_str().is_some_and(|value| choices.iter().any(|choice| choice == value)) {
        return None;
    }
    let (listed, config) = if choices.len() > MAX_LISTED_CHOICES {
        (format!("(list of length {})", choices.len()), Value::Null)
    } else {
        (python_repr(&json!(choices)), input.config())
    };
    let details = format!("{name}: '{}' not in {listed}", python_str(value));
    Some(fault("value_not_in_list", "Value not in list", details, info(config)))
}
