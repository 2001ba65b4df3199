//! Foreign text made fit for a message, a line of the log or a terminal.
//!
//! Findings, failures, warnings and answers take their texts through `message` or [`one_line`] where they are made, so
//! that nobody has to think of it who words one; what goes to a terminal goes through [`escaped`] besides.

/// Longest excerpt in a message, in characters.
const EXCERPT_CHARS: usize = 200;

/// Text on one line, without control characters, at most 200 characters.
pub(crate) fn clip(text: &str) -> String {
    clip_to(text, EXCERPT_CHARS)
}

/// Text on one line, without control characters, at most `chars` characters.
pub(crate) fn clip_to(text: &str, chars: usize) -> String {
    // Bounded before anything is collected: the text can be megabytes of base64.
    let words = text.chars().take(chars * 4).collect::<String>();
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut clipped: String = line.chars().filter(|c| !c.is_control() && !is_direction(*c)).take(chars).collect();
    if line.chars().count() > chars {
        clipped.pop();
        clipped.push('…');
    }
    clipped
}

/// Text of a message: no control characters but line breaks.
pub(crate) fn message(text: &str) -> String {
    text.split('\n').map(one_line).collect::<Vec<_>>().join("\n")
}

/// Text of a message on one line: no control characters, and a space for each line break or tab.
pub fn one_line(text: &str) -> String {
    let tame = |c| if matches!(c, '\n' | '\t' | '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().map(tame).filter(|c| !c.is_control() && !is_direction(*c)).collect()
}

/// Text for a terminal, on one line: whatever could command one, or begin a line, is written out, as in `\u{1b}`.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) { line.push(c) } else { line.extend(c.escape_unicode()) }
    }
    line
}

/// JSON for a terminal: the same document, with what could command one written out in its texts.
pub fn escaped_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        // JSON has line breaks between its parts, but none in a text; the others are all in the first plane.
        if c == '\n' || is_plain(c) { text.push(c) } else { text.push_str(&format!("\\u{:04x}", u32::from(c))) }
    }
    text
}

fn is_plain(c: char) -> bool {
    !c.is_control() && !is_direction(c) && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// Characters that let a terminal or a page show what follows in another order than it is written.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_one_short_line() {
        assert_eq!(clip("500 Internal\n\n  Server\tError"), "500 Internal Server Error");
        assert_eq!(clip("\u{1b}[2Jgone\r\n\u{202e}gnp.exe\u{0}"), "[2Jgone gnp.exe");
        let long = clip(&"ü".repeat(5000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (EXCERPT_CHARS, true));
    }

    #[test]
    fn nothing_commands_a_terminal() {
        let evil = "a  b\u{1b}[2J\r\n\u{9b}31m\t\u{202e}c\u{7f}";
        assert_eq!(message(evil), "a  b[2J\n31m c");
        assert_eq!(one_line(evil), "a  b[2J 31m c");
        assert_eq!(escaped(evil), r"a  b\u{1b}[2J\u{d}\u{a}\u{9b}31m\u{9}\u{202e}c\u{7f}");
        let document = serde_json::json!({ "ü": evil });
        let json = escaped_json(&format!("{document:#}"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap_or_default(), document);
        assert!(json.replace('\n', "").chars().all(is_plain), "{json:?}");
    }
}
