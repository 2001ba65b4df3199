//! Memory for large bodies: what all boxes share, and that none takes it from the others.
//!
//! A box that lets its bodies trickle holds what they may take until their deadline. So of each box one large body is
//! read at a time, and the others of it wait in its own line. A read waits without its answer: one that lies unread in
//! the tunnel would hold up everything else on the connection, the body that it waits for included. It is made again.

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

/// The right to read a large body of a box, until the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// What one body may take, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _share: SemaphorePermit<'static>,
    _turn: Turn,
}

/// How a body that turns out to be large comes to its room: at once or not at all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) room: &'a Room,
    /// A turn that was waited for.
    pub(super) turn: Option<&'a Turn>,
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

    /// A turn, once it is this one's and there is room for a body of so many bytes. The room is not kept: the box has
    /// not begun to send.
    #[expect(clippy::expect_used, reason = "nobody closes these semaphores")]
    pub(super) async fn turn(&self, bytes: u64) -> Turn {
        let permit = Arc::clone(&self.0).acquire_owned().await.expect("a semaphore is open");
        drop(ALL.acquire_many(mib(bytes)).await);
        Turn { _permit: permit.into() }
    }
}

impl Claim<'_> {
    /// Room for a body of so many bytes; taken in one go, so that no two wait for each other with half of what they
    /// need.
    pub(super) fn take(self, bytes: u64) -> Option<Taken> {
        let turn = match self.turn {
            Some(turn) => turn.clone(),
            None => Turn { _permit: Arc::clone(&self.room.0).try_acquire_owned().ok()?.into() },
        };
        Some(Taken { _share: ALL.try_acquire_many(mib(bytes)).ok()?, _turn: turn })
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_box_has_one_large_body_at_a_time_and_leaves_room_for_others() {
        let take = |room, turn, mib: u64| Claim { room, turn }.take(mib << 20);
        let (one, same, other) = (Room::of("one"), Room::of("one"), Room::of("other"));
        let first = take(&one, None, 64);
        assert!(first.is_some());
        assert!(take(&same, None, 2).is_none(), "of the same box");
        let mut waiting = Box::pin(same.turn(2 << 20));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(take(&other, None, 64).is_some(), "of another");

        drop(first);
        let turn = waiting.now_or_never().unwrap();
        assert!(take(&same, None, 2).is_none(), "another one's turn");
        assert!(take(&same, Some(&turn), 2).is_some());
    }
}
