//! The settings of a runner.

use std::time::Duration;

use super::{Defaults, Limits};
use crate::files::Roots;

/// What the runner can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the answer to execute waits for the tunnel.
    pub execute_wait: Duration,
    /// How long a box may be out of reach while a prompt may be running on it.
    pub unreachable_limit: Duration,
    /// The same before anything was submitted.
    pub unreachable_before_submit: Duration,
    /// How long a ComfyUI that does not answer yet is waited for when the box is reached for the first time.
    pub comfyui_start: Duration,
    /// After which time without any sign of progress a run is said to be stalled.
    pub stalled_after: Duration,
    /// Whether a prompt that the box has forgotten runs once more.
    pub resubmit_lost: bool,
    /// How many workflows may run and wait.
    pub limits: Limits,
    /// Bytes that must be free, here and on the box, before something runs; 0 turns the look off.
    pub min_free_bytes: u64,
    /// Which local files may be read and written, and how much.
    pub files: FileRules,
    /// For what a request leaves out.
    pub defaults: Defaults,
}

#[cfg(test)]
impl Options {
    /// Waits for nothing and forbids nothing, but that nothing runs.
    pub(super) fn of_a_test(defaults: Defaults) -> Self {
        Self {
            execute_wait: Duration::ZERO,
            unreachable_limit: Duration::ZERO,
            unreachable_before_submit: Duration::ZERO,
            comfyui_start: Duration::ZERO,
            stalled_after: Duration::ZERO,
            resubmit_lost: false,
            limits: Limits { max_running: 0, max_running_per_box: 0, max_waiting: 9, max_active_per_caller: None },
            min_free_bytes: 0,
            files: FileRules::default(),
            defaults,
        }
    }
}

/// Which local files a workflow may read and write, and how much of them.
#[derive(Debug, Clone)]
pub struct FileRules {
    /// Where workflow files and input images must lie.
    pub read_roots: Roots,
    /// Where output folders must lie.
    pub write_roots: Roots,
    /// The largest workflow file, in bytes.
    pub workflow_file_bytes: u64,
    /// The largest input image, in bytes.
    pub image_bytes: u64,
    /// As much may come of one workflow, in bytes; 0 for no limit.
    pub download_bytes: u64,
}

/// Anything goes.
impl Default for FileRules {
    fn default() -> Self {
        Self {
            read_roots: Roots::anywhere(),
            write_roots: Roots::anywhere(),
            workflow_file_bytes: u64::MAX,
            image_bytes: u64::MAX,
            download_bytes: 0,
        }
    }
}
