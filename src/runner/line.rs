//! Our own line: how many workflows run at once, overall and on one box, and who is next.
//!
//! The order is that of acceptance, and the first whose box has room goes in, so that a busy box holds up nobody but
//! its own. Whoever can't go in at once waits, up to a limit beyond which nobody is taken in.
//!
//! A [`Seat`] stands for one workflow from before it is on record until it is over. Whatever ends its task drops it,
//! and with that lets in the next.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{ssh::BoxName, workflow::Caller};

/// How many workflows may run, and how many may wait for that.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At once, on all boxes together.
    pub max_running: usize,
    /// At once on one box.
    pub max_running_per_box: usize,
    /// Accepted and not yet running.
    pub max_waiting: usize,
    /// Of one caller, waiting or running; `None`: no limit.
    pub max_active_per_caller: Option<NonZeroUsize>,
}

/// Why nobody is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// As many wait as may: this many.
    Waiting(usize),
    /// The caller has as many workflows under way as it may: this many.
    Caller(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(0) => f.write_str("As many workflows are running as may, and none may wait; try again later"),
            Self::Waiting(waiting) => write!(f, "Too many workflows are waiting ({waiting}); try again later"),
            Self::Caller(active) => {
                write!(f, "You have as many workflows under way as one client may ({active}); try again later")
            }
        }
    }
}

/// The line. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub(super) struct Line {
    limits: Limits,
    order: Arc<Mutex<Order>>,
}

/// Says who came first. Each is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct SeatNumber(u64);

#[derive(Debug, Default)]
struct Order {
    next: SeatNumber,
    waiting: BTreeMap<SeatNumber, Waiting>,
    running: usize,
    running_on: HashMap<BoxName, usize>,
    active_of: HashMap<Caller, usize>,
}

#[derive(Debug)]
struct Waiting {
    box_name: BoxName,
    came_up: Arc<Notify>,
}

/// A workflow's claim: first to its turn, then to a place among those that run.
#[derive(Debug)]
pub(super) struct Seat {
    line: Line,
    number: SeatNumber,
    box_name: BoxName,
    caller: Option<Caller>,
    came_up: Arc<Notify>,
}

impl Line {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, order: Arc::default() }
    }

    /// For a new workflow. It is counted from here on, so that no number of requests at once overruns the limits.
    ///
    /// # Errors
    /// When it would have to wait, and as many do as may, or its caller has as many workflows under way as one may.
    pub(super) fn reserve(&self, box_name: BoxName, caller: Option<Caller>) -> Result<Seat, Full> {
        let mut order = self.lock();
        let active = caller.as_ref().and_then(|caller| order.active_of.get(caller)).copied().unwrap_or_default();
        if self.limits.max_active_per_caller.is_some_and(|most| active >= most.get()) {
            return Err(Full::Caller(active));
        }
        let waiting = order.waiting.len();
        if waiting >= self.limits.max_waiting && !order.has_room(&box_name, &self.limits) {
            return Err(Full::Waiting(waiting));
        }
        Ok(self.seat_last(&mut order, box_name, caller))
    }

    /// For one that waited before the service was restarted: it was accepted, whatever the limit is now.
    pub(super) fn line_up(&self, box_name: BoxName, caller: Option<Caller>) -> Seat {
        self.seat_last(&mut self.lock(), box_name, caller)
    }

    /// For one that had begun before the service was restarted: it has a place at once, also over the limits.
    pub(super) fn go_on(&self, box_name: BoxName, caller: Option<Caller>) -> Seat {
        let mut order = self.lock();
        order.enter(&box_name);
        self.seat(&mut order, box_name, caller)
    }

    /// How many go first, and one: those ahead for the same box, or everybody ahead while the overall limit is
    /// reached. `None` when it does not wait (any more).
    pub(super) fn position(&self, number: SeatNumber) -> Option<usize> {
        let order = self.lock();
        let waiting = order.waiting.get(&number)?;
        let all_count = order.running >= self.limits.max_running;
        let ahead = order.waiting.range(..number).filter(|(_, ahead)| all_count || ahead.box_name == waiting.box_name);
        Some(ahead.count() + 1)
    }

    /// Behind everybody else, and in at once if there is room.
    fn seat_last(&self, order: &mut Order, box_name: BoxName, caller: Option<Caller>) -> Seat {
        let seat = self.seat(order, box_name, caller);
        let waiting = Waiting { box_name: seat.box_name.clone(), came_up: seat.came_up.clone() };
        order.waiting.insert(seat.number, waiting);
        order.let_in(&self.limits);
        seat
    }

    fn seat(&self, order: &mut Order, box_name: BoxName, caller: Option<Caller>) -> Seat {
        if let Some(caller) = &caller {
            *order.active_of.entry(caller.clone()).or_default() += 1;
        }
        Seat { line: self.clone(), number: order.take_number(), box_name, caller, came_up: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    fn take_number(&mut self) -> SeatNumber {
        self.next.0 += 1;
        self.next
    }

    fn has_room(&self, box_name: &BoxName, limits: &Limits) -> bool {
        let on_box = self.running_on.get(box_name).copied().unwrap_or_default();
        self.running < limits.max_running && on_box < limits.max_running_per_box
    }

    /// Lets in whoever can go in, the first ones first.
    fn let_in(&mut self, limits: &Limits) {
        let next = |order: &Self| {
            let mut waiting = order.waiting.iter();
            waiting.find(|(_, waiting)| order.has_room(&waiting.box_name, limits)).map(|(number, _)| *number)
        };
        while let Some(waiting) = next(self).and_then(|number| self.waiting.remove(&number)) {
            self.enter(&waiting.box_name);
            waiting.came_up.notify_one();
        }
    }

    fn enter(&mut self, box_name: &BoxName) {
        self.running += 1;
        *self.running_on.entry(box_name.clone()).or_default() += 1;
    }

    fn leave(&mut self, box_name: &BoxName) {
        self.running -= 1;
        count_down(&mut self.running_on, box_name);
    }
}

/// One less; what is down to none is forgotten.
fn count_down<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Seat {
    /// Which one this is.
    pub(super) fn number(&self) -> SeatNumber {
        self.number
    }

    /// Whether its turn has come.
    pub(super) fn has_place(&self) -> bool {
        !self.line.lock().waiting.contains_key(&self.number)
    }

    /// Resolves when its turn has come. Cancel-safe; the seat stays in line until it is dropped.
    pub(super) async fn turn(&self) {
        while !self.has_place() {
            self.came_up.notified().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut order = self.line.lock();
        if let Some(caller) = &self.caller {
            count_down(&mut order.active_of, caller);
        }
        if order.waiting.remove(&self.number).is_none() {
            order.leave(&self.box_name);
            order.let_in(&self.line.limits);
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests;
