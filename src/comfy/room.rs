//! Memory for large bodies: what all boxes share, and that none takes it from the others.
//!
//! A box that lets its bodies trickle holds what they may take until their deadline. So of each box one large body is
//! read at a time, and the others of it wait in its own line.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// In MiB: two bodies of the largest size, and something for everybody else.
static ALL: Semaphore = Semaphore::const_new(160);

/// The boxes that are talked to now, by their names.
static BOXES: Mutex<BTreeMap<String, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// One box's access to what all share. Clones are the same, and so are all of one name.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// What one body may take, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _share: SemaphorePermit<'static>,
    _turn: OwnedSemaphorePermit,
}

impl Room {
    /// That of the box with this name.
    pub(super) fn of(name: &str) -> Self {
        let mut boxes = BOXES.lock().unwrap_or_else(PoisonError::into_inner);
        boxes.retain(|_, turns| turns.strong_count() > 0);
        let known = boxes.get(name).and_then(Weak::upgrade);
        let turns = known.unwrap_or_else(|| Arc::new(Semaphore::new(1)));
        boxes.insert(name.to_owned(), Arc::downgrade(&turns));
        Self(turns)
    }

    /// Room for a body of so many bytes, once there is; taken in one go, so that no two wait for each other with half of
    /// what they need.
    pub(super) async fn take(&self, bytes: u64) -> Option<Taken> {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.0).acquire_owned().await.ok()?;
        Some(Taken { _share: ALL.acquire_many(mib).await.ok()?, _turn: turn })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_box_has_one_large_body_at_a_time_and_leaves_room_for_others() {
        let (one, same, other) = (Room::of("one"), Room::of("one"), Room::of("other"));
        let first = one.take(64 << 20).await;
        assert!(first.is_some());
        assert!(same.take(2 << 20).now_or_never().is_none(), "of the same box");
        assert!(other.take(64 << 20).now_or_never().flatten().is_some(), "of another");
        drop(first);
        assert!(same.take(2 << 20).now_or_never().flatten().is_some());
    }
}
