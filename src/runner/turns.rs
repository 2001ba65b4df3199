//! One after the other for requests of the same name, side by side for all others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// Who works on which name. Names that nobody works on take no room.
#[derive(Debug, Default)]
pub(super) struct Turns {
    names: Mutex<HashMap<String, Turn>>,
}

impl Turns {
    /// Waits until nobody else works on `name`; the turn ends when the guard is dropped.
    pub(super) async fn take(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            // One reference is the map's own: nobody holds or awaits those.
            names.retain(|_, turn| Arc::strong_count(turn) > 1);
            names.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_one_worker_at_a_time_and_leaves_nothing_behind() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let other = turns.take("b").await;
        let second = turns.take("a");
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        drop(turns.take("c").await);
        assert_eq!(turns.names.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }
}
