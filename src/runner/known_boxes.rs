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
        let remembered = |started: &StartedComfyUi| known.of(started.clone()).definitions;
        assert_eq!(remembered(&first).len(), 0);
        known.remember(first.clone(), &definitions("A", 1));
        known.remember(first.clone(), &definitions("B", 1));
        assert!(remembered(&first).class("A").is_some() && remembered(&first).class("B").is_some());
        let restarted = StartedComfyUi { mark: ServerMark::fresh(), ..first.clone() };
        assert_eq!(remembered(&restarted).len(), 0);
        for n in 1..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
            assert_eq!(remembered(&first).len(), 2, "used last");
        }
        for n in 0..MAX_BOXES {
            known.remember(started(n), &definitions("A", 1));
        }
        assert_eq!(remembered(&first).len(), 0);
        known.remember(first.clone(), &definitions("A", MAX_WEIGHT + 1));
        assert_eq!(remembered(&first).len(), 0);
    }
}
