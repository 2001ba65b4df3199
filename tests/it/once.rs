//! At most one run per workflow, however unclear it is what the box has of it.

use std::time::{Duration, Instant};

use comfy_remote::{
    comfy::Client,
    sandbox::{Page, Sandbox, SandboxOptions},
};
use serde_json::json;

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::{LOOK_EVERY, comfyui::RealComfyUi, service::Service},
};

/// How many workflows a storm of kills goes over.
const STORM: u32 = 12;

impl Stage {
    /// Returns when every prompt that is to get lost has been.
    async fn prompts_are_lost(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.sandbox.faults().prompts_to_lose() > 0 {
            assert!(Instant::now() < deadline, "no prompt was sent");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[tokio::test]
async fn a_prompt_that_got_lost_on_its_way_is_sent_again() {
    let stage = Stage::new().await;
    stage.sandbox.faults().lose_prompts(1);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let prompt = stage.service.client().progress(&id).await["prompt_id"].clone();
    let done = stage.completed(&id).await;
    assert_eq!((&done["attempt"], &done["prompt_id"]), (&json!(1), &prompt));
    assert_eq!(stage.sandbox.engine().submissions(), 1);
}

#[tokio::test]
async fn a_prompt_that_a_kill_kept_from_being_sent_is_sent_by_the_next_start() {
    let mut stage = Stage::new().await;
    stage.sandbox.faults().lose_prompts(1);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.prompts_are_lost().await;
    stage.service.kill();
    stage.service.launch();
    stage.completed(&id).await;
    assert_eq!(stage.sandbox.engine().submissions(), 1);
}

#[tokio::test]
async fn a_kill_at_the_moment_the_prompt_arrives_makes_no_second_run() {
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    // Nothing is written by itself in time.
    let service = Service::start(&[("state.write_interval_ms", 60_000.into())]);
    let mut stage = Stage { sandbox, service };
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let id = stage.start(&graphs::slow(&tag(), 2, 1)).await;
    hold.reached().await;
    stage.service.kill();
    stage.service.launch();
    hold.release();
    stage.completed(&id).await;
    assert_eq!(stage.sandbox.engine().submissions(), 1);
}

#[tokio::test]
async fn a_prompt_that_may_have_run_on_a_comfyui_before_its_restart_is_not_sent_again() {
    let stage = Stage::new().await;
    stage.sandbox.faults().lose_prompts(1);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.prompts_are_lost().await;
    stage.sandbox.engine().restart().await.unwrap();
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("job_lost")), "{failed:#}");
    assert!(failed["error_message"].as_str().unwrap().contains("not sent again"), "{failed:#}");
    assert_eq!(stage.sandbox.engine().submissions(), 0);
}

#[tokio::test]
async fn a_prompt_that_never_arrives_is_given_up() {
    let stage = Stage::new().await;
    stage.sandbox.faults().lose_prompts(100);
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    assert_eq!(failed["error_code"], "comfyui_unreachable", "{failed:#}");
    assert!(failed["error_message"].as_str().unwrap().contains("sent 3 times"), "{failed:#}");
    assert_eq!(stage.sandbox.faults().prompts_to_lose(), 97);
}

#[tokio::test]
async fn one_mark_serves_all_prompts_of_a_start() {
    let stage = Stage::new().await;
    let marks = || {
        let names = std::fs::read_dir(stage.sandbox.temp_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("comfy-remote")).count()
    };
    for _ in 0..3 {
        let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
        stage.completed(&id).await;
    }
    assert_eq!(marks(), 1);
}

/// Else a prompt that never arrived would be given up as one that may have run.
#[tokio::test]
async fn a_gateway_that_cannot_reach_comfyui_does_not_hide_the_mark() {
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    let client = Client::at(&format!("http://127.0.0.1:{}", sandbox.comfyui_port()));
    sandbox.faults().answer_with(Some(Page::BadGateway));
    assert!(client.mark_server().await.is_err());
    sandbox.faults().answer_with(None);
    let mark = client.mark_server().await.unwrap().expect("the sandbox can be marked");
    sandbox.faults().answer_with(Some(Page::BadGateway));
    assert!(client.server_mark().await.is_err());
    sandbox.faults().answer_with(None);
    assert_eq!(client.server_mark().await.unwrap(), Some(mark));
}

/// Each of many workflows sees the service killed at another moment after it was accepted.
async fn storm(kind: Kind) {
    let Some(far) = FarEnd::start(kind).await else { return };
    let mut service = Service::start(&[]);
    let files = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for round in 0..STORM {
        ids.push(service.client().accepted(&far.request(files.path(), &graphs::slow(&tag(), 2, 5))).await);
        let killed_at = Instant::now() + Duration::from_millis(u64::from(round) * 9);
        while Instant::now() < killed_at {
            tokio::task::yield_now().await;
        }
        service.kill();
        service.launch();
    }
    for id in &ids {
        let done = service.client().wait_for_status(id, "completed", PATIENCE * 2).await;
        assert_eq!(done["attempt"], 1, "{done:#}");
        assert_eq!(far.runs_of(id).await, 1, "{done:#}");
    }
}

#[tokio::test]
async fn a_storm_of_kills_on_the_sandbox() {
    storm(Kind::Sandbox).await;
}

#[tokio::test]
async fn a_storm_of_kills_on_a_server_that_makes_up_prompt_ids() {
    storm(Kind::OldSandbox).await;
}

#[tokio::test]
async fn a_storm_of_kills_on_a_real_comfyui() {
    storm(Kind::ComfyUi).await;
}

/// The mark must not outlive the process that queue and history die with.
#[tokio::test]
async fn a_real_comfyui_loses_its_mark_with_its_memory() {
    let Some(mut comfyui) = RealComfyUi::start_private().await else { return };
    let client = Client::at(&comfyui.url);
    let mark = client.mark_server().await.unwrap().expect("a stock ComfyUI can be marked");
    assert_eq!(client.mark_server().await.unwrap().as_ref(), Some(&mark));
    comfyui.kill();
    comfyui.start().await;
    assert_eq!(client.server_mark().await.unwrap(), None);
    assert_ne!(client.mark_server().await.unwrap(), Some(mark));
}
