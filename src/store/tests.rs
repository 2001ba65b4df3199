#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::*;
use crate::workflow::{Lifecycle, Phase, Request};

fn options(folder: &Path) -> Options {
    Options { file: folder.join("state.json"), write_interval: Duration::from_secs(3600), keep_finished: 2 }
}

async fn open(folder: &Path) -> (Store, CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let opened = Store::open(options(folder), stop.clone()).await.unwrap();
    assert_eq!(opened.warnings, Vec::<String>::new());
    (opened.store, stop, opened.writer)
}

/// Ends a store as the end of its process would, but in order.
async fn close((store, stop, writer): (Store, CancellationToken, JoinHandle<()>)) {
    stop.cancel();
    writer.await.unwrap();
    drop(store);
}

fn graph() -> Source {
    Source::parse_kept(br#"{"1": {"class_type": "A", "inputs": {"seed": 18446744073709551615}}}"#).unwrap()
}

fn workflow(tail: u32) -> WorkflowState {
    let request = Request {
        ssh_connection: "ssh root@box".into(),
        workflow_file: "/w.json".into(),
        workflow_name: "w".into(),
        input_images: vec![],
        output_dir: "/tmp/out".into(),
        comfyui_port: 1,
        comfyui_input_dir: "/in".into(),
        comfyui_output_dir: "/out".into(),
    };
    WorkflowState::accepted(WorkflowId::new(Utc::now(), tail), request, &graph(), Utc::now())
}

#[tokio::test]
async fn what_was_accepted_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let accepted = workflow(1);
    store.insert(accepted.clone(), &graph()).await.unwrap();
    assert!(matches!(store.insert(accepted.clone(), &graph()).await, Err(StoreError::Taken)));
    let on_disk = fs::read_to_string(options(folder.path()).file).unwrap();
    assert!(on_disk.contains(accepted.id.as_str()), "before insert returns");

    store.apply(&accepted.id, Event::Entered(Phase::Connecting));
    close((store, stop, writer)).await;
    let (again, ..) = open(folder.path()).await;
    assert_eq!(again.get(&accepted.id).unwrap().lifecycle, Lifecycle::Active(Phase::Connecting));
    assert_eq!(again.source(&accepted.id).await.unwrap(), graph());
}

#[tokio::test]
async fn only_one_store_works_with_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let refused = Store::open(options(folder.path()), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())), "{refused}");
    close(first).await;
    open(folder.path()).await;
}

#[tokio::test]
async fn the_newest_active_workflow_comes_before_newer_finished_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (store, ..) = open(folder.path()).await;
    assert!(store.newest().is_none());
    let all = [workflow(1), workflow(2), workflow(3)];
    for state in &all {
        store.insert(state.clone(), &graph()).await.unwrap();
    }
    let newest = || store.newest().map(|state| state.id.clone());
    assert_eq!(newest(), Some(all[2].id.clone()));
    store.apply(&all[2].id, Event::Cancelled);
    assert_eq!(newest(), Some(all[1].id.clone()));
    store.apply(&all[0].id, Event::Cancelled);
    store.apply(&all[1].id, Event::Cancelled);
    assert_eq!(newest(), Some(all[2].id.clone()));
}

#[tokio::test]
async fn many_changes_become_one_write() {
    let folder = tempfile::tempdir().unwrap();
    let (store, ..) = open(folder.path()).await;
    let state = workflow(1);
    store.insert(state.clone(), &graph()).await.unwrap();
    let tries = store.shared.progress.borrow().tries;
    let revision = (0..100).map(|n| store.apply(&state.id, Event::Warned(n.to_string())).unwrap()).max().unwrap();
    store.durable(revision).await.unwrap();
    assert!(store.shared.progress.borrow().tries <= tries + 2);
}

