//! SIGTERM ends the service in time and in order, whatever hangs; the run goes on without it and is taken up again.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
};

use serde_json::json;

use super::{
    accident::{Accident, STOP},
    phase::Phase,
    stage::Stage,
};
use crate::sandbox_stage::PATIENCE;

/// Stops the service in a phase while something hangs, lets everything go on, and expects the run to be completed.
/// What `hang` returns is kept until the service has stopped.
async fn stopped_during<T>(phase: Phase, hang: impl FnOnce(&Stage) -> T) {
    let Some(mut stage) = Stage::new().await else { return };
    let held = phase.enter(&stage).await;
    let hung = hang(&stage);
    let ended = stage.service.terminate(STOP);
    assert_eq!(ended.code(), Some(0), "{}", stage.service.log());
    drop(hung);
    stage.sandbox.faults().hang_engine(false);
    stage.sshd.resume();
    stage.proxy.clear();
    let id = held.id.clone();
    held.release(&stage).await;
    stage.service.launch();
    let done = stage.service.client().wait_for_status(&id, "completed", PATIENCE).await;
    assert_eq!((&done["attempt"], stage.runs()), (&json!(1), 1));
    stage.judge_outputs(&done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_road_on_which_nothing_moves() {
    stopped_during(Phase::Running, |stage| stage.proxy.stall(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_download_on_which_nothing_moves() {
    stopped_during(Phase::Downloading, |stage| stage.proxy.stall(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upload_into_the_void() {
    stopped_during(Phase::Uploading, |stage| stage.proxy.drop_silently(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_submission_without_an_answer() {
    stopped_during(Phase::Submitting, |_| ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_sshd_that_stands_still() {
    stopped_during(Phase::Queued, |stage| stage.sshd.pause()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_comfyui_that_hangs() {
    stopped_during(Phase::Running, |stage| stage.sandbox.faults().hang_engine(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_that_say_half_of_what_they_want() {
    stopped_during(Phase::Running, |stage| {
        let address: SocketAddr = stage.service.url().trim_start_matches("http://").parse().unwrap();
        let head = "POST /comfyui/workflow/execute HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
        let halves = [head.to_owned(), format!("{head}Content-Length: 1000\r\n\r\n{{\"workflow_file\": ")];
        halves.map(|half| {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(half.as_bytes()).unwrap();
            client
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancel_that_cannot_be_carried_out() {
    let Some(mut stage) = Stage::new().await else { return };
    let held = Phase::Cancelling.enter(&stage).await;
    Accident::Stalled.happen(&mut stage, &held.id, Phase::Cancelling).await;
    let ended = stage.service.terminate(STOP);
    assert_eq!(ended.code(), Some(0), "{}", stage.service.log());
}
