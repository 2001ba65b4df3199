//! Identifiers. Each is a newtype so that a node id can't be passed where a prompt id is meant.

use std::{borrow::Borrow, fmt};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// Names one accepted workflow for its whole life, across restarts.
    WorkflowId
}
text_id! {
    /// Names one submission to ComfyUI. We choose it; servers before v0.3.45 replace it by their own.
    PromptId
}
text_id! {
    /// Names a node of a graph. A string, not always a number: `12`, `12:3`, `12.0.0.3`.
    NodeId
}
text_id! {
    /// Names the websocket that gets a prompt's messages.
    ClientId
}
text_id! {
    /// Names one start of a ComfyUI: as long as it bears the same mark, it has kept its queue and history.
    ServerMark
}

impl WorkflowId {
    /// `comfyui_workflow_<unix seconds>_<8 hex digits>`.
    ///
    /// Not unique by itself: the store refuses an id that is taken, and the caller draws another `tail`.
    pub fn new(accepted: DateTime<Utc>, tail: u32) -> Self {
        Self(format!("comfyui_workflow_{}_{tail:08x}", accepted.timestamp()))
    }
}

impl PromptId {
    /// A fresh id in the only form that every ComfyUI accepts: a lowercase hyphenated UUID (v0.25 refuses all others).
    pub fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().hyphenated().to_string())
    }
}

impl ClientId {
    /// A fresh id.
    pub fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

impl ServerMark {
    /// A fresh one.
    pub fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().hyphenated().to_string())
    }

    /// A mark as it was read back; `None` for what can't be one.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text.trim()).ok().map(|mark| Self(mark.hyphenated().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_nothing_else_is_taken_for_one() {
        let mark = ServerMark::fresh();
        assert_eq!(ServerMark::parse(&format!("{mark}\n")), Some(mark));
        assert_eq!(ServerMark::parse("<html>404</html>"), None);
    }

    #[test]
    fn a_workflow_id_names_its_second_and_eight_hex_digits() {
        let at = DateTime::from_timestamp(1_732_234_567, 0).unwrap_or_default();
        assert_eq!(WorkflowId::new(at, 0xab_c123).as_str(), "comfyui_workflow_1732234567_00abc123");
    }

    #[test]
    fn a_prompt_id_is_a_canonical_uuid() {
        let id = PromptId::fresh();
        let parsed = uuid::Uuid::parse_str(id.as_str()).map(|uuid| uuid.hyphenated().to_string());
        assert_eq!(parsed.as_deref(), Ok(id.as_str()));
    }
}
