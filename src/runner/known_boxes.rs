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

/// About how much memory is spent on one box, and on all.
const MAX_BYTES: usize = 12 << 20;
const MAX_BYTES_OF_ALL: usize = 48 << 20;

/// Which start of which ComfyUI. The way there belongs to it, since a box could show another's mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StartedComfyUi {
    pub(super) ssh_connection: String,
    pub(super) port: u16,
    pub(super) mark: ServerMark,
}

/// What is known of a box by now.
#[derive(Debug, Clone, Default)]
pub(super) struct Learned {
    /// Its ComfyUI, if that has been marked since its start.
    pub(super) started: Option<StartedComfyUi>,
    pub(super) definitions: NodeDefinitions,
    /// Whether some of the definitions are from earlier, and may have changed.
    pub(super) from_before: bool,
}

impl Learned {
    /// What is left when nothing from earlier will do.
    pub(super) fn anew(self) -> Self {
        Self { started: self.started, ..Self::default() }
    }
}

/// The definitions by start, the last used last.
#[derive(Debug, Default)]
pub(super) struct KnownBoxes(Mutex<IndexMap<StartedComfyUi, NodeDefinitions>>);

impl KnownBoxes {
    /// What is remembered; no definitions, for a ComfyUI that is new.
    pub(super) fn of(&self, started: StartedComfyUi) -> Learned {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let definitions = known.shift_remove(&started);
        if let Some(definitions) = &definitions {
            known.insert(started.clone(), definitions.clone());
        }
        let from_before = definitions.is_some();
        Learned { started: Some(started), definitions: definitions.unwrap_or_default(), from_before }
    }

    /// Remembers definitions in place of what was remembered of the same classes. Where that would be too much, it stays
    /// with what was remembered.
    pub(super) fn remember(&self, started: StartedComfyUi, definitions: &NodeDefinitions) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.get(&started).cloned().unwrap_or_default();
        all.extend(definitions.clone());
        if all.len() > MAX_CLASSES || all.bytes() > MAX_BYTES {
            return;
        }
        known.shift_remove(&started);
        known.insert(started, all);
        while known.len() > MAX_BOXES || known.values().map(NodeDefinitions::bytes).sum::<usize>() > MAX_BYTES_OF_ALL {
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

    /// A class with an input of so many choices; each takes about a hundred bytes.
    fn definitions(class: &str, choices: usize) -> NodeDefinitions {
        let choices: Vec<String> = (0..choices).map(|n| n.to_string()).collect();
        NodeDefinitions::read(&json!({class: {"input": {"required": {"a": [choices]}}}}))
    }

    fn remembered(known: &KnownBoxes, started: &StartedComfyUi) -> usize {
        known.of(started.clone()).definitions.len()
    }

    #[test]
    fn a_few_boxes_are_remembered() {
        let (known, first) = (KnownBoxes::default(), started(0));
        assert_eq!(remembered(&known, &first), 0);
        known.remember(first.clone(), &definitions("A", 1));
        known.remember(first.clone(), &definitions("B", 1));
        let both = known.of(first.clone()).definitions;
        assert!(both.class("A").is_some() && both.class("B").is_some());
        let restarted = StartedComfyUi { mark: ServerMark::fresh(), ..first.clone() };
        assert_eq!(remembered(&known, &restarted), 0);
        for n in 1..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
            assert_eq!(remembered(&known, &first), 2, "used last");
        }
        for n in 0..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
        }
        assert_eq!(remembered(&known, &first), 0);
    }

    #[test]
    fn what_is_too_much_is_not_remembered_and_takes_nothing_away() {
        let (known, first) = (KnownBoxes::default(), started(0));
        known.remember(first.clone(), &definitions("A", 1));
        known.remember(first.clone(), &definitions("B", MAX_BYTES / 90));
        assert_eq!(remembered(&known, &first), 1);
        // One box with much in it is remembered, and not all of many such.
        let heavy: Vec<_> = (1..10).map(started).collect();
        for started in &heavy {
            known.remember(started.clone(), &definitions("A", MAX_BYTES / 128));
        }
        assert_eq!(remembered(&known, &heavy[8]), 1);
        assert_eq!((remembered(&known, &first), remembered(&known, &heavy[0])), (0, 0));
    }

    #[test]
    fn all_that_is_kept_of_a_definition_counts() {
        let many = vec!["IMAGE"; MAX_BYTES / 64];
        let long = "x".repeat(MAX_BYTES);
        for raw in [
            json!({"output": many}),
            json!({"display_name": long}),
            json!({"input": {"required": {&long: ["INT"]}}}),
            json!({"input": {"required": {"a": ["INT", {&long: 1}]}}}),
            json!({"input": {"optional": {"a": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": long}]}]}}}),
        ] {
            let (known, first) = (KnownBoxes::default(), started(0));
            known.remember(first.clone(), &NodeDefinitions::read(&json!({"A": raw})));
            assert_eq!(remembered(&known, &first), 0);
        }
    }
}
