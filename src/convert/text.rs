//! What the front end does to texts before it sends them: comments and choices in prompts, and file names that take over
//! values of other nodes or the date.

use chrono::{Datelike, NaiveDateTime, Timelike};
use serde_json::Value;

/// Removes `/* … */` and `// …`, and takes one of each `{several|texts}`, by what `choose` says for a number of them.
///
/// A backslash keeps the character after it as it is. A group that is never closed ends with the text.
pub(super) fn dynamic_prompt(text: &str, mut choose: impl FnMut(usize) -> usize) -> String {
    let text = without_comments(text);
    // What has been written so far, for each group that is open: its finished texts and the current one.
    let mut open: Vec<(Vec<String>, String)> = Vec::new();
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, open.last_mut()) {
            ('{', _) => open.push((Vec::new(), String::new())),
            ('}', Some(_)) => close(&mut open, &mut out, &mut choose),
            ('|', Some((finished, current))) => finished.push(std::mem::take(current)),
            (c, group) => {
                let current = group.map_or(&mut out, |(_, current)| current);
                if c == '\\' { current.push_str(&escaped(characters.next())) } else { current.push(c) }
            }
        }
    }
    while !open.is_empty() {
        close(&mut open, &mut out, &mut choose);
    }
    out
}

/// A backslash saves only the characters that mean something; before others it stays.
fn escaped(next: Option<char>) -> String {
    match next {
        Some(c @ ('{' | '}' | '|')) => c.to_string(),
        Some(c) => format!("\\{c}"),
        None => "\\".to_owned(),
    }
}

fn close(open: &mut Vec<(Vec<String>, String)>, out: &mut String, choose: &mut impl FnMut(usize) -> usize) {
    let Some((mut texts, last)) = open.pop() else { return };
    texts.push(last);
    let chosen = if texts.len() == 1 { 0 } else { choose(texts.len()) % texts.len() };
    let around = open.last_mut().map_or(out, |(_, current)| current);
    around.push_str(&texts.swap_remove(chosen));
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = if from.starts_with("//") {
            from.find(['\n', '\r', '\u{2028}', '\u{2029}']).or(Some(from.len()))
        } else if from.starts_with("/*") {
            from.get(2..).and_then(|body| body.find("*/")).map(|end| end + 4)
        } else {
            None
        };
        rest = match end {
            Some(end) => &from[end..],
            None => {
                out.push('/');
                &from[1..]
            }
        };
    }
    out.push_str(rest);
    out
}

/// Why a file name could not be filled in: it names the date, and the caller did not say what time it is.
#[derive(Debug, PartialEq)]
pub(super) struct TimeUnknown;

