//! How long something that may pass is tried again.

use std::time::{Duration, Instant};

/// The first pause between two tries; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest such pause. Short enough that a box that is back is noticed well within half a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One spell of trouble: since when, and how long the next pause is.
#[derive(Debug)]
pub(super) struct Patience {
    since: Option<Instant>,
    next: Duration,
}

impl Patience {
    /// The trouble begins with the first try.
    pub(super) fn new() -> Self {
        Self { since: None, next: FIRST_PAUSE }
    }

    /// How long the trouble has lasted.
    pub(super) fn lasted(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until the next try is due; the first is due at once. `false` when the trouble has lasted for `limit`.
    /// `announce` is told how long the wait will be.
    pub(super) async fn wait(&mut self, limit: Duration, announce: impl FnOnce(Duration)) -> bool {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            return true;
        }
        self.pause_announced(limit, announce).await
    }

    /// As [`wait`](Self::wait), but there is a pause before the first try too.
    ///
    /// Pauses grow, with jitter, so that many workflows do not come back at once.
    pub(super) async fn pause(&mut self, limit: Duration) -> bool {
        self.pause_announced(limit, |_| ()).await
    }

    /// As [`pause`](Self::pause); `announce` is told how long it will be.
    pub(super) async fn pause_announced(&mut self, limit: Duration, announce: impl FnOnce(Duration)) -> bool {
        let left = limit.saturating_sub(self.lasted());
        if left.is_zero() {
            return false;
        }
        self.since.get_or_insert_with(Instant::now);
        let jitter = f64::from(uuid::Uuid::new_v4().as_fields().1) / f64::from(u16::MAX);
        // The last try comes when the time is up, not long after.
        let pause = self.next.mul_f64(0.5 + 0.5 * jitter).min(left);
        announce(pause);
        tokio::time::sleep(pause).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}
