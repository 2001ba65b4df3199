//! The prompt queue and the history, as `PromptQueue` in ComfyUI's `execution.py`.
//!
//! Used by the routes and by the worker. Moves between pending, running and history happen under one lock, so a prompt
//! is never in none of them, and every change is announced to all sockets while the lock is held, so announcements
//! come in the order of the changes. All of it is lost with the process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use indexmap::IndexMap;
use serde_json::{Number, Value, json};
use tokio::sync::Notify;

use super::json::Object;
use super::socket::Hub;

/// ComfyUI keeps this many entries, off by one as there.
const MAX_HISTORY: usize = 10_000;
/// More waiting prompts than any test needs.
const MAX_PENDING: usize = 10_000;

/// One accepted prompt.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) number: Number,
    pub(super) id: String,
    pub(super) prompt: Object,
    pub(super) extra: Object,
    pub(super) outputs: Vec<String>,
}

impl Item {
    /// The five elements `/queue` and `/history` show.
    pub(super) fn to_json(&self) -> Value {
        json!([self.number, self.id, self.prompt, self.extra, self.outputs])
    }

    /// Whose socket gets the messages.
    pub(super) fn client(&self) -> Option<String> {
        match self.extra.get("client_id")? {
            Value::String(id) => Some(id.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    fn priority(&self) -> f64 {
        self.number.as_f64().unwrap_or(0.0)
    }

    fn goes_before(&self, other: &Self) -> bool {
        match self.priority().total_cmp(&other.priority()) {
            std::cmp::Ordering::Equal => self.id < other.id,
            order => order.is_lt(),
        }
    }

    /// Python then compares the graphs, which it cannot.
    fn ties_with(&self, other: &Self) -> bool {
        self.priority().total_cmp(&other.priority()).is_eq() && self.id == other.id
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) outputs: Value,
    pub(super) meta: Value,
    pub(super) succeeded: bool,
    pub(super) messages: Vec<Value>,
}

/// A finished run.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) item: Item,
    pub(super) outcome: Outcome,
}

impl Entry {
    pub(super) fn status(&self) -> Value {
        json!({
            "status_str": if self.outcome.succeeded { "success" } else { "error" },
            "completed": self.outcome.succeeded,
            "messages": self.outcome.messages,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "prompt": self.item.to_json(),
            "outputs": self.outcome.outputs,
            "status": self.status(),
            "meta": self.outcome.meta,
        })
    }
}

/// Why a prompt was not queued as asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PutError {
    /// The heap could not compare two entries; the newer one is queued all the same.
    Tie,
    /// Too many are waiting.
    Full,
}

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    heap: Vec<Item>,
    running: Option<Item>,
    history: IndexMap<String, Entry>,
    counter: i64,
    free_memory: bool,
}

impl State {
    fn remaining(&self) -> usize {
        self.heap.len() + usize::from(self.running.is_some())
    }

    fn announce(&self, hub: &Hub) {
        hub.broadcast("status", &json!({"status": {"exec_info": {"queue_remaining": self.remaining()}}}));
    }
}

impl Queue {
    /// The next number; every request without a number of its own uses one up, accepted or not.
    pub(super) fn count(&self) -> i64 {
        let mut state = self.lock();
        let number = state.counter;
        state.counter += 1;
        number
    }

