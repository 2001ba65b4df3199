//! Who asked.

use serde::{Deserialize, Serialize};

/// A caller as the limits per client count it, such as `address 192.0.2.7`. Says nothing that opens a door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Caller(String);

impl Caller {
    /// Names a caller.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}
