//! Foreign text made fit for a message or a line of the log.

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
}
