//! How a workflow is brought into a phase, held there, and let go.

use std::{fs, num::NonZeroU64, time::Duration};

use comfy_remote::sandbox::{Direction, Hold, LostAnswer};
use serde_json::{Value, json};

use super::stage::{BIG, Stage};
use crate::{
    graphs::{self, tag},
    sandbox_stage::PATIENCE,
    support::LOOK_EVERY,
};

/// A road on which a big file takes a while.
const NARROW: Option<NonZeroU64> = NonZeroU64::new(250_000);

/// What a workflow is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The tunnel stands and ComfyUI does not answer yet.
    Connecting,
    Uploading,
    /// The prompt is on the box, its answer is not here.
    Submitting,
    /// Somebody else's prompt runs.
    Queued,
    Running,
    Downloading,
    /// Cancel was asked for, and the node that runs does not look up.
    Cancelling,
}

/// A workflow that stays in its phase until it is released.
pub(super) struct Held {
    pub(super) id: String,
    by: By,
}

enum By {
    DeadComfyui,
    NarrowRoad(Direction),
    LostAnswer,
    Engine(Hold),
}

impl Phase {
    /// Starts a workflow and returns when it is in the phase for sure.
    pub(super) async fn enter(self, stage: &Stage) -> Held {
        match self {
            Self::Connecting => connecting(stage).await,
            Self::Uploading => uploading(stage).await,
            Self::Submitting => submitting(stage).await,
            Self::Queued => queued(stage).await,
            Self::Running => running(stage).await,
            Self::Downloading => downloading(stage).await,
            Self::Cancelling => cancelling(stage).await,
        }
    }
}

impl Held {
    /// Lets the workflow go on.
    pub(super) async fn release(self, stage: &Stage) {
        match self.by {
            By::DeadComfyui => stage.sandbox.engine().revive().await.unwrap(),
            By::NarrowRoad(direction) => stage.proxy.limit(direction, None),
            By::LostAnswer => {}
            By::Engine(hold) => hold.release(),
        }
    }
}

async fn connecting(stage: &Stage) -> Held {
    stage.sandbox.engine().kill().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    in_phase(stage, &id, "connecting").await;
    until("the tunnel", || stage.sshd.log().contains("Accepted publickey")).await;
    Held { id, by: By::DeadComfyui }
}

async fn uploading(stage: &Stage) -> Held {
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["input_images"] = json!([stage.big_input()]);
    stage.proxy.limit(Direction::Up, NARROW);
    let id = stage.service.client().accepted(&request).await;
    in_phase(stage, &id, "uploading").await;
    until("a part of the file", || stage.part_on_the_box(&id).is_some_and(|bytes| bytes > 0)).await;
    Held { id, by: By::NarrowRoad(Direction::Up) }
}

impl Stage {
    /// Bytes of a workflow's upload under way.
    fn part_on_the_box(&self, id: &str) -> Option<u64> {
        let entries = fs::read_dir(self.sandbox.input_dir()).unwrap().flatten();
        let mut parts = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!(".{id}")));
        parts.next()?.metadata().ok().map(|part| part.len())
    }
}

async fn submitting(stage: &Stage) -> Held {
    stage.sandbox.faults().lose_submit_answers(1, LostAnswer::Never);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    until("the prompt", || stage.sandbox.engine().submissions() == 1).await;
    Held { id, by: By::LostAnswer }
}

async fn queued(stage: &Stage) -> Held {
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    stage.submit_foreign(&graphs::slow(&tag(), 2, 1)).await;
    hold.reached().await;
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    in_phase(stage, &id, "queued").await;
    Held { id, by: By::Engine(hold) }
}

async fn running(stage: &Stage) -> Held {
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(&graphs::slow(&tag(), 2, 1)).await;
    hold.reached().await;
    in_phase(stage, &id, "running").await;
    Held { id, by: By::Engine(hold) }
}

async fn downloading(stage: &Stage) -> Held {
    let report = json!({"images": [{"filename": "big.bin", "subfolder": "", "type": "output", "_size": BIG}]});
    let graph = json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report.to_string()}}});
    stage.proxy.limit(Direction::Down, NARROW);
    let id = stage.start(&graph).await;
    in_phase(stage, &id, "downloading").await;
    let before = stage.proxy.passed(Direction::Down);
    until("a part of the file", || stage.proxy.passed(Direction::Down) > before + 100_000).await;
    Held { id, by: By::NarrowRoad(Direction::Down) }
}

async fn cancelling(stage: &Stage) -> Held {
    let hold = stage.sandbox.engine().hold_at_step("2", 1).stubborn();
    let id = stage.start(&graphs::slow(&tag(), 3000, 10)).await;
    hold.reached().await;
    in_phase(stage, &id, "running").await;
    let (status, answer) = stage.service.client().cancel(&id).await;
    assert_eq!((status.as_u16(), &answer["success"]), (200, &json!(true)), "{answer}");
    until("an interrupt", || stage.sandbox.engine().interrupts() > 0).await;
    let progress = stage.service.client().progress(&id).await;
    assert_eq!((&progress["status"], &progress["cancel_requested"]), (&json!("executing"), &json!(true)));
    Held { id, by: By::Engine(hold) }
}

async fn in_phase(stage: &Stage, id: &str, phase: &str) {
    let is_so = |progress: &Value| progress["phase"] == phase;
    stage.service.client().wait_for(id, phase, PATIENCE, is_so).await;
}

/// Looks until it is so, within a deadline.
pub(super) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let patience = Duration::from_secs(30);
    assert!(tokio::time::timeout(patience, looks).await.is_ok(), "waited {patience:?} in vain for {what}");
}
