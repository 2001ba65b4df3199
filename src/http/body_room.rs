//! Memory for large bodies: what all requests share, taken as bytes come.
//!
//! A sender that announces much and sends little takes little. Where there is no room for what has come, whoever has been
//! sending longest gives way, so that those who send slowly to hold room hold it from nobody for long.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// For so long nobody has to give way: others are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long until the next look, where nothing says when that makes sense.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What all bodies share.
pub(super) struct Room {
    limit: usize,
    bodies: Mutex<Bodies>,
    freed: Notify,
}

struct Bodies {
    taken: usize,
    next: u64,
    /// The oldest first.
    held: BTreeMap<u64, Held>,
}

struct Held {
    bytes: usize,
    since: Instant,
    is_whole: bool,
    gives_way: CancellationToken,
}

/// What one body takes, until it is dropped.
pub(super) struct Share<'r> {
    room: &'r Room,
    number: u64,
    gives_way: CancellationToken,
}

/// The body has to give way to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GivesWay;

impl Room {
    pub(super) const fn new(limit: usize) -> Self {
        let bodies = Bodies { taken: 0, next: 0, held: BTreeMap::new() };
        Self { limit, bodies: Mutex::new(bodies), freed: Notify::const_new() }
    }

    /// For a body that begins; it takes nothing yet.
    pub(super) fn enter(&self) -> Share<'_> {
        let mut bodies = self.lock();
        bodies.next += 1;
        let (number, gives_way) = (bodies.next, CancellationToken::new());
        let held = Held { bytes: 0, since: Instant::now(), is_whole: false, gives_way: gives_way.clone() };
        bodies.held.insert(number, held);
        Share { room: self, number, gives_way }
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    /// Takes so many bytes all in all, once there is room. Cancel-safe.
    pub(super) async fn hold(&self, bytes: usize) -> Result<(), GivesWay> {
        loop {
            // Before the look, so that nothing that is freed meanwhile is missed.
            let mut freed = std::pin::pin!(self.room.freed.notified());
            freed.as_mut().enable();
            let Err(look_again) = self.room.lock().hold(self.number, bytes.min(self.room.limit), self.room.limit)
            else {
                return Ok(());
            };
            tokio::select! {
                () = self.gives_way.cancelled() => return Err(GivesWay),
                () = freed => {}
                () = sleep_until(look_again) => {}
            }
        }
    }

    /// Resolves when it has to give way.
    pub(super) async fn given_up(&self) -> GivesWay {
        self.gives_way.cancelled().await;
        GivesWay
    }

    /// All has come: it will be understood in a moment, and gives way to nobody any more.
    pub(super) fn is_whole(&self) {
        if let Some(own) = self.room.lock().held.get_mut(&self.number) {
            own.is_whole = true;
        }
    }
}

impl Bodies {
    /// Or says when to look again, and lets the oldest give way if it is time.
    fn hold(&mut self, number: u64, bytes: usize, limit: usize) -> Result<(), Instant> {
        let now = Instant::now();
        let Some(own) = self.held.get_mut(&number) else { return Ok(()) };
        let more = bytes.saturating_sub(own.bytes);
        if self.taken + more <= limit {
            own.bytes += more;
            self.taken += more;
            return Ok(());
        }
        let mut others = self.held.values().filter(|held| held.bytes > 0 && !held.is_whole);
        match others.next() {
            // One at a time: who was told gives its memory back in a moment.
            Some(oldest) if oldest.gives_way.is_cancelled() => Err(now + LOOK_AGAIN),
            Some(oldest) if now.duration_since(oldest.since) >= PATIENCE => {
                oldest.gives_way.cancel();
                Err(now + LOOK_AGAIN)
            }
            Some(oldest) => Err(oldest.since + PATIENCE),
            None => Err(now + LOOK_AGAIN),
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut bodies = self.room.lock();
        if let Some(own) = bodies.held.remove(&self.number) {
            bodies.taken -= own.bytes;
        }
        drop(bodies);
        self.room.freed.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way_after_a_while_and_only_while_it_is_read() {
        let room = Room::new(100);
        let (announces, whole, slow, new) = (room.enter(), room.enter(), room.enter(), room.enter());
        whole.hold(40).await.unwrap();
        whole.is_whole();
        slow.hold(60).await.unwrap();
        assert!(new.hold(50).now_or_never().is_none(), "there is no room");
        let begun = Instant::now();
        let mut slow = Some(slow);
        let (given_way, held) = tokio::join!(
            async {
                let given_way = slow.as_ref().unwrap().given_up().await;
                slow.take();
                given_way
            },
            new.hold(50),
        );
        assert_eq!((given_way, held), (GivesWay, Ok(())));
        assert_eq!(begun.elapsed(), PATIENCE);
        assert!(announces.given_up().now_or_never().is_none() && whole.given_up().now_or_never().is_none());
        assert_eq!(room.lock().taken, 90);
        drop((announces, whole, new));
        assert_eq!(room.lock().taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_holds_and_what_is_freed_is_taken_at_once() {
        let room = Room::new(100);
        let (first, second) = (room.enter(), room.enter());
        first.hold(100).await.unwrap();
        first.is_whole();
        let begun = Instant::now();
        let (held, ()) = tokio::join!(second.hold(1000), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert_eq!((held, room.lock().taken, begun.elapsed()), (Ok(()), 100, Duration::ZERO));
    }
}
