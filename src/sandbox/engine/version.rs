//! Which ComfyUI the engine imitates, as a set of yes-or-no differences.
//!
//! Used all over the engine. The facts and their version numbers come from ComfyUI's `server.py` and `execution.py`.

/// A generation of ComfyUI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.40: makes up prompt ids, interrupts whatever runs, has no `progress_state` and no feature flags.
    Old,
    /// 0.3.64 of October 2025.
    V0_3_64,
    /// 0.3.75 of November 2025.
    #[default]
    V0_3_75,
    /// 0.26 and later, 2026: strict prompt ids, `/api/jobs` with atomic cancel, no duplicates, sockets that survive
    /// the end of their predecessor.
    Current,
}

impl Version {
    pub(super) fn number(self) -> &'static str {
        match self {
            Self::Old => "0.3.40",
            Self::V0_3_64 => "0.3.64",
            Self::V0_3_75 => "0.3.75",
            Self::Current => "0.26.0",
        }
    }

    /// `prompt_id` in `POST /prompt`, since 0.3.45.
    pub(super) fn takes_prompt_id(self) -> bool {
        self > Self::Old
    }

    /// Only canonical UUIDs, each once.
    pub(super) fn is_strict_about_ids(self) -> bool {
        self == Self::Current
    }

    /// `prompt_id` in `POST /interrupt`, since 0.3.57.
    pub(super) fn targets_interrupts(self) -> bool {
        self > Self::Old
    }

    /// `progress_state`, feature flags, `/features` and previews with metadata, since 0.3.45.
    pub(super) fn has_progress_state(self) -> bool {
        self > Self::Old
    }

    /// `partial_execution_targets`, since 0.3.48.
    pub(super) fn has_partial_execution(self) -> bool {
        self > Self::Old
    }

    /// History lists every cached node with an output, run or not; until 0.3.67.
    pub(super) fn lists_all_cached_outputs(self) -> bool {
        self <= Self::V0_3_64
    }

    /// History lists cached output nodes even if the prompt came without a client id.
    pub(super) fn lists_cached_without_client(self) -> bool {
        self.lists_all_cached_outputs() || self == Self::Current
    }

    /// `extra_data.create_time`, since 0.3.69.
    pub(super) fn stamps_prompts(self) -> bool {
        self >= Self::V0_3_75
    }

    /// `missing_node_type` instead of `invalid_prompt` (0.12), `dependency_cycle` (0.20).
    pub(super) fn has_new_validation(self) -> bool {
        self == Self::Current
    }

    /// `/api/jobs` with its cancel routes (0.26).
    pub(super) fn has_jobs(self) -> bool {
        self == Self::Current
    }

    /// A closing socket takes only its own entry out of the table.
    pub(super) fn keeps_newer_socket(self) -> bool {
        self == Self::Current
    }
}
