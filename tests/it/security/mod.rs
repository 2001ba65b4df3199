//! Attacks, each against the built service: by those who may send requests, by rented boxes, and by other users of this
//! machine. `docs/SECURITY.md` names these tests beside what they hold off.

mod allowed_hosts;
mod browser;
mod clients;
mod crowd;
mod files;
mod host_keys;
mod hostile_box;
mod hostile_names;
mod hostile_sftp;
mod hostile_socket;
mod hostile_ssh;
mod hostile_workflows;
mod impostor;
mod local_users;
mod network;
mod random_requests;
mod rogue;
mod secrets;
mod siege;
mod special_files;

use std::path::{Path, PathBuf};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    sandbox_stage::Stage,
    support::{self, service::Service},
};

/// Owns nothing on any system: what it has made was made by somebody else.
const NOBODY: u32 = 65534;

/// A stage whose service may read and write in one folder, beside those that the sandbox's connection string names.
struct Confined {
    stage: Stage,
    inside: TempDir,
    outside: TempDir,
}

impl Confined {
    async fn new(more: &[(&str, toml::Value)]) -> Self {
        let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [inside.path(), sandbox.client_key().parent().unwrap()].map(|path| text(path).into());
        let roots = toml::Value::Array(roots.to_vec());
        let mut settings = vec![("files.read_roots", roots.clone()), ("files.write_roots", roots)];
        settings.extend_from_slice(more);
        let service = Service::start(&settings);
        Self { stage: Stage { sandbox, service }, inside, outside }
    }

    /// The body of an execute request whose files lie inside.
    fn request(&self, graph: &Value) -> Value {
        let mut request = self.stage.request(graph);
        let file = Path::new(request["workflow_file"].as_str().unwrap()).to_owned();
        let moved = self.inside.path().join(file.file_name().unwrap());
        std::fs::rename(&file, &moved).unwrap();
        request["workflow_file"] = text(&moved).into();
        request["output_dir"] = text(&self.output_dir()).into();
        request
    }

    fn output_dir(&self) -> PathBuf {
        self.inside.path().join("outputs")
    }

    /// The words of a refusal with 400.
    async fn refusal(&self, request: &Value) -> String {
        refusal(&self.stage.service, request).await
    }
}

/// The words of a refusal with 400.
async fn refusal(service: &Service, request: &Value) -> String {
    let (status, answer) = service.client().execute(request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{request}: {answer}");
    answer["message"].as_str().unwrap().to_owned()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Whether files can be given to other users; said aloud where not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        support::skip("root", "files of other users can only be made by root");
    }
    is_root
}

/// A pipe that nobody writes to.
fn make_pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}