/// Fills in `%node.widget%` by what `look_up` finds, and `%date:yyyy-MM-dd%`. What is not found stays.
pub(super) fn file_name(
    text: &str,
    now: Option<NaiveDateTime>,
    look_up: impl Fn(&str, &str) -> Option<String>,
) -> Result<String, TimeUnknown> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        let Some(length) = rest[start + 1..].find('%').filter(|length| *length > 0) else {
            out.push_str(&rest[..=start]);
            rest = &rest[start + 1..];
            continue;
        };
        let name = &rest[start + 1..start + 1 + length];
        out.push_str(&rest[..start]);
        rest = &rest[start + length + 2..];
        match filled_in(name, now, &look_up)? {
            Some(value) => out.push_str(&value),
            None => out.push_str(&format!("%{name}%")),
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn filled_in(
    name: &str,
    now: Option<NaiveDateTime>,
    look_up: &impl Fn(&str, &str) -> Option<String>,
) -> Result<Option<String>, TimeUnknown> {
    let parts: Vec<&str> = name.split('.').collect();
    if let [node, widget] = parts[..] {
        let value = look_up(node, widget);
        return Ok(value.map(|value| value.replace(is_bad_in_file_names, "_")));
    }
    match name.strip_prefix("date:") {
        Some(pattern) => now.map(|now| Some(date(pattern, now))).ok_or(TimeUnknown),
        None => Ok(None),
    }
}

fn is_bad_in_file_names(c: char) -> bool {
    matches!(c, '/' | '?' | '<' | '>' | '\\' | ':' | '*' | '|' | '"' | '\u{0}'..='\u{1f}' | '\u{7f}')
}

/// A date in the front end's letters, of which one means no leading zero.
fn date(pattern: &str, now: NaiveDateTime) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(letter) = rest.chars().next() {
        let run = rest.chars().take_while(|c| *c == letter).count();
        let part = match letter {
            'd' => Some(now.day()),
            'M' => Some(now.month()),
            'h' => Some(now.hour()),
            'm' => Some(now.minute()),
            's' => Some(now.second()),
            _ => None,
        };
        let (length, words) = match (letter, run, part) {
            ('y', 4.., _) => (4, format!("{:04}", now.year())),
            ('y', 2 | 3, _) => (2, format!("{:02}", now.year().rem_euclid(100))),
            (_, 2.., Some(part)) => (2, format!("{part:02}")),
            (_, _, Some(part)) => (1, part.to_string()),
            (other, ..) => (other.len_utf8(), other.to_string()),
        };
        out.push_str(&words);
        rest = &rest[length..];
    }
    out
}

/// A value as a text box shows it.
pub(super) fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.as_i64().is_none() && float.fract() == 0.0 && float.abs() < 1e15 => {
                format!("{float:.0}")
            }
            _ => number.to_string(),
        },
        // The depth is that of the file, which its reading has bounded.
        Value::Array(items) => items.iter().map(as_text).collect::<Vec<_>>().join(","),
        Value::Object(_) => "[object Object]".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn first(text: &str) -> String {
        dynamic_prompt(text, |_| 0)
    }

    #[test]
    fn one_text_of_each_group_is_taken_and_groups_nest() {
        assert_eq!(first("a {red|blue} cat"), "a red cat");
        assert_eq!(dynamic_prompt("{a|b|{c|d}} {e}", |count| count - 1), "d e");
        assert_eq!(dynamic_prompt("{a|b}", |_| 7), "b");
    }

    #[test]
    fn a_group_that_is_never_closed_ends_with_the_text_and_other_marks_stay() {
        assert_eq!(first("a {b|c"), "a b");
        assert_eq!(first("a } b | c"), "a } b | c");
        assert_eq!(first(r"\{a\|b\} \n"), r"{a|b} \n");
        assert_eq!(first("tail \\"), "tail \\");
    }

    #[test]
    fn comments_go_to_the_end_of_their_line_or_their_mark() {
        assert_eq!(first("a // b\nc"), "a \nc");
        assert_eq!(first("a // b\r\nc"), "a \r\nc");
        assert_eq!(first("a /* b\n */c /* open"), "a c /* open");
        assert_eq!(first("https://example.com"), "https:");
        assert_eq!(first("1/2"), "1/2");
    }

    #[test]
    fn file_names_take_values_over_without_what_they_cannot_hold() {
        let look_up = |node: &str, widget: &str| (node == "K" && widget == "seed").then(|| "a/b:c".to_owned());
        let filled = |text: &str| file_name(text, None, look_up);
        assert_eq!(filled("x/%K.seed%_%K.steps%").as_deref(), Ok("x/a_b_c_%K.steps%"));
        assert_eq!(filled("100% %width% %%").as_deref(), Ok("100% %width% %%"));
        assert_eq!(filled("%date:yyyy%"), Err(TimeUnknown));
    }

    #[test]
    fn values_in_a_text_box_are_written_as_a_browser_does() {
        let shown = [json!(true), json!(8.0), json!(0.5), json!(null), json!(["an", [1, "b"]]), json!({})];
        assert_eq!(shown.map(|value| as_text(&value)), ["true", "8", "0.5", "", "an,1,b", "[object Object]"]);
    }
}
