//! A host key that is on no record, remembered while its box is in use.
//!
//! Where nothing is checked or nothing can be recorded, a box could be let to somebody else between two connections of one
//! run. So the first key that a host on the way shows counts for all connections along this route, for as long as the
//! pool knows it.

use std::sync::{Mutex, PoisonError};

use russh::keys::PublicKey;

use super::{SshError, known_hosts::fingerprint};

/// The key that one host of a route has shown first.
#[derive(Debug, Default)]
pub(super) struct Pin(Mutex<Option<PublicKey>>);

impl Pin {
    /// Remembers a key on first sight. `host` is for the error.
    ///
    /// # Errors
    /// [`SshError::HostKeyExchanged`] when it is another one than before.
    pub(super) fn judge(&self, host: &str, key: &PublicKey) -> Result<(), SshError> {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = first.get_or_insert_with(|| key.clone());
        if first.key_data() == key.key_data() {
            return Ok(());
        }
        Err(SshError::HostKeyExchanged { host: host.to_owned(), old: fingerprint(first), new: fingerprint(key) })
    }

    /// The key, if there is one yet.
    pub(super) fn key(&self) -> Option<PublicKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
