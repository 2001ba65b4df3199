//! What is known of boxes' node definitions, for as long as their ComfyUI stays up.
//!
//! Asking costs the box: its ComfyUI looks through model folders for the answer, and sends nothing to its sockets
//! meanwhile. Lists of choices change while it runs, so what is remembered serves only as long as nothing is found wrong
//! with it; then the box is asked anew.

use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;

use crate::workflow::{NodeDefinitions, ServerMark};

/// As many boxes are remembered, the ones last used.
const MAX_BOXES: usize = 16;

/// Classes that are remembered of one box; a workflow has a few dozen.
const MAX_CLASSES: usize = 500;

/// Choices and the like that are remembered of one box, counted one by one.
const MAX_WEIGHT: usize = 100_000;

/// Which start of which ComfyUI. The way there belongs to it, since a box could show another's mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StartedComfyUi {
    pub(super) ssh_connection: String,
    pub(super) port: u16,
    pub(super) mark: ServerMark,
}

/// What is known of a box before it is asked.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Its ComfyUI, if that has been marked since its start.
    pub(super) started: Option<StartedComfyUi>,
    pub(super) definitions: NodeDefinitions,
}

/// The definitions by start, the last used last.
#[derive(Debug, Default)]
pub(super) struct KnownBoxes(Mutex<IndexMap<StartedComfyUi, NodeDefinitions>>);

impl KnownBoxes {
    /// What is remembered; nothing, for a ComfyUI that is new.
    pub(super) fn of(&self, started: &StartedComfyUi) -> NodeDefinitions {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(definitions) = known.shift_remove(started) else { return NodeDefinitions::default() };
        known.insert(started.clone(), definitions.clone());
        definitions
    }

    /// Remembers definitions in place of what was remembered of the same classes.
    pub(super) fn remember(&self, started: StartedComfyUi, definitions: &NodeDefinitions) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.shift_remove(&started).unwrap_or_default();
        all.extend(definitions.clone());
        if all.len() > MAX_CLASSES || all.weight() > MAX_WEIGHT {
            return;
        }
        known.insert(started, all);
        if known.len() > MAX_BOXES {
            known.shift_remove_index(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn started(n: usize) -> StartedComfyUi {
        StartedComfyUi { ssh_connection: format!("root@{n}"), port: 1, mark: ServerMark::fresh() }
    }

    fn definitions(class: &str, choices: usize) -> NodeDefinitions {
        let choices: Vec<String> = (0..choices).map(|n| n.to_string()).collect();
        NodeDefinitions::read(&json!({class: {"input": {"required": {"a": [choices]}}}}))
    }

    #[test]
    fn a_few_boxes_are_remembered_and_none_beyond_measure() {
        let (known, first) = (KnownBoxes::default(), started(0));
        assert_eq!(known.of(&first).len(), 0);
        known.remember(first.clone(), &definitions("A", 1));
        known.remember(first.clone(), &definitions("B", 1));
        assert!(known.of(&first).class("A").is_some() && known.of(&first).class("B").is_some());
        let restarted = StartedComfyUi { mark: ServerMark::fresh(), ..first.clone() };
        assert_eq!(known.of(&restarted).len(), 0);
        for n in 1..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
            assert_eq!(known.of(&first).len(), 2, "used last");
        }
        for n in 0..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
        }
        assert_eq!(known.of(&first).len(), 0);
        known.remember(first.clone(), &definitions("A", MAX_WEIGHT + 1));
        assert_eq!(known.of(&first).len(), 0);
    }
}