#[tokio::test]
async fn files_are_private_and_a_link_is_neither_read_nor_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let file = options(folder.path()).file;
    store.insert(workflow(1), &graph()).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&folder.path().join("state.json.graphs")), 0o700);

    let precious = folder.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&precious, &file).unwrap();
    store.insert(workflow(2), &graph()).await.unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(fs::symlink_metadata(&file).unwrap().is_file());

    close((store, stop, writer)).await;
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&precious, &file).unwrap();
    let refused = Store::open(options(folder.path()), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(refused.contains("state.json is not a regular file of this user"), "{refused}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_moved_aside() {
    for content in ["not json", r#"{"format": 0, "workflows": {}}"#, "{}", r#"{"format": 1}"#] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(options(folder.path()).file, content).unwrap();
        let opened = Store::open(options(folder.path()), CancellationToken::new()).await.unwrap();
        assert_eq!(opened.warnings.len(), 1);
        assert!(opened.store.newest().is_none());
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let aside = names.into_iter().find(|path| path.to_string_lossy().contains("unreadable")).unwrap();
        assert_eq!(fs::read_to_string(aside).unwrap(), content);
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let content = r#"{"format": 2, "workflows": {"a": {"id": "a"}}}"#;
    fs::write(options(folder.path()).file, content).unwrap();
    let refused = Store::open(options(folder.path()), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(refused.contains("state.json was written by a newer version") && refused.contains("format 2"), "{refused}");
    assert_eq!(fs::read_to_string(options(folder.path()).file).unwrap(), content);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("unreadable")), "{names:?}");
}

#[tokio::test]
async fn one_broken_workflow_does_not_take_the_others_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let good = workflow(1);
    store.insert(good.clone(), &graph()).await.unwrap();
    close((store, stop, writer)).await;
    let file = options(folder.path()).file;
    let text = fs::read_to_string(&file).unwrap().replacen("{\n", "{\n\"broken\":{\"id\":1},", 1);
    fs::write(&file, &text).unwrap();
    let opened = Store::open(options(folder.path()), CancellationToken::new()).await.unwrap();
    assert!(opened.warnings[0].contains("1 workflow(s)"), "{:?}", opened.warnings);
    assert!(opened.store.get(&good.id).is_some());
}

#[tokio::test]
async fn a_failed_write_fails_the_acceptance_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let (store, ..) = open(folder.path()).await;
    let file = options(folder.path()).file;
    fs::create_dir(&file).unwrap();
    let state = workflow(1);
    let refused = store.insert(state.clone(), &graph()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unwritten(_)), "{refused}");
    assert!(store.get(&state.id).is_none());
    fs::remove_dir(&file).unwrap();
    store.insert(state.clone(), &graph()).await.unwrap();
    assert!(store.get(&state.id).is_some());
}

#[tokio::test]
async fn graphs_of_workflows_that_are_not_on_record_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let kept = workflow(1);
    store.insert(kept.clone(), &graph()).await.unwrap();
    close((store, stop, writer)).await;
    let orphan = folder.path().join("state.json.graphs/comfyui_workflow_1_00000000.json");
    fs::write(&orphan, "{}").unwrap();
    let (again, ..) = open(folder.path()).await;
    assert!(!orphan.exists());
    assert_eq!(again.source(&kept.id).await.unwrap(), graph());
}

#[tokio::test]
async fn a_look_that_began_before_a_graph_was_settled_does_not_undo_that() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let state = workflow(1);
    store.insert(state.clone(), &graph()).await.unwrap();
    let looked_at: Vec<Entry> = store.shared.map.read().workflows.values().cloned().collect();
    let settled = Graph::parse(br#"{"1": {"class_type": "A", "inputs": {"seed": 5}}}"#).unwrap();
    store.settle_graph(&state.id, settled.clone()).await.unwrap();
    for entry in looked_at {
        store.shared.graphs.restore(&entry.state.id, &entry.graph.unwrap()).unwrap();
    }
    let settled = Source::from(Document::Graph(settled));
    assert_eq!(store.source(&state.id).await.unwrap(), settled);
    close((store, stop, writer)).await;
    let (again, ..) = open(folder.path()).await;
    assert_eq!(again.source(&state.id).await.unwrap(), settled, "on the disk");
}

#[tokio::test]
async fn waiting_for_the_disk_ends_with_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (store, stop, writer) = open(folder.path()).await;
    let state = workflow(1);
    store.insert(state.clone(), &graph()).await.unwrap();
    stop.cancel();
    writer.await.unwrap();
    let revision = store.apply(&state.id, Event::CancelRequested).unwrap();
    assert!(matches!(store.durable(revision).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn old_finished_workflows_go_and_young_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (store, ..) = open(folder.path()).await;
    let finished = |tail, minutes| {
        let mut state = workflow(tail);
        state.apply(Utc::now() - TimeDelta::minutes(minutes), Event::Cancelled);
        state
    };
    let all = [finished(1, 60), finished(2, 50), finished(3, 40), finished(4, 1), workflow(5)];
    for state in &all {
        store.insert(state.clone(), &graph()).await.unwrap();
    }
    let known: Vec<bool> = all.iter().map(|state| store.get(&state.id).is_some()).collect();
    assert_eq!(known, [false, false, true, true, true]);
    assert!(store.source(&all[0].id).await.is_err());
}
