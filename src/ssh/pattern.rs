//! Wildcards as OpenSSH has them in `Host` lines, known_hosts and `Include`: `*` for any text, `?` for one character.

/// Whether `pattern` covers the whole of `text`. Linear in memory, and never slower than pattern times text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, which then swallows one character more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t + 1));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, next)) => {
                    (p, t) = (after_star, next);
                    retry = Some((after_star, next + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether one of `patterns` covers `text` and no negated one (`!pattern`) does.
pub(super) fn list_matches<'a>(patterns: impl IntoIterator<Item = &'a str>, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if matches(negated, text) => return false,
            Some(_) => {}
            None => found |= matches(pattern, text),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_whole_texts() {
        for (pattern, text, expected) in [
            ("gpu", "gpu", true),
            ("gpu", "gpu2", false),
            ("*", "", true),
            ("?", "", false),
            ("gpu-?", "gpu-3", true),
            ("*.vast.ai", "ssh4.vast.ai", true),
            ("*.vast.ai", "vast.ai", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("[*]:22??", "[box]:2222", true),
            ("**", "anything", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }

    #[test]
    fn a_negated_pattern_wins_wherever_it_stands() {
        assert!(list_matches(["*", "!bad"], "good"));
        assert!(!list_matches(["*", "!bad"], "bad"));
        assert!(!list_matches(["!bad", "*"], "bad"));
        assert!(!list_matches(["!bad"], "good"), "a negation alone matches nothing");
    }
}
