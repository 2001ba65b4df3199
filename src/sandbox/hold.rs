//! Barriers that stop a run at a chosen point, so that tests need no sleeping.
//!
//! Made by [`Faults`](super::fault::Faults), passed by the engine.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The holds that no run has come to yet.
#[derive(Default)]
pub(super) struct Holds(Mutex<Vec<Arc<HoldState>>>);

impl Holds {
    pub(super) fn add(&self, point: Point) -> Hold {
        let state = Arc::new(HoldState {
            point,
            stubborn: watch::Sender::new(false),
            reached: watch::Sender::new(false),
            released: watch::Sender::new(false),
        });
        self.lock().push(Arc::clone(&state));
        Hold { state }
    }

    pub(super) fn release_all(&self) {
        for hold in self.lock().drain(..) {
            hold.released.send_replace(true);
        }
    }

    /// Waits at `point` if a test holds it; an interrupt ends the wait unless the hold is stubborn.
    pub(super) async fn pass(&self, point: &Point, interrupted: &watch::Sender<bool>) {
        let hold = {
            let mut holds = self.lock();
            holds.retain(|hold| !*hold.released.borrow());
            let found = holds.iter().position(|hold| hold.point == *point);
            found.map(|index| holds.remove(index))
        };
        let Some(hold) = hold else { return };
        hold.reached.send_replace(true);
        let (mut released, mut flag) = (hold.released.subscribe(), interrupted.subscribe());
        let mut stubborn = hold.stubborn.subscribe();
        let interrupt = async {
            // The senders live as long as this future, so neither wait can fail.
            let _ = stubborn.wait_for(|on| !on).await;
            let _ = flag.wait_for(|on| *on).await;
        };
        tokio::select! {
            _ = released.wait_for(|on| *on) => {}
            () = interrupt => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<HoldState>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a run can be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Point {
    BeforeNode(String),
    AtStep(String, u64),
    BeforeHistory,
}

/// A barrier in one run. It works once, ends when released, dropped or, unless stubborn, when the run is interrupted.
#[must_use = "a dropped hold no longer holds"]
pub struct Hold {
    state: Arc<HoldState>,
}

struct HoldState {
    point: Point,
    stubborn: watch::Sender<bool>,
    reached: watch::Sender<bool>,
    released: watch::Sender<bool>,
}

impl Hold {
    /// Makes the hold ignore interrupts, as a node that computes for minutes without looking up does.
    pub fn stubborn(self) -> Self {
        self.state.stubborn.send_replace(true);
        self
    }

    /// Waits until a run stands at this point. Has no deadline of its own.
    pub async fn reached(&self) {
        let mut reached = self.state.reached.subscribe();
        // The sender is ours, so the wait cannot fail.
        let _ = reached.wait_for(|on| *on).await;
    }

    /// Whether a run has come to this point.
    pub fn is_reached(&self) -> bool {
        *self.state.reached.borrow()
    }

    /// Lets the run go on.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("point", &self.state.point).finish_non_exhaustive()
    }
}
