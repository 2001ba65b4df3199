//! What a fuzzer feeds: one function per kind of input that comes from outside, each with what must hold of it.
//!
//! `fuzz/` has a libFuzzer target for each (`cargo fuzz run ssh_string`). The tests here go through the inputs that are
//! kept in `fuzz/corpus`: what the fuzzer found worth keeping, and whatever once broke something.

/// A target's name, which is that of its folder in the corpus, and the function that takes its inputs.
pub type Target = (&'static str, fn(&[u8]));

/// Each target.
pub const TARGETS: &[Target] = &[
    ("ssh_string", crate::ssh::fuzz::ssh_string),
    ("comfy_messages", crate::comfy::fuzz::messages),
    ("comfy_answers", crate::comfy::fuzz::answers),
    ("workflow_file", crate::workflow::fuzz::workflow_file),
    ("conversion", crate::convert::fuzz::conversion),
    ("carrier", crate::convert::fuzz::carrier),
    ("preflight", crate::preflight::fuzz::look),
    ("output_name", crate::runner::fuzz::output_name),
    ("state_file", crate::store::fuzz::state_file),
];

/// Feeds one input to the target of that name.
///
/// # Panics
/// When something that must hold does not, or there is no such target.
#[expect(clippy::panic, reason = "a fuzzer looks for panics")]
pub fn feed(name: &str, input: &[u8]) {
    match TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, target)) => target(input),
        None => panic!("there is no target {name}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{collections::BTreeSet, fs, panic, path::Path};

    use super::*;

    #[test]
    fn every_target_stands_what_is_kept_for_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for entry in fs::read_dir(folder.join(name)).unwrap() {
                let (path, input) = (entry.as_ref().unwrap().path(), fs::read(entry.unwrap().path()).unwrap());
                assert!(panic::catch_unwind(|| target(&input)).is_ok(), "{name} fails on {}", path.display());
                count += 1;
            }
            assert!(count >= 20, "only {count} inputs for {name}");
        }
    }

    #[test]
    fn every_target_is_one_that_the_fuzzer_builds() {
        let manifest = include_str!("../fuzz/Cargo.toml");
        let built: BTreeSet<&str> = manifest.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
        for (name, _) in TARGETS {
            assert!(built.contains(format!("\"{name}\"").as_str()), "{name}");
        }
        assert_eq!(built.len(), TARGETS.len() + 1, "the targets and the package");
    }
}
