//! What Python makes of a JSON value: `int(…)` and `float(…)`, as ComfyUI calls them.

use serde_json::{Number, Value};

/// Whether Python's conversion succeeds, and with what.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Converted {
    /// It does; whole numbers keep all their digits.
    Whole(i128),
    /// It does.
    Real(f64),
    /// It raises.
    Fails,
    /// Too odd to say, such as digits of other scripts.
    Unknown,
}

impl Converted {
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "Python compares a whole number with a float as closely")]
            Self::Whole(whole) => Some(*whole as f64),
            Self::Real(real) => Some(*real),
            Self::Fails | Self::Unknown => None,
        }
    }

    /// `self < other`, where both are numbers.
    pub(super) fn is_less(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a < b,
            _ => self.as_f64().zip(other.as_f64()).is_some_and(|(a, b)| a < b),
        }
    }
}

/// A number as it stands in JSON.
pub(super) fn number(number: &Number) -> Converted {
    let text = number.to_string();
    match text.parse() {
        Ok(whole) => Converted::Whole(whole),
        Err(_) => text.parse().map_or(Converted::Unknown, Converted::Real),
    }
}

/// `int(value)`.
pub(super) fn int(value: &Value) -> Converted {
    match value {
        Value::Bool(value) => Converted::Whole(i128::from(*value)),
        Value::Number(given) => match number(given) {
            Converted::Real(real) if real.abs() < 1e30 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "that is what int() does")]
                Converted::Whole(real.trunc() as i128)
            }
            Converted::Real(_) => Converted::Unknown,
            other => other,
        },
        Value::String(text) => int_text(text),
        Value::Null | Value::Array(_) | Value::Object(_) => Converted::Fails,
    }
}

/// `float(value)`.
pub(super) fn float(value: &Value) -> Converted {
    match value {
        Value::Bool(value) => Converted::Real(f64::from(u8::from(*value))),
        Value::Number(given) => number(given).as_f64().map_or(Converted::Unknown, Converted::Real),
        Value::String(text) => float_text(text),
        Value::Null | Value::Array(_) | Value::Object(_) => Converted::Fails,
    }
}

fn int_text(text: &str) -> Converted {
    if !text.is_ascii() {
        return Converted::Unknown;
    }
    let Some(text) = without_underscores(text.trim()) else { return Converted::Fails };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Converted::Fails;
    }
    text.parse().map_or(Converted::Unknown, Converted::Whole)
}

fn float_text(text: &str) -> Converted {
    if !text.is_ascii() {
        return Converted::Unknown;
    }
    let Some(text) = without_underscores(text.trim()) else { return Converted::Fails };
    // Rust takes the same forms as Python, `inf`, `nan` and `1.` among them.
    text.parse().map_or(Converted::Fails, Converted::Real)
}

/// Python allows a single `_` between digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let between = |at: usize| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    let fine = bytes.iter().enumerate().all(|(at, byte)| *byte != b'_' || between(at));
    fine.then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_are_what_python_makes_of_them() {
        for (value, expected) in [
            (json!(7), Converted::Whole(7)),
            (json!(-1.9), Converted::Whole(-1)),
            (json!(18_446_744_073_709_551_615_u64), Converted::Whole(18_446_744_073_709_551_615)),
            (json!(true), Converted::Whole(1)),
            (json!(" +1_000 "), Converted::Whole(1000)),
            (json!("1__0"), Converted::Fails),
            (json!("_1"), Converted::Fails),
            (json!("1.5"), Converted::Fails),
            (json!("1e3"), Converted::Fails),
            (json!(""), Converted::Fails),
            (json!("-"), Converted::Fails),
            (json!(null), Converted::Fails),
            (json!([1]), Converted::Fails),
            (json!({}), Converted::Fails),
            (json!("٣"), Converted::Unknown),
        ] {
            assert_eq!(int(&value), expected, "{value}");
        }
    }

    #[test]
    fn real_numbers_are_what_python_makes_of_them() {
        for (value, expected) in [
            (json!(1), Converted::Real(1.0)),
            (json!("1e3"), Converted::Real(1000.0)),
            (json!(" .5"), Converted::Real(0.5)),
            (json!("5."), Converted::Real(5.0)),
            (json!("-Infinity"), Converted::Real(f64::NEG_INFINITY)),
            (json!(false), Converted::Real(0.0)),
            (json!("1,5"), Converted::Fails),
            (json!("0x10"), Converted::Fails),
            (json!(null), Converted::Fails),
        ] {
            assert_eq!(float(&value), expected, "{value}");
        }
        assert!(matches!(float(&json!("nan")), Converted::Real(real) if real.is_nan()));
    }
}
