//! Devices, pipes and the kernel's own files in the place of inputs: refused, and never waited for.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use serde_json::json;

use super::{make_pipe, refusal, text};
use crate::{
    graphs::{invert, slow, tag},
    sandbox_stage::Stage,
    support::{SOON, sshd::make_key_as},
};

#[tokio::test]
async fn nothing_but_regular_files_is_taken_as_an_input() {
    let stage = Stage::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    make_pipe(&path("pipe"));
    let _socket = UnixListener::bind(path("socket")).unwrap();
    symlink(path("pipe"), path("link")).unwrap();
    let good = stage.request(&invert(&tag(), "x.png"));
    let mut odd = vec![text(&path("pipe")), text(&path("socket")), text(&path("link"))];
    odd.extend(
        ["/dev/zero", "/dev/null", "/dev/tty"].into_iter().filter(|path| Path::new(path).exists()).map(Into::into),
    );
    if cfg!(target_os = "linux") {
        odd.extend(["/proc/self/environ", "/proc/self/mem", "/proc/self/maps", "/proc/version"].map(Into::into));
    }
    for path in odd {
        let mut request = good.clone();
        request["workflow_file"] = path.clone().into();
        assert_eq!(refusal(&stage.service, &request).await, format!("Workflow file is not a regular file: {path}"));
        let mut request = good.clone();
        request["input_images"] = json!([path]);
        assert_eq!(refusal(&stage.service, &request).await, format!("Input image is not a regular file: {path}"));
    }
}

#[tokio::test]
async fn a_pipe_as_key_or_passphrase_file_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, locked) = (folder.path().join("pipe"), folder.path().join("locked"));
    make_pipe(&pipe);
    make_key_as(&locked, &["-t", "ed25519", "-N", "secret"]);
    let stage = Stage::with_settings(&[("ssh.passphrase_file", text(&pipe).into())]).await;
    for key in [&pipe, &locked] {
        let mut request = stage.request(&slow(&tag(), 1, 1));
        let own = text(&stage.sandbox.client_key());
        let connection = request["ssh_connection"].as_str().unwrap().replace(&own, &text(key));
        request["ssh_connection"] = connection.into();
        let (_, answer) = stage.service.client().execute(&request).await;
        let id = answer["workflow_id"].as_str().unwrap();
        let failed = stage.service.client().wait_for_status(id, "failed", SOON).await;
        assert_eq!(failed["error_code"], "ssh_auth", "{failed:#}");
    }
}

#[tokio::test]
async fn inputs_beyond_the_configured_sizes_are_refused() {
    let settings = [("limits.workflow_file_bytes", 1000.into()), ("limits.image_bytes", 10.into())];
    let stage = Stage::with_settings(&settings).await;
    let folder = tempfile::tempdir().unwrap();
    let (graph, image) = (folder.path().join("big.json"), folder.path().join("big.png"));
    fs::write(&graph, " ".repeat(1001)).unwrap();
    fs::write(&image, "x".repeat(11)).unwrap();
    let good = stage.request(&invert(&tag(), "big.png"));
    let mut request = good.clone();
    request["workflow_file"] = text(&graph).into();
    let refused = refusal(&stage.service, &request).await;
    assert!(
        refused.starts_with("Workflow file is larger than ") && refused.contains("workflow_file_bytes"),
        "{refused}"
    );
    let mut request = good;
    request["input_images"] = json!([image]);
    let refused = refusal(&stage.service, &request).await;
    assert!(refused.starts_with("Input image is larger than ") && refused.contains("image_bytes"), "{refused}");
}
