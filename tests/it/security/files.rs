//! Paths in requests: what lies outside of the configured folders is neither read nor written, nor told of.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, lchown, symlink},
    path::Path,
};

use comfy_remote::{app::Service, config::Config};
use serde_json::json;

use super::{Confined, NOBODY, is_root, text};
use crate::{
    graphs::{invert, slow, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::{SOON, eventually},
};

#[tokio::test]
async fn inputs_outside_of_the_roots_are_refused_whether_they_exist_or_not() {
    let confined = Confined::new(&[]).await;
    let (inside, outside) = (confined.inside.path(), confined.outside.path());
    fs::write(outside.join("there.json"), r#"{"1": {"class_type": "A"}}"#).unwrap();
    symlink(outside.join("there.json"), inside.join("link.json")).unwrap();
    symlink(outside.join("missing.json"), inside.join("dangling.json")).unwrap();
    symlink(outside, inside.join("door")).unwrap();
    let up = format!("{}/../{}", text(inside), outside.file_name().unwrap().to_str().unwrap());
    let good = confined.request(&invert(&tag(), "x.png"));
    for path in [
        text(&outside.join("there.json")),
        text(&outside.join("missing.json")),
        text(&outside.join("missing/deeper.json")),
        text(&outside.join("there.json/deeper.json")),
        text(&inside.join("link.json")),
        text(&inside.join("dangling.json")),
        text(&inside.join("door/there.json")),
        text(&inside.join("door/missing.json")),
        format!("{up}/there.json"),
        format!("{up}/missing.json"),
        format!("/proc/self/root{}", text(&outside.join("there.json"))),
        "/etc/shadow".to_owned(),
        "/".to_owned(),
    ] {
        for field in ["workflow_file", "input_images"] {
            let mut request = good.clone();
            request[field] = if field == "input_images" { json!([path]) } else { json!(path) };
            let expected = format!("Field {field}: {path} does not lie in a folder of [files] read_roots");
            assert_eq!(confined.refusal(&request).await, expected);
        }
    }
    let missing = text(&inside.join("missing.json"));
    let refused = confined.refusal(&json!({"ssh_connection": "ssh box", "workflow_file": missing})).await;
    assert_eq!(refused, format!("Workflow file not found: {missing}"));
}

#[tokio::test]
async fn a_path_that_comes_back_does_not_tell_which_folders_there_are_outside() {
    let confined = Confined::new(&[]).await;
    let mut request = confined.request(&invert(&tag(), "x.png"));
    let file = request["workflow_file"].as_str().unwrap().to_owned();
    for folder in [confined.outside.path().to_owned(), confined.outside.path().join("missing")] {
        let path = format!("{}/..{}{file}", text(&folder), "/..".repeat(folder.components().count()));
        request["workflow_file"] = path.clone().into();
        let expected = format!("Field workflow_file: {path} does not lie in a folder of [files] read_roots");
        assert_eq!(confined.refusal(&request).await, expected);
    }
}

#[tokio::test]
async fn neither_owners_nor_loops_outside_are_told() {
    let confined = Confined::new(&[]).await;
    let (inside, outside) = (confined.inside.path(), confined.outside.path());
    fs::set_permissions(outside, fs::Permissions::from_mode(0o1777)).unwrap();
    symlink(outside.join("loop"), outside.join("loop")).unwrap();
    symlink(outside.join("loop"), inside.join("to_the_loop")).unwrap();
    let mut paths = ["loop", "loop/sub", "missing", "missing/sub"].map(|name| outside.join(name)).to_vec();
    paths.push(inside.join("to_the_loop"));
    if is_root() {
        fs::create_dir(outside.join("theirs")).unwrap();
        symlink(inside, outside.join("their_link")).unwrap();
        for name in ["theirs", "their_link"] {
            lchown(outside.join(name), Some(NOBODY), None).unwrap();
        }
        paths.extend(["theirs", "theirs/sub", "their_link"].map(|name| outside.join(name)));
    }
    let good = confined.request(&invert(&tag(), "x.png"));
    for path in paths {
        for (field, roots) in [("output_dir", "write_roots"), ("workflow_file", "read_roots")] {
            if field == "workflow_file" && path.ends_with("their_link") {
                continue;
            }
            let mut request = good.clone();
            request[field] = text(&path).into();
            let expected = format!("Field {field}: {} does not lie in a folder of [files] {roots}", path.display());
            assert_eq!(confined.refusal(&request).await, expected);
        }
    }
    // Inside it is said.
    symlink(inside.join("loop"), inside.join("loop")).unwrap();
    let mut request = good;
    request["output_dir"] = text(&inside.join("loop")).into();
    let said = confined.refusal(&request).await;
    assert!(said.contains("too many levels of symbolic links"), "{said}");
}

#[tokio::test]
async fn files_that_a_connection_string_names_are_confined_too() {
    let confined = Confined::new(&[]).await;
    let outside = confined.outside.path();
    fs::copy(confined.stage.sandbox.client_key(), outside.join("key")).unwrap();
    let mut request = confined.request(&invert(&tag(), "x.png"));
    for (option, file, keys) in [
        ("-i", outside.join("key"), "read_roots"),
        ("-i", outside.join("missing"), "read_roots"),
        ("-o IdentityFile=", outside.join("key"), "read_roots"),
        ("-o UserKnownHostsFile=", outside.join("known_hosts"), "read_roots and write_roots"),
    ] {
        request["ssh_connection"] = format!("ssh {option}{} root@127.0.0.1", text(&file)).into();
        let expected = format!("Field ssh_connection: {} does not lie in a folder of [files] {keys}", file.display());
        assert_eq!(confined.refusal(&request).await, expected);
    }
    assert!(!outside.join("known_hosts").exists());
    // Tokens stand for what `~/.ssh/config` says of an alias, which is not the caller's to know.
    let ssh_folder = confined.stage.service.folder().join(".ssh");
    fs::create_dir_all(&ssh_folder).unwrap();
    fs::write(ssh_folder.join("config"), "Host alias\nHostName 127.0.0.77\nUser somebody\n").unwrap();
    for option in ["-i", "-o UserKnownHostsFile="] {
        let file = outside.join("%h-%r");
        request["ssh_connection"] = format!("ssh {option}{} alias", text(&file)).into();
        let refused = confined.refusal(&request).await;
        assert!(refused.starts_with(&format!("Field ssh_connection: {} does not lie", file.display())), "{refused}");
    }
}

#[tokio::test]
async fn an_output_folder_outside_is_refused_and_not_made() {
    let confined = Confined::new(&[]).await;
    let (inside, outside) = (confined.inside.path(), confined.outside.path());
    symlink(outside, inside.join("door")).unwrap();
    let mut request = confined.request(&slow(&tag(), 1, 1));
    for path in [outside.join("new"), inside.join("door"), inside.join("door/new"), inside.join("../new-outside")] {
        request["output_dir"] = text(&path).into();
        let expected = format!("Field output_dir: {} does not lie in a folder of [files] write_roots", path.display());
        assert_eq!(confined.refusal(&request).await, expected);
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    assert!(!inside.join("../new-outside").exists());
}

#[tokio::test]
async fn a_link_of_the_user_below_the_output_folder_is_followed_within_the_roots() {
    let confined = Confined::new(&[]).await;
    let elsewhere = confined.inside.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::create_dir_all(confined.output_dir()).unwrap();
    symlink(&elsewhere, confined.output_dir().join("sub")).unwrap();
    let mut graph = slow(&tag(), 1, 1);
    graph["3"]["inputs"]["filename_prefix"] = "sub/picture".into();
    let id = confined.stage.service.client().accepted(&confined.request(&graph)).await;
    confined.stage.completed(&id).await;
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 1);
}

#[tokio::test]
async fn a_folder_that_becomes_a_link_while_the_run_goes_on_leads_nothing_out() {
    let confined = Confined::new(&[]).await;
    let (outputs, outside) = (confined.output_dir(), confined.outside.path());
    for becomes_a_link in [outputs.join("sub"), outputs.clone()] {
        let held = confined.stage.sandbox.faults().hold_before("3");
        let mut graph = slow(&tag(), 1, 1);
        graph["3"]["inputs"]["filename_prefix"] = "sub/picture".into();
        let id = confined.stage.service.client().accepted(&confined.request(&graph)).await;
        eventually("the run to come to its last node", async || held.is_reached().then_some(())).await;
        fs::rename(&becomes_a_link, confined.inside.path().join(tag())).ok();
        symlink(outside, &becomes_a_link).unwrap();
        held.release();
        let failed = confined.stage.service.client().wait_for_status(&id, "failed", PATIENCE).await;
        assert_eq!(failed["error_code"], "path_refused", "{failed:#}");
        assert!(failed["error_message"].as_str().unwrap().contains("[files] write_roots"), "{failed:#}");
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
        fs::remove_file(becomes_a_link).unwrap();
    }
}

#[tokio::test]
async fn an_image_that_becomes_a_link_before_its_upload_is_not_sent() {
    let confined = Confined::new(&[("limits.max_running", 1.into())]).await;
    let held = confined.stage.sandbox.faults().hold_before("3");
    let client = confined.stage.service.client();
    client.accepted(&confined.request(&slow(&tag(), 1, 1))).await;
    let image = confined.inside.path().join("picture.png");
    fs::write(&image, "a picture").unwrap();
    let mut request = confined.request(&invert(&tag(), "picture.png"));
    request["input_images"] = json!([image]);
    let id = client.accepted(&request).await;
    eventually("the first run to come to its last node", async || held.is_reached().then_some(())).await;
    let secret = confined.outside.path().join("secret");
    fs::write(&secret, "private").unwrap();
    fs::remove_file(&image).unwrap();
    symlink(&secret, &image).unwrap();
    held.release();
    let failed = client.wait_for_status(&id, "failed", PATIENCE).await;
    assert_eq!(failed["error_code"], "path_refused", "{failed:#}");
    assert!(!confined.stage.sandbox.input_dir().join("picture.png").exists());
}

#[tokio::test]
async fn a_service_that_others_can_reach_does_not_start_without_roots() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::defaults().unwrap();
    config.state.file = folder.path().join("state.json");
    config.server.allow_unauthenticated = true;
    let root = || Some(vec![folder.path().to_owned()]);
    for (bind, read_roots, write_roots) in
        [("0.0.0.0:0", None, None), ("[::]:0", root(), None), ("192.0.2.1:0", None, root())]
    {
        config.server.bind = bind.parse().unwrap();
        (config.files.read_roots, config.files.write_roots) = (read_roots, write_roots);
        let said = config.file_roots().unwrap_err().to_string();
        assert!(said.contains(bind) && said.contains("[files] read_roots and write_roots"), "{said}");
        assert_eq!(Service::start(&config).await.unwrap_err().to_string(), said);
    }
    (config.files.read_roots, config.files.write_roots) = (root(), root());
    config.file_roots().unwrap();
    config.files.write_roots = Some(vec![folder.path().join("missing")]);
    let said = config.file_roots().unwrap_err().to_string();
    assert!(said.starts_with("configuration key files.write_roots: "), "{said}");
}

#[tokio::test]
async fn a_box_that_sends_more_than_allowed_is_stopped() {
    let graph = |tag: &str| {
        let mut graph = slow(tag, 1, 1);
        graph["4"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": format!("{tag}_first")}});
        graph
    };
    let stage = Stage::with_settings(&[]).await;
    let whole = stage.completed(&stage.start(&graph(&tag())).await).await;
    let sizes: Vec<u64> =
        whole["outputs"].as_array().unwrap().iter().map(|file| file["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes.len(), 2);
    let limit = i64::try_from(sizes.iter().sum::<u64>() - 1).unwrap();

    let stage = Stage::with_settings(&[("limits.download_bytes", limit.into())]).await;
    let id = stage.start(&graph(&tag())).await;
    let failed = stage.service.client().wait_for_status(&id, "failed", SOON).await;
    assert_eq!(failed["error_code"], "limit_exceeded", "{failed:#}");
    let here: Vec<&str> =
        failed["outputs"].as_array().unwrap().iter().filter_map(|file| file["local_path"].as_str()).collect();
    assert_eq!(here.len(), 1, "{failed:#}");
    assert!(Path::new(here[0]).is_file());
    assert_eq!(fs::read_dir(stage.service.output_dir()).unwrap().count(), 1, "nothing half-done is left");
}