    pub(super) fn put(&self, item: Item, hub: &Hub) -> Result<(), PutError> {
        let mut state = self.lock();
        if state.heap.len() >= MAX_PENDING {
            return Err(PutError::Full);
        }
        let tie = state.heap.iter().any(|other| other.ties_with(&item));
        heap::push(&mut state.heap, item);
        if tie {
            // The exception skips the rest of `put`: nobody is told, and the worker finds it by chance.
            return Err(PutError::Tie);
        }
        state.announce(hub);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for the next prompt and marks it as running.
    pub(super) async fn take(&self, hub: &Hub) -> Item {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.lock();
                if let Some(item) = heap::pop(&mut state.heap) {
                    state.running = Some(item.clone());
                    state.announce(hub);
                    return item;
                }
            }
            arrived.await;
        }
    }

    /// Moves the running prompt into the history.
    pub(super) fn finish(&self, outcome: Outcome, hub: &Hub) {
        let mut state = self.lock();
        let Some(item) = state.running.take() else { return };
        if state.history.len() > MAX_HISTORY {
            state.history.shift_remove_index(0);
        }
        state.history.insert(item.id.clone(), Entry { item, outcome });
        state.announce(hub);
    }

    /// Runs `act` with the number of prompts not finished, which cannot change meanwhile.
    pub(super) fn with_remaining<T>(&self, act: impl FnOnce(usize) -> T) -> T {
        let state = self.lock();
        act(state.remaining())
    }

    pub(super) fn clear(&self, hub: &Hub) {
        let mut state = self.lock();
        state.heap.clear();
        state.announce(hub);
    }

    /// Removes the first pending prompt with this id. Deleting the last one is announced twice, as in ComfyUI.
    pub(super) fn delete(&self, id: &str, hub: &Hub) -> bool {
        let mut state = self.lock();
        let Some(index) = state.heap.iter().position(|item| item.id == id) else { return false };
        state.heap.remove(index);
        heap::heapify(&mut state.heap);
        if state.heap.is_empty() {
            state.announce(hub);
        }
        state.announce(hub);
        true
    }

    pub(super) fn running(&self) -> Option<Item> {
        self.lock().running.clone()
    }

    /// The running prompt and the waiting ones, at one moment.
    pub(super) fn snapshot(&self) -> (Option<Item>, Vec<Item>) {
        let state = self.lock();
        (state.running.clone(), state.heap.clone())
    }

    /// Waiting prompts in the order of the heap, which is not the order they will run in.
    pub(super) fn pending(&self) -> Vec<Item> {
        self.lock().heap.clone()
    }

    /// Whether the id is known in any way.
    pub(super) fn knows(&self, id: &str) -> bool {
        let state = self.lock();
        state.history.contains_key(id) || state.heap.iter().chain(&state.running).any(|item| item.id == id)
    }

    /// Calls `interrupt` if this prompt runs; it cannot end meanwhile.
    pub(super) fn if_running(&self, id: &str, interrupt: impl FnOnce()) -> bool {
        let state = self.lock();
        let runs = state.running.as_ref().is_some_and(|item| item.id == id);
        if runs {
            interrupt();
        }
        runs
    }

    pub(super) fn history(&self) -> Vec<Entry> {
        self.lock().history.values().cloned().collect()
    }

    pub(super) fn entry(&self, id: &str) -> Option<Entry> {
        self.lock().history.get(id).cloned()
    }

    pub(super) fn history_ids(&self) -> Vec<String> {
        self.lock().history.keys().cloned().collect()
    }

    pub(super) fn clear_history(&self) {
        self.lock().history.clear();
    }

    pub(super) fn delete_history(&self, id: &str) {
        self.lock().history.shift_remove(id);
    }

    /// Asks for the caches to be dropped after the current run.
    pub(super) fn free_memory(&self) {
        self.lock().free_memory = true;
    }

    pub(super) fn take_free_memory(&self) -> bool {
        std::mem::take(&mut self.lock().free_memory)
    }

    /// What the end of the process does.
    pub(super) fn forget(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A binary heap that keeps its array in the same order as Python's `heapq`, because `/queue` shows the array.
mod heap {
    use super::Item;

    pub(super) fn push(heap: &mut Vec<Item>, item: Item) {
        heap.push(item);
        let last = heap.len() - 1;
        sift_down(heap, 0, last);
    }

    pub(super) fn pop(heap: &mut Vec<Item>) -> Option<Item> {
        let first = (!heap.is_empty()).then(|| heap.swap_remove(0))?;
        if !heap.is_empty() {
            sift_up(heap, 0);
        }
        Some(first)
    }

    pub(super) fn heapify(heap: &mut [Item]) {
        for index in (0..heap.len() / 2).rev() {
            sift_up(heap, index);
        }
    }

    /// Moves the item at `index` towards the root; Python's name for it.
    fn sift_down(heap: &mut [Item], start: usize, mut index: usize) {
        while index > start {
            let parent = (index - 1) / 2;
            if !goes_before(heap, index, parent) {
                break;
            }
            heap.swap(index, parent);
            index = parent;
        }
    }

    /// Moves the smaller child up until a leaf is reached, then settles the item from there.
    fn sift_up(heap: &mut [Item], start: usize) {
        let mut index = start;
        let mut child = 2 * index + 1;
        while child < heap.len() {
            let right = child + 1;
            if right < heap.len() && !goes_before(heap, child, right) {
                child = right;
            }
            heap.swap(index, child);
            index = child;
            child = 2 * index + 1;
        }
        sift_down(heap, start, index);
    }

    fn goes_before(heap: &[Item], a: usize, b: usize) -> bool {
        matches!((heap.get(a), heap.get(b)), (Some(a), Some(b)) if a.goes_before(b))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn item(number: f64, id: &str) -> Item {
        Item {
            number: Number::from_f64(number).unwrap(),
            id: id.into(),
            prompt: Object::new(),
            extra: Object::new(),
            outputs: vec![],
        }
    }

    #[test]
    fn the_array_is_the_one_heapq_makes() {
        // Expected orders computed with Python 3.11's heapq.
        let mut array = vec![];
        for number in [5.0, 3.0, 8.0, 1.0, 9.0, 2.0, 7.0] {
            heap::push(&mut array, item(number, "x"));
        }
        let numbers = |heap: &[Item]| heap.iter().map(Item::priority).collect::<Vec<_>>();
        assert_eq!(numbers(&array), [1.0, 3.0, 2.0, 5.0, 9.0, 8.0, 7.0]);
        assert_eq!(heap::pop(&mut array).unwrap().priority(), 1.0);
        assert_eq!(numbers(&array), [2.0, 3.0, 7.0, 5.0, 9.0, 8.0]);
        array.remove(1);
        heap::heapify(&mut array);
        assert_eq!(numbers(&array), [2.0, 7.0, 5.0, 9.0, 8.0]);
    }

    #[test]
    fn deleting_the_last_one_is_announced_twice() {
        let (queue, hub) = (Queue::default(), Hub::default());
        let (_, mut inbox) = hub.attach("me", 0).unwrap();
        for id in ["a", "b", "c"] {
            queue.put(item(1.0, id), &hub).unwrap();
        }
        let mut counts = || {
            let messages = std::iter::from_fn(|| inbox.try_recv().ok());
            let count = |message: axum::extract::ws::Message| {
                let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
                message["data"]["status"]["exec_info"]["queue_remaining"].as_u64().unwrap()
            };
            messages.map(count).collect::<Vec<_>>()
        };
        assert_eq!(counts(), [0, 1, 2, 3]);
        assert!(queue.delete("b", &hub) && !queue.delete("b", &hub));
        assert_eq!(counts(), [2]);
        queue.clear(&hub);
        assert_eq!(counts(), [0]);
        queue.put(item(1.0, "d"), &hub).unwrap();
        assert!(queue.delete("d", &hub));
        assert_eq!(counts(), [1, 0, 0]);
    }

    #[test]
    fn a_tie_is_an_error_but_stays_queued() {
        let (queue, hub) = (Queue::default(), Hub::default());
        assert_eq!(queue.put(item(5.0, "a"), &hub), Ok(()));
        assert_eq!(queue.put(item(5.0, "b"), &hub), Ok(()));
        assert_eq!(queue.put(item(5.0, "a"), &hub), Err(PutError::Tie));
        assert_eq!(queue.pending().len(), 3);
    }
}
