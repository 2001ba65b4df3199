//! Who may be connected, and who gives way when every place is taken.
//!
//! A connection on which the service waits for its client (to send a request or the rest of one, or to take its answer)
//! gives way to a new one, first of all the one that has waited longest: whoever holds thousands of connections open
//! without using them pushes out only himself. A connection whose request is being answered stays.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The places of a listener.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    idle: Arc<Idle>,
}

/// The connections that wait for their clients, by the number that they got when that began.
#[derive(Debug, Default)]
struct Idle {
    since: Mutex<Since>,
    one_more: Notify,
}

#[derive(Debug, Default)]
struct Since {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// One connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    idle: Arc<Idle>,
    number: Mutex<Option<u64>>,
    given_up: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), idle: Arc::default() }
    }

    /// A place for a new connection, which waits for its client at first. Cancel-safe.
    #[expect(clippy::expect_used, reason = "nobody closes the semaphore")]
    pub(super) async fn take(&self) -> Place {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.make_room().await;
                self.free.clone().acquire_owned().await.expect("an open semaphore")
            }
        };
        let place = Place {
            idle: self.idle.clone(),
            number: Mutex::new(None),
            given_up: CancellationToken::new(),
            _permit: permit,
        };
        place.wait_for_client();
        place
    }

    /// Until a connection has been told to give way, or a place is free without.
    async fn make_room(&self) {
        loop {
            let one_more = self.idle.one_more.notified();
            let oldest = self.idle.since().connections.pop_first();
            if let Some((_, oldest)) = oldest {
                return oldest.cancel();
            }
            tokio::select! {
                () = one_more => {}
                _ = self.free.acquire() => return,
            }
        }
    }
}

impl Place {
    /// From here on the service waits for the client.
    pub(super) fn wait_for_client(&self) {
        let mut since = self.idle.since();
        since.next += 1;
        let now = since.next;
        since.connections.insert(now, self.given_up.clone());
        if let Some(before) = self.number().replace(now) {
            since.connections.remove(&before);
        }
        drop(since);
        self.idle.one_more.notify_one();
    }

    /// From here on the client waits for the service.
    pub(super) fn serve_client(&self) {
        if let Some(number) = self.number().take() {
            self.idle.since().connections.remove(&number);
        }
    }

    /// Resolves when the connection has to give way.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Resolves when the client has kept the service waiting for `longest` in one go, or for at most twice that.
    pub(super) async fn overdue(&self, longest: Duration) {
        let mut before = *self.number();
        loop {
            tokio::time::sleep(longest).await;
            let now = *self.number();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.serve_client();
    }
}

impl Idle {
    fn since(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn has_to_go(place: &Place) -> bool {
        place.given_up().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_gives_way_and_a_busy_one_never() {
        let places = Places::new(3);
        let (busy, first, second) = (places.take().await, places.take().await, places.take().await);
        busy.serve_client();
        first.serve_client();
        first.wait_for_client();
        let (taken, ()) = tokio::join!(places.take(), async {
            second.given_up().await;
            drop(second);
        });
        assert!(!has_to_go(&busy) && !has_to_go(&first) && !has_to_go(&taken));
    }

    #[tokio::test]
    async fn a_client_may_keep_the_service_waiting_for_so_long_and_the_service_a_client_for_ever() {
        let places = Places::new(2);
        let (slow, busy) = (places.take().await, places.take().await);
        busy.serve_client();
        tokio::select! {
            () = slow.overdue(Duration::from_millis(20)) => {}
            () = busy.overdue(Duration::from_millis(1)) => panic!("the service took its time, not the client"),
        }
    }

    #[tokio::test]
    async fn while_all_are_busy_a_new_one_waits_until_one_of_them_is_not() {
        let places = Places::new(1);
        let busy = places.take().await;
        busy.serve_client();
        let mut next = Box::pin(places.take());
        assert!(next.as_mut().now_or_never().is_none() && !has_to_go(&busy));
        busy.wait_for_client();
        assert!(next.as_mut().now_or_never().is_none() && has_to_go(&busy));
        drop(busy);
        next.await;
        assert!(places.idle.since().connections.is_empty());
    }
}
