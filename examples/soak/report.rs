//! What must not be, collected.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// More than these are counted only.
const KEPT: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Violations {
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) count: usize,
    pub(crate) texts: Vec<String>,
}

impl Violations {
    /// Takes note of one, and shows it at once.
    pub(crate) fn add(&self, text: String) {
        println!("NOT AS IT SHOULD BE: {text}");
        let mut found = self.found();
        found.count += 1;
        if found.texts.len() < KEPT {
            found.texts.push(text);
        }
    }

    pub(crate) fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
