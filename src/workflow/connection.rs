//! How the way to the box is, as readers see it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// How the way to the box is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Whether it stands.
    pub state: ConnectionState,
    /// Since when it is so.
    pub since: DateTime<Utc>,
    /// Why it does not stand.
    pub cause: Option<String>,
    /// When the next try is due.
    pub next_attempt: Option<DateTime<Utc>>,
}

/// The two states of the way to the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// It stands.
    Connected,
    /// It was lost, and is tried again.
    Reconnecting,
}

impl Connection {
    pub(super) fn connected(at: DateTime<Utc>) -> Self {
        Self { state: ConnectionState::Connected, since: at, cause: None, next_attempt: None }
    }

    pub(super) fn reconnecting(at: DateTime<Utc>, cause: String, next_attempt: Option<DateTime<Utc>>) -> Self {
        Self { state: ConnectionState::Reconnecting, since: at, cause: Some(cause), next_attempt }
    }

    /// Keeps the time since when it is so, where it was so before.
    pub(super) fn following(self, before: Option<&Self>) -> Self {
        let since = before.filter(|known| known.state == self.state).map_or(self.since, |known| known.since);
        Self { since, ..self }
    }
}
