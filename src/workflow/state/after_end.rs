//! The one exception to the law that a final status absorbs everything: what the user asks for after the end.

use chrono::{DateTime, Utc};

use super::{Lifecycle, WorkflowState, replace};
use crate::workflow::{event::Event, output::Output};

impl WorkflowState {
    /// Takes in what a finished workflow still takes in.
    pub(super) fn apply_after_the_end(&mut self, at: DateTime<Utc>, event: Event) -> bool {
        let changed = match event {
            Event::ReportedLater(reports) => {
                reports.into_iter().fold(false, |changed, (node, output)| self.note_output(node, output) | changed)
            }
            Event::LostHere(files) => self.note_lost(&files),
            Event::StoredLater(stored) => {
                let stored = self.note_stored(stored);
                if stored && self.lacked_only_downloads() && self.outputs.iter().all(Output::downloaded) {
                    self.end(Lifecycle::Completed, at);
                }
                stored
            }
            Event::NotStoredLater(failure) if self.lacked_only_downloads() && failure.code.is_about_downloads() => {
                replace(&mut self.lifecycle, Lifecycle::Failed(failure))
            }
            Event::NotStoredLater(failure) => {
                self.warn(format!("the missing outputs could not be fetched: {}", failure.message))
            }
            _ => false,
        };
        if changed {
            self.last_update = at;
        }
        changed
    }

    /// Whether the box had run it all, and only the way of its outputs to here failed.
    fn lacked_only_downloads(&self) -> bool {
        self.failure().is_some_and(|failure| failure.code.is_about_downloads())
            && self.completed_nodes() == self.nodes.len()
    }
}
