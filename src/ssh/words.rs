//! Splits a pasted command into words as a shell would, and refuses everything that only a shell could carry out.
//!
//! Unlike a shell it takes a line break for a space (commands get wrapped when they are copied), and the invisible
//! spaces of web pages for spaces too. A backslash at the end of a line continues it, also with spaces behind.

use super::target::{TargetError, shown};

/// Longer than any command somebody would paste.
const LONGEST: usize = 4096;

/// The words of `text`, without their quotes.
pub(super) fn split(text: &str) -> Result<Vec<String>, TargetError> {
    if text.len() > LONGEST {
        return Err(TargetError::TooLong { limit: LONGEST });
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(TargetError::ControlCharacter);
    }
    let mut splitter = Splitter { text, at: 0, word: None, words: Vec::new(), begin: 0 };
    while let Some(c) = splitter.next() {
        splitter.unquoted(c)?;
    }
    splitter.end_word();
    Ok(splitter.words)
}

struct Splitter<'a> {
    text: &'a str,
    /// Byte position of the next character.
    at: usize,
    /// The word being read; `Some("")` after an empty pair of quotes.
    word: Option<String>,
    words: Vec<String>,
    /// Where the current word begins in `text`, for messages.
    begin: usize,
}

impl Splitter<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.text[self.at..].chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
        self.begin = self.at;
    }

    fn unquoted(&mut self, c: char) -> Result<(), TargetError> {
        match c {
            c if is_space(c) => self.end_word(),
            '\'' => self.single_quoted()?,
            '"' => self.double_quoted()?,
            '\\' => {
                if !self.skip_line_end()
                    && let Some(c) = self.next()
                {
                    self.push(c);
                }
            }
            ';' | '|' | '&' | '<' | '>' | '(' | ')' | '`' | '$' => return Err(self.shell_syntax()),
            '#' if self.word.is_none() => return Err(self.shell_syntax()),
            c => self.push(c),
        }
        Ok(())
    }

    fn single_quoted(&mut self) -> Result<(), TargetError> {
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                None => return Err(TargetError::UnclosedQuote { quote: '\'' }),
                Some('\'') => return Ok(()),
                Some(c) => self.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<(), TargetError> {
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                None => return Err(TargetError::UnclosedQuote { quote: '"' }),
                Some('"') => return Ok(()),
                Some('$' | '`') => return Err(self.shell_syntax()),
                Some('\\') => match self.next() {
                    None => return Err(TargetError::UnclosedQuote { quote: '"' }),
                    Some('\n') => {}
                    Some(c @ ('"' | '\\' | '$' | '`')) => self.push(c),
                    Some(c) => {
                        self.push('\\');
                        self.push(c);
                    }
                },
                Some(c) => self.push(c),
            }
        }
    }

    /// After a backslash: skips to the next line if nothing but space is left on this one.
    fn skip_line_end(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let line = rest.find('\n').unwrap_or(rest.len());
        if !rest[..line].chars().all(is_space) {
            return false;
        }
        self.at += (line + 1).min(rest.len());
        true
    }

    fn shell_syntax(&self) -> TargetError {
        let word = self.text[self.begin..].trim_start_matches(is_space);
        TargetError::ShellSyntax { token: shown(word.split(is_space).next().unwrap_or_default()) }
    }
}

/// White space, and the characters of web pages that look like nothing.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_unquoted() {
        for (text, expected) in [
            ("", &[][..]),
            (" \t\n ", &[]),
            ("ssh host", &["ssh", "host"]),
            ("ssh\u{a0}-p\u{200b}22\u{feff} host", &["ssh", "-p", "22", "host"]),
            ("ssh -p 22 \\\n  host", &["ssh", "-p", "22", "host"]),
            ("ssh -p 22 \\  \r\n  host", &["ssh", "-p", "22", "host"]),
            ("ssh host \\", &["ssh", "host"]),
            ("ssh ho\\\nst", &["ssh", "host"]),
            ("-i 'my key' -i \"your key\" -i our\\ key", &["-i", "my key", "-i", "your key", "-i", "our key"]),
            ("a'b'\"c\"", &["abc"]),
            ("'' \"\"", &["", ""]),
            ("\"a\\\"b\\\\c\\d\"", &["a\"b\\c\\d"]),
            ("a#b", &["a#b"]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn shell_syntax_is_refused_with_its_word() {
        for (text, token) in [
            ("ssh host; ls", "host;"),
            ("ssh host && ls", "&&"),
            ("ssh host|cat", "host|cat"),
            ("ssh $(host) x", "$(host)"),
            ("ssh \"$HOST\" x", "\"$HOST\""),
            ("ssh `host`", "`host`"),
            ("ssh host > out", ">"),
            ("ssh host # my box", "#"),
        ] {
            assert_eq!(split(text), Err(TargetError::ShellSyntax { token: token.to_owned() }), "{text}");
        }
    }

    #[test]
    fn unclosed_quotes_and_control_characters_are_refused() {
        assert_eq!(split("ssh 'host"), Err(TargetError::UnclosedQuote { quote: '\'' }));
        assert_eq!(split("ssh \"host\\"), Err(TargetError::UnclosedQuote { quote: '"' }));
        assert_eq!(split("ssh ho\u{1b}st"), Err(TargetError::ControlCharacter));
        assert_eq!(split(&"x".repeat(5000)), Err(TargetError::TooLong { limit: 4096 }));
    }
}
