//! When queue and history are looked at next, and when a prompt that they do not show counts as lost.

use std::time::{Duration, Instant};

/// How often queue and history are read while nothing calls for it.
const POLL: Duration = Duration::from_secs(3);

/// The pause between two looks after the socket said that the run is over: the history entry is written shortly after
/// the success message (main.py, prompt_worker, v0.3.64).
const SOON: Duration = Duration::from_millis(100);

/// How many looks follow each other at that pace.
const EAGER_LOOKS: u32 = 20;

/// The prompt counts as lost when it is missing this often…
const MISSING_LOOKS: u32 = 3;

/// …over at least this long.
const MISSING_FOR: Duration = Duration::from_secs(5);

/// When the next look at queue and history is due, and what the last ones found.
#[derive(Debug)]
pub(super) struct Looks {
    /// When the next look is due.
    pub(super) next: Instant,
    eager: u32,
    missing: u32,
    missing_since: Option<Instant>,
}

impl Looks {
    pub(super) fn new() -> Self {
        Self { next: Instant::now(), eager: 0, missing: 0, missing_since: None }
    }

    /// The run seems to be over: look eagerly.
    pub(super) fn soon(&mut self) {
        self.eager = EAGER_LOOKS;
        self.within(SOON);
    }

    /// Looks after `pause`, unless a look is due before.
    pub(super) fn within(&mut self, pause: Duration) {
        self.next = self.next.min(Instant::now() + pause);
    }

    /// Called when a look begins.
    pub(super) fn plan_next(&mut self) {
        let pause = if self.eager > 0 { SOON } else { POLL };
        self.eager = self.eager.saturating_sub(1);
        self.next = Instant::now() + pause;
    }

    /// The prompt was there.
    pub(super) fn found(&mut self) {
        self.missing = 0;
        self.missing_since = None;
    }

    /// Counts one more look that found nothing, and says whether the prompt is lost now.
    pub(super) fn is_lost(&mut self) -> bool {
        self.missing += 1;
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        self.missing >= MISSING_LOOKS && since.elapsed() >= MISSING_FOR
    }
}
