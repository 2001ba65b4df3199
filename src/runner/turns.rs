//! So many at once for requests of the same name, side by side for all others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who works on which name. Names that nobody works on take no room.
#[derive(Debug)]
pub(super) struct Turns<Name> {
    at_once: usize,
    names: Mutex<HashMap<Name, Arc<Semaphore>>>,
}

/// One after the other.
impl<Name> Default for Turns<Name> {
    fn default() -> Self {
        Self::new(1)
    }
}

impl<Name> Turns<Name> {
    /// For so many workers at once on each name.
    pub(super) fn new(at_once: usize) -> Self {
        Self { at_once, names: Mutex::default() }
    }
}

impl<Name: Eq + Hash> Turns<Name> {
    /// Waits until few enough others work on `name`; the turn ends when the permit is dropped.
    #[expect(clippy::expect_used, reason = "nobody closes these semaphores")]
    pub(super) async fn take(&self, name: Name) -> OwnedSemaphorePermit {
        let turns = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            // One reference is the map's own: nobody holds or awaits those.
            names.retain(|_, turns| Arc::strong_count(turns) > 1);
            Arc::clone(names.entry(name).or_insert_with(|| Arc::new(Semaphore::new(self.at_once))))
        };
        turns.acquire_owned().await.expect("the semaphores are never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_so_many_workers_at_a_time_and_leaves_nothing_behind() {
        let turns = Turns::new(2);
        let first = (turns.take("a").await, turns.take("a").await);
        let other = turns.take("b").await;
        let third = turns.take("a");
        tokio::pin!(third);
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(first);
        drop(third.await);
        drop(other);
        drop(turns.take("c").await);
        assert_eq!(turns.names.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }
}
