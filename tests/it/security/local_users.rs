//! Other users of this machine: what they have put in our places is not taken, and what is ours is private.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use super::{NOBODY, is_root, make_pipe, refusal, text};
use crate::{
    graphs::{slow, tag},
    sandbox_stage::Stage,
    support::{eventually, service::Service},
};

/// Puts something in the place of a file of ours.
type Trap = (&'static str, fn(place: &Path, precious: &Path));

const TRAPS: &[Trap] = &[
    ("a link", |place, precious| symlink(precious, place).unwrap()),
    ("a dangling link", |place, precious| symlink(precious.with_extension("missing"), place).unwrap()),
    ("a pipe", |place, _| make_pipe(place)),
    ("a folder", |place, _| fs::create_dir(place).unwrap()),
    ("a hard link", |place, precious| fs::hard_link(precious, place).unwrap()),
    ("a file of another user", |place, _| {
        fs::write(place, "{}").unwrap();
        chown(place, Some(NOBODY), None).unwrap();
    }),
];

#[test]
fn what_others_have_put_in_the_place_of_the_state_ends_the_start_and_is_left_alone() {
    let mut service = Service::start(&[]);
    service.kill();
    let may_give_away = is_root();
    for place in ["state.json", "state.json.lock"] {
        let place = service.state_file().with_file_name(place);
        for (name, put) in TRAPS.iter().filter(|(name, _)| may_give_away || !name.contains("another user")) {
            let folder = tempfile::tempdir_in(service.folder()).unwrap();
            let precious = folder.path().join("precious");
            fs::write(&precious, "do not touch").unwrap();
            fs::set_permissions(&precious, fs::Permissions::from_mode(0o644)).unwrap();
            fs::remove_file(&place).ok();
            put(&place, &precious);
            let before = fs::symlink_metadata(&place).unwrap();
            let ended = service.command().output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(1), "{name}: {said}");
            let last = said.trim_end().lines().last().unwrap();
            assert!(last.contains(&text(&place)) && last.contains("[state] file"), "{name}: {said}");
            let after = fs::symlink_metadata(&place).unwrap();
            assert_eq!((after.ino(), after.mode(), after.uid()), (before.ino(), before.mode(), before.uid()), "{name}");
            assert_eq!(fs::read_to_string(&precious).unwrap(), "do not touch", "{name}");
            assert_eq!(fs::metadata(&precious).unwrap().mode() & 0o777, 0o644, "{name}");
            assert!(!precious.with_extension("missing").exists());
            if fs::remove_file(&place).is_err() {
                fs::remove_dir(&place).unwrap();
            }
        }
    }
    service.launch();
}

#[test]
fn a_folder_for_graphs_that_is_not_ours_ends_the_start() {
    let mut service = Service::start(&[]);
    service.kill();
    let graphs = PathBuf::from(format!("{}.graphs", text(&service.state_file())));
    fs::remove_dir_all(&graphs).unwrap();
    let elsewhere = tempfile::tempdir_in(service.folder()).unwrap();
    symlink(elsewhere.path(), &graphs).unwrap();
    let mut traps = vec!["a link"];
    if is_root() {
        traps.push("a folder of another user");
    }
    for trap in traps {
        if trap != "a link" {
            fs::remove_file(&graphs).unwrap();
            fs::create_dir(&graphs).unwrap();
            chown(&graphs, Some(NOBODY), None).unwrap();
        }
        let ended = service.command().output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{trap}: {said}");
        assert!(said.contains(&text(&graphs)) && said.contains("[state] file"), "{trap}: {said}");
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_output_folder_that_another_user_has_made_in_a_public_place_is_not_used() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    let public = tempfile::tempdir().unwrap();
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let path = |name: &str| public.path().join(name);
    fs::create_dir(path("theirs")).unwrap();
    fs::create_dir(path("ours")).unwrap();
    symlink(path("ours"), path("their_link")).unwrap();
    symlink(path("ours"), path("our_link")).unwrap();
    for name in ["theirs", "their_link"] {
        std::os::unix::fs::lchown(path(name), Some(NOBODY), None).unwrap();
    }
    let mut request = stage.request(&slow(&tag(), 1, 1));
    for name in ["theirs", "theirs/sub", "their_link", "their_link/sub"] {
        request["output_dir"] = text(&path(name)).into();
        let refused = refusal(&stage.service, &request).await;
        let culprit = path(name.split('/').next().unwrap());
        assert!(refused.contains(&format!("{} belongs to another user", culprit.display())), "{refused}");
    }
    assert_eq!(fs::read_dir(path("theirs")).unwrap().count(), 0);
    for name in ["ours", "our_link", "new"] {
        request["output_dir"] = text(&path(name)).into();
        let id = stage.service.client().accepted(&request).await;
        stage.completed(&id).await;
    }
}

#[tokio::test]
async fn what_is_ours_is_private() {
    let stage = Stage::new().await;
    let held = stage.sandbox.faults().hold_before("3");
    let id = stage.start(&slow(&tag(), 1, 1)).await;
    eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
    let state = stage.service.state_file();
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", text(&state)));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    for file in [state.clone(), beside(".lock"), beside(&format!(".graphs/{id}.json")), stage.sandbox.known_hosts()] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(&beside(".graphs")), 0o700);
    let tunnels = fs::read_dir(env::temp_dir()).unwrap().flatten().map(|entry| entry.path());
    let tunnels: Vec<PathBuf> = tunnels.filter(|path| text(path).contains("comfy-remote-ssh-")).collect();
    assert!(!tunnels.is_empty());
    // Those of other tests may go meanwhile.
    for folder in tunnels.iter().filter_map(|path| fs::symlink_metadata(path).ok()) {
        assert!(folder.is_dir() && folder.mode() & 0o777 == 0o700);
    }
    held.release();
    stage.completed(&id).await;
}
