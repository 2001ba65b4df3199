//! A box on which nothing moves any more: said while it lasts, and never taken for success.

use std::time::Duration;

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::service::Service,
};

/// Longer than ComfyUI is given to answer, a few times over.
const LONG: Duration = Duration::from_secs(90);

async fn stage(unreachable_limit_s: i64) -> Stage {
    let settings = [("limits.stalled_after_s", 1.into()), ("limits.unreachable_limit_s", unreachable_limit_s.into())];
    Stage { sandbox: Sandbox::start(SandboxOptions::default()).await.unwrap(), service: Service::start(&settings) }
}

fn is_stalled(progress: &Value) -> bool {
    progress["stalled_since"].is_string()
}

#[tokio::test]
async fn a_run_that_does_not_move_is_said_to_be_stalled_until_it_moves_again() {
    let stage = stage(600).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 4, 1)).await;
    hold.reached().await;
    let stalled = stage.service.client().wait_for(&id, "the stall", PATIENCE, is_stalled).await;
    assert_eq!((&stalled["status"], &stalled["current_node"]), (&json!("executing"), &json!("RigSlowSteps")));
    hold.release();
    let done = stage.completed(&id).await;
    assert_eq!(done["stalled_since"], Value::Null);
}

#[tokio::test]
async fn a_run_that_never_moves_again_is_given_up_and_stopped() {
    let stage = stage(3).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 4, 1)).await;
    hold.reached().await;
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("wedged")), "{failed:#}");
    assert!(failed["error_message"].as_str().unwrap().contains("node 2 (RigSlowSteps)"), "{failed:#}");
    assert_eq!(stage.sandbox.engine().running(), None);
}

#[tokio::test]
async fn a_comfyui_that_hangs_is_said_to_be_stalled_and_waited_for() {
    let stage = stage(600).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 4, 1)).await;
    hold.reached().await;
    stage.sandbox.faults().hang_engine(true);
    let hung = |progress: &Value| is_stalled(progress) && progress["connection"]["state"] == "reconnecting";
    let stalled = stage.service.client().wait_for(&id, "the stall", LONG, hung).await;
    assert!(stalled["connection"]["cause"].as_str().unwrap().contains("may hang"), "{stalled:#}");
    stage.sandbox.faults().hang_engine(false);
    hold.release();
    stage.completed(&id).await;
    assert_eq!(stage.sandbox.engine().submissions(), 1);
}

#[tokio::test]
async fn a_comfyui_that_hangs_for_too_long_is_not_taken_for_success() {
    let stage = stage(5).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 2);
    let id = stage.start(&graphs::slow(&tag(), 4, 1)).await;
    hold.reached().await;
    stage.sandbox.faults().hang_engine(true);
    let failed = stage.service.client().wait_for_end(&id, LONG).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("wedged")), "{failed:#}");
}

#[tokio::test]
async fn a_cancel_that_comfyui_never_carries_out_is_not_called_cancelled() {
    let stage = stage(4).await;
    let hold = stage.sandbox.engine().hold_at_step("2", 2).stubborn();
    let id = stage.start(&graphs::slow(&tag(), 4, 1)).await;
    hold.reached().await;
    stage.service.client().cancel(&id).await;
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("wedged")), "{failed:#}");
    assert!(failed["error_message"].as_str().unwrap().contains("cancel was requested"), "{failed:#}");
}
