//! The service dies at any moment, and nothing that was accepted is lost.
//!
//! Where ptrace is at hand, it dies before each single system call that would change something among its state: between
//! two of these the disk stays the same, so this is every crash there can be.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    graphs::{self, tag},
    sandbox_stage::Stage,
    support::client::ApiClient,
};

/// Kills in the loop, one for each workflow.
const KILLS: u64 = 12;

/// The longest life between two kills.
const LONGEST_LIFE_MS: u64 = 700;

/// Asks to execute, and returns the workflow's id if the service lived to answer.
async fn try_to_execute(client: &ApiClient, body: &Value) -> Option<String> {
    let request = client.request(reqwest::Method::POST, "/comfyui/workflow/execute").json(body);
    let answer: Value = request.send().await.ok()?.json().await.ok()?;
    assert_eq!(answer["success"], true, "{answer}");
    Some(answer["workflow_id"].as_str()?.to_owned())
}

/// A number that differs from run to run, or the one in `TESTS_SEED`. A failed test shows it.
fn seed() -> u64 {
    let given = std::env::var("TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    let seed = given.unwrap_or_else(clock);
    #[expect(clippy::print_stderr, reason = "the test harness shows it with a failure")]
    {
        eprintln!("TESTS_SEED={seed}");
    }
    seed
}

/// A step of Knuth's linear congruential generator; its upper bits are random enough for instants.
fn next_random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_instants_it_loses_no_workflow_and_runs_none_twice() {
    let mut stage = Stage::new().await;
    let mut random = seed();
    let mut ids = Vec::new();
    for kill in 0..KILLS {
        ids.push(stage.start(&graphs::slow(&tag(), 2, 20)).await);
        // Every other kill comes right after the answer.
        let life = if kill % 2 == 0 { 0 } else { next_random(&mut random, LONGEST_LIFE_MS) };
        tokio::time::sleep(Duration::from_millis(life)).await;
        stage.service.kill();
        stage.service.launch();
    }
    for id in &ids {
        stage.completed(id).await;
    }
    assert_eq!(stage.sandbox.engine().submissions(), ids.len(), "each ran once");
    assert!(!stage.service.log().contains("could not be read"), "{}", stage.service.log());
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn killed_at_every_change_of_the_state() {
    crate::support::skip("ptrace", "only Linux on x86-64 is known to the tracer");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod at_every_change {
    use super::*;
    use crate::support::{eventually, service::Service, tracer::Traced};

    /// What is in the state file when the workflow waits for its box.
    const CONNECTING: &str = r#""lifecycle":{"active":"connecting"}"#;

    /// What ends every write.
    const FLUSH_OF_FOLDER: &str = "fsync ";

    const COMPLETED: &str = r#""lifecycle":"completed""#;

    /// One life of the service: killed before change number `kill_at`, or once the state file has `until` on disk.
    struct Life {
        /// The workflow that was accepted, if there was an answer.
        answered: Option<String>,
        /// The changes, the last one not made if it was killed there.
        changes: Vec<String>,
    }

    impl Life {
        /// A life in which a workflow is asked for.
        async fn asked(stage: &Stage, kill_at: usize, until: &str) -> Self {
            let (traced, client) = stage.service.launch_traced(kill_at);
            let mut answered = None;
            if let Some(client) = client {
                answered = try_to_execute(&client, &stage.request(&graphs::slow(&tag(), 1, 1))).await;
            }
            Self::lived(stage, &traced, answered, until).await
        }

        /// A life in which nobody asks for anything.
        async fn idle(stage: &Stage, kill_at: usize, until: &str) -> Self {
            let (traced, _) = stage.service.launch_traced(kill_at);
            Self::lived(stage, &traced, None, until).await
        }

        async fn lived(stage: &Stage, traced: &Traced, answered: Option<String>, until: &str) -> Self {
            let file = stage.service.state_file();
            eventually("the kill, or the last change", async || {
                let written = fs::read_to_string(&file).is_ok_and(|text| text.contains(until));
                let flushed = traced.calls().last().is_some_and(|call| call == FLUSH_OF_FOLDER);
                (traced.was_killed() || (written && flushed)).then_some(())
            })
            .await;
            Self { answered, changes: traced.calls() }
        }
    }

    /// A stage whose service has a fresh folder and does not run yet.
    async fn fresh(stage: Option<Stage>) -> Stage {
        let mut stage = match stage {
            Some(Stage { sandbox, .. }) => Stage { sandbox, service: Service::start(&[]) },
            None => Stage::new().await,
        };
        stage.service.kill();
        fs::remove_dir_all(stage.service.state_file().parent().unwrap()).unwrap();
        fs::create_dir(stage.service.state_file().parent().unwrap()).unwrap();
        stage
    }

    /// Whatever lies in a temporary file could have been cut at any byte.
    fn cut_temporary_files(state_file: &Path) {
        for path in temporary_files(state_file) {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
    }

    fn temporary_files(state_file: &Path) -> Vec<std::path::PathBuf> {
        let folder = state_file.parent().unwrap();
        let folders = [folder.to_owned(), folder.join("state.json.graphs")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
    }

    /// Starts the service again, and checks that what is on disk is whole. Returns the workflow, if it is on record.
    async fn recovered(stage: &mut Stage, life: &Life) -> Option<String> {
        let file = stage.service.state_file();
        if let Ok(text) = fs::read_to_string(&file) {
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {:?}\n{text}", life.changes));
        }
        cut_temporary_files(&file);
        stage.service.launch();
        let log = stage.service.log();
        assert!(!log.contains("could not be read"), "{:?}\n{log}", life.changes);
        // The first write of the new life is what may have a temporary file of its own.
        eventually("no temporary file", async || temporary_files(&file).is_empty().then_some(())).await;

        let state = stage.service.client().state().await.1["state"].take();
        let on_record = state["workflow_id"].as_str().map(str::to_owned);
        assert!(life.answered.is_none() || on_record == life.answered, "{:?}: {state:#}", life.changes);
        let graphs = fs::read_dir(file.parent().unwrap().join("state.json.graphs")).unwrap();
        let graphs: Vec<_> = graphs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let expected: Vec<_> = on_record.iter().map(|id| format!("{id}.json")).collect();
        assert_eq!(graphs, expected, "{:?}", life.changes);
        on_record
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_first_write_an_acceptance_and_a_replacement_are_whole_or_not_there() {
        let mut stage = fresh(None).await;
        stage.sandbox.faults().stall_ssh(true);
        let whole = Life::asked(&stage, usize::MAX, CONNECTING).await;
        assert!(whole.answered.is_some());
        for call in
            ["flock state.json.lock", "mkdir state.json.graphs", "openat .state.json.", "rename", FLUSH_OF_FOLDER]
        {
            assert!(whole.changes.iter().any(|change| change.starts_with(call)), "{call}: {:#?}", whole.changes);
        }
        for kill_at in 1..=whole.changes.len() {
            stage = fresh(Some(stage)).await;
            let life = Life::asked(&stage, kill_at, CONNECTING).await;
            recovered(&mut stage, &life).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_that_dies_leaves_the_file_as_it_was() {
        let mut stage = fresh(None).await;
        let first = Life::asked(&stage, usize::MAX, COMPLETED).await;
        let whole = Life::idle(&stage, usize::MAX, COMPLETED).await;
        assert!(whole.changes.iter().any(|change| change.starts_with("rename")), "{:#?}", whole.changes);
        for kill_at in 1..=whole.changes.len() {
            let life = Life::idle(&stage, kill_at, COMPLETED).await;
            assert_eq!(recovered(&mut stage, &life).await, first.answered, "{:?}", life.changes);
            stage.service.kill();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_that_dies_at_any_change_of_its_state_ends_as_it_would_have() {
        let mut stage = fresh(None).await;
        let changes = Life::asked(&stage, usize::MAX, COMPLETED).await.changes.len();
        for kill_at in 1..=changes {
            stage = fresh(Some(stage)).await;
            let before = stage.sandbox.engine().submissions();
            let life = Life::asked(&stage, kill_at, COMPLETED).await;
            let Some(id) = recovered(&mut stage, &life).await else { continue };
            stage.completed(&id).await;
            assert_eq!(stage.sandbox.engine().submissions() - before, 1, "{:?}", life.changes);
        }
    }
}
