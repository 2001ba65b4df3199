//! For the fuzzer: state files, damaged or forged.

use super::format::{parse, render};

/// What can be read can be written, and is the same when it is read again.
pub(crate) fn state_file(input: &[u8]) {
    let Ok(parsed) = parse(input) else { return };
    let write = |state| serde_json::to_vec(state).unwrap_or_default();
    let states: Vec<_> = parsed.workflows.iter().map(|state| (state.id.as_str(), write(state))).collect();
    let written = render(states.iter().map(|(id, state)| (*id, state.as_slice())));
    let again = parse(&written);
    assert!(again.is_ok_and(|again| again.workflows == parsed.workflows && again.broken.is_empty()));
}
