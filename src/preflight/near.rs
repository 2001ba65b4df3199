//! What somebody may have meant.

use std::{borrow::Cow, cmp::Reverse};

use crate::{
    text::clip_to,
    workflow::{Finding, FindingCode},
};

/// As many are suggested, and listed where none is near.
const SUGGESTED: usize = 3;
const LISTED: usize = 8;

/// Less alike than this is no suggestion; 1 is equal.
const ALIKE: f64 = 0.75;

/// Longer names are compared by their beginning, and no more than so many names for so many findings: boxes have as many as
/// they like, and comparing is work.
const COMPARED_CHARS: usize = 64;
const MAX_COMPARED: usize = 5_000;
const MAX_SEARCHES: usize = 25;

/// Longest name in a hint, in characters.
const SHOWN: usize = 80;

/// Makes hints for values that are not there, and looks for what is near to the first of them.
#[derive(Debug, Default)]
pub(super) struct Suggestions {
    searches: usize,
}

impl Suggestions {
    /// What is near to a value among `count` names, else what there is.
    pub(super) fn of<'n>(&mut self, given: &str, there: impl Iterator<Item = Cow<'n, str>>, count: usize) -> String {
        self.searches += 1;
        if self.searches > MAX_SEARCHES {
            return listed(&there.take(LISTED).collect::<Vec<_>>(), count);
        }
        let there: Vec<Cow<'n, str>> = there.take(MAX_COMPARED).collect();
        let near = near(given, &there);
        if near.is_empty() {
            return listed(&there, count);
        }
        let more = count.saturating_sub(near.len());
        let meant = format!("did you mean {}?", quoted(&near, " or "));
        if more == 0 { meant } else { format!("{meant} ({more} more there)") }
    }
}

/// Adds a hint to each finding about a class that the box lacks, where it has one that is called much the same.
pub fn suggest_classes(findings: &mut [Finding], classes: &[String]) {
    let missing = findings.iter_mut().filter(|finding| finding.code == FindingCode::MissingNodeType);
    for finding in missing.take(MAX_SEARCHES) {
        let near = near(&finding.node_type, classes);
        if !near.is_empty() {
            let meant = format!("did you mean {}?", quoted(&near, " or "));
            finding.hint = if finding.hint.is_empty() { meant } else { format!("{meant} Else {}", finding.hint) };
        }
    }
}

fn listed(there: &[Cow<'_, str>], count: usize) -> String {
    if there.is_empty() {
        return "the box has none at all".to_owned();
    }
    let shown: Vec<&str> = there.iter().take(LISTED).map(AsRef::as_ref).collect();
    let more = count.saturating_sub(shown.len());
    let and = if more == 0 { String::new() } else { format!(" and {more} more") };
    let are = if count == 1 { "is" } else { "are" };
    format!("there {are} {}{and}", quoted(&shown, ", "))
}

fn quoted(names: &[&str], between: &str) -> String {
    names.iter().map(|name| format!("\"{}\"", clip_to(name, SHOWN))).collect::<Vec<_>>().join(between)
}

/// The most alike first. Folders and case count little: models lie elsewhere on every machine.
fn near<'a>(given: &str, there: &'a [impl AsRef<str>]) -> Vec<&'a str> {
    let given = comparable(given);
    let mut alike: Vec<(u32, &str)> = there
        .iter()
        .take(MAX_COMPARED)
        .map(|name| (name.as_ref(), comparable(name.as_ref())))
        .filter(|(_, name)| can_be_alike(given.len(), name.len()))
        .map(|(name, compared)| (likeness(&given, &compared), name))
        .filter(|(likeness, _)| f64::from(*likeness) >= ALIKE * 1000.0)
        .collect();
    alike.sort_by_key(|(likeness, _)| Reverse(*likeness));
    alike.into_iter().take(SUGGESTED).map(|(_, name)| name).collect()
}

/// What is much longer needs no comparison.
fn can_be_alike(a: usize, b: usize) -> bool {
    a.min(b) * 4 >= a.max(b) * 3
}

/// In thousandths.
fn likeness(a: &str, b: &str) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it lies between 0 and 1")]
    let thousandths = |likeness: f64| (likeness * 1000.0) as u32;
    thousandths(strsim::normalized_damerau_levenshtein(a, b))
}

fn comparable(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    name.chars().take(COMPARED_CHARS).flat_map(char::to_lowercase).filter(|c| !matches!(c, ' ' | '_' | '-')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggestion(given: &str, there: &[&str]) -> String {
        Suggestions::default().of(given, there.iter().map(|name| Cow::Borrowed(*name)), there.len())
    }

    #[test]
    fn what_is_near_comes_first_and_else_what_there_is() {
        let models = ["SDXL/sd_xl_base_1.0.safetensors", "v1-5-pruned-emaonly.safetensors", "flux1-dev.safetensors"];
        assert_eq!(
            suggestion("sd_xl_base_1.0.safetensors", &models),
            "did you mean \"SDXL/sd_xl_base_1.0.safetensors\"? (2 more there)"
        );
        assert!(suggestion("flux1-Dev.safetensor", &models).starts_with("did you mean \"flux1-dev.safetensors\"?"));
        assert_eq!(suggestion("euler", &["a", "b"]), "there are \"a\", \"b\"");
        assert_eq!(suggestion("euler", &[]), "the box has none at all");
        let many = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        assert!(suggestion("euler", &many).ends_with("\"7\" and 2 more"));
    }

    #[test]
    fn no_more_names_are_taken_than_are_looked_at() {
        let (mut suggestions, mut taken) = (Suggestions::default(), 0);
        for _ in 0..2 * MAX_SEARCHES {
            let there = std::iter::repeat_with(|| {
                taken += 1;
                Cow::Borrowed("a name")
            });
            assert!(suggestions.of("euler", there, 700_000).ends_with(" and 699992 more"));
        }
        assert_eq!(taken, MAX_SEARCHES * (MAX_COMPARED + LISTED));
    }
}
