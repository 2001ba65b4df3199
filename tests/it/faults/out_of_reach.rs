//! Boxes that stay away: until the limit, or until a cancel can be carried out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{accident::Accident, phase::Phase, stage::Stage};
use crate::{
    graphs::{self, tag},
    sandbox_stage::PATIENCE,
};

/// The limit of these tests, in seconds.
const LIMIT: u64 = 3;

impl Stage {
    /// Waits for the failure, which must come after the limit and say why.
    async fn fails_after_the_limit(&self, id: &str, gone: Instant, setting: &str) {
        let failed = self.service.client().wait_for_end(id, PATIENCE).await;
        assert!(gone.elapsed() >= Duration::from_secs(LIMIT), "{:?}: {failed:#}", gone.elapsed());
        assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("ssh_unreachable")));
        let message = failed["error_message"].as_str().unwrap();
        let beginning = format!("the box was out of reach for {LIMIT} s ([limits] {setting} ends it): ");
        assert!(message.starts_with(&beginning) && message.contains("refused"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_box_with_a_run_on_it_is_given_up_after_its_limit() {
    let Some(mut stage) = Stage::with(&[("limits.unreachable_limit_s", (LIMIT as i64).into())]).await else { return };
    let held = Phase::Running.enter(&stage).await;
    let gone = Instant::now();
    Accident::Refused.happen(&mut stage, &held.id, Phase::Running).await;
    stage.fails_after_the_limit(&held.id, gone, "unreachable_limit_s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_box_with_nothing_on_it_is_given_up_after_a_limit_of_its_own() {
    let setting = "unreachable_before_submit_s";
    let Some(mut stage) = Stage::with(&[("limits.unreachable_before_submit_s", (LIMIT as i64).into())]).await else {
        return;
    };
    let held = Phase::Uploading.enter(&stage).await;
    let gone = Instant::now();
    Accident::Refused.happen(&mut stage, &held.id, Phase::Uploading).await;
    stage.fails_after_the_limit(&held.id, gone, setting).await;
    assert_eq!(stage.sent(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_box_that_was_never_reached_is_no_lost_one() {
    let Some(stage) = Stage::new().await else { return };
    stage.proxy.refuse(true);
    stage.proxy.cut();
    super::phase::until("a closed port", || std::net::TcpStream::connect(("127.0.0.1", stage.proxy.port())).is_err())
        .await;
    let request = stage.request(&graphs::slow(&tag(), 1, 1));
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!(status.as_u16(), 500, "{answer}");
    let failed = stage.service.client().progress(answer["workflow_id"].as_str().unwrap()).await;
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("ssh_unreachable")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_next_attempt_is_announced() {
    let Some(mut stage) = Stage::new().await else { return };
    let held = Phase::Running.enter(&stage).await;
    Accident::Refused.happen(&mut stage, &held.id, Phase::Running).await;
    let announced = |progress: &Value| progress["connection"]["next_attempt"].is_string();
    let progress = stage.service.client().wait_for(&held.id, "the next attempt", PATIENCE, announced).await;
    let connection = &progress["connection"];
    assert!(connection["next_attempt"].as_str() > connection["since"].as_str(), "{connection}");
    assert!(connection["cause"].as_str().unwrap().contains("refused"), "{connection}");
}

/// Cancels while the way is gone, and looks at what is said before it is back and after.
async fn cancelled_out_of_reach(phase: Phase, accident: Accident) {
    let Some(mut stage) = Stage::new().await else { return };
    let held = phase.enter(&stage).await;
    let client = stage.service.client();
    accident.happen(&mut stage, &held.id, phase).await;
    let (status, answer) = client.cancel(&held.id).await;
    assert_eq!((status.as_u16(), &answer["success"]), (200, &json!(true)), "{answer}");
    // Longer than a try to get through.
    let told = |progress: &Value| progress["connection"]["next_attempt"].is_string();
    let waiting = client.wait_for(&held.id, "another try", PATIENCE, told).await;
    assert_eq!(waiting["cancel_requested"], true);
    assert_ne!(waiting["status"], "cancelled", "it is not certain yet");
    assert_eq!(stage.sandbox.engine().interrupts(), 0);
    accident.pass(&mut stage, &held.id).await;
    client.wait_for_status(&held.id, "cancelled", PATIENCE).await;
    let engine = stage.sandbox.engine();
    let prompt = waiting["prompt_id"].as_str().unwrap().to_owned();
    assert!(engine.running().as_ref() != Some(&prompt) && !engine.pending().contains(&prompt));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_running_one_is_cancelled_when_the_port_opens_again() {
    cancelled_out_of_reach(Phase::Running, Accident::Refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_running_one_is_cancelled_when_packets_arrive_again() {
    cancelled_out_of_reach(Phase::Running, Accident::SilentDrop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_waiting_one_is_cancelled_when_sshd_is_back() {
    cancelled_out_of_reach(Phase::Queued, Accident::SshdKilled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unclear_one_is_cancelled_when_the_port_opens_again() {
    cancelled_out_of_reach(Phase::Submitting, Accident::Refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancel_is_remembered_over_a_restart_of_the_service() {
    let Some(mut stage) = Stage::new().await else { return };
    let held = Phase::Running.enter(&stage).await;
    Accident::Refused.happen(&mut stage, &held.id, Phase::Running).await;
    assert_eq!(stage.service.client().cancel(&held.id).await.0.as_u16(), 200);
    stage.service.kill();
    stage.service.launch();
    stage.wait_for_connection(&held.id, "reconnecting").await;
    assert_eq!(stage.sandbox.engine().interrupts(), 0);
    stage.proxy.refuse(false);
    stage.service.client().wait_for_status(&held.id, "cancelled", PATIENCE).await;
    assert_eq!(stage.sandbox.engine().running(), None);
}
