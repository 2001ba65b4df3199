//! A service, a chaos proxy, a real sshd, and the sandbox's engine behind it.

use std::{cell::RefCell, fs, net::SocketAddr, path::PathBuf};

use comfy_remote::sandbox::{ChaosProxy, Sandbox, SandboxOptions};
use serde_json::{Value, json};

use crate::{
    graphs::tag,
    sandbox_stage::PATIENCE,
    support::{
        self,
        service::Service,
        sshd::{Sshd, SshdOptions},
    },
};

/// Bytes of files that are to be caught while they move.
pub(super) const BIG: usize = 3_000_000;

pub(super) struct Stage {
    pub(super) service: Service,
    pub(super) proxy: ChaosProxy,
    pub(super) sshd: Sshd,
    pub(super) sandbox: Sandbox,
    foreign: RefCell<Vec<String>>,
}

impl Stage {
    /// `None`, said aloud, without an sshd. Lost connections are noticed within seconds.
    pub(super) async fn new() -> Option<Self> {
        Self::with(&[]).await
    }

    /// The same with more settings of the service.
    pub(super) async fn with(settings: &[(&str, toml::Value)]) -> Option<Self> {
        if !Sshd::available() {
            support::skip("sshd", "no OpenSSH server is installed");
            return None;
        }
        // The far end, too, notices that nobody is there.
        let extra = vec!["ClientAliveInterval 1".to_owned(), "ClientAliveCountMax 2".to_owned()];
        let sshd = Sshd::start(SshdOptions { extra, ..SshdOptions::default() });
        let proxy = ChaosProxy::start(SocketAddr::from(([127, 0, 0, 1], sshd.port()))).await.unwrap();
        let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
        let quick =
            [("ssh.keepalive_s", 1.into()), ("ssh.connect_timeout_s", 2.into()), ("ssh.connect_attempts", 1.into())];
        let service = Service::start(&[&quick, settings].concat());
        Some(Self { service, proxy, sshd, sandbox, foreign: RefCell::default() })
    }

    /// The body of an execute request for a graph.
    pub(super) fn request(&self, graph: &Value) -> Value {
        let file = self.service.folder().join(format!("{}.json", tag()));
        fs::write(&file, graph.to_string()).unwrap();
        let road = self.sshd.connection_through(self.proxy.port());
        json!({
            "ssh_connection": road.replace("ssh ", "ssh -o ServerAliveCountMax=2 "),
            "workflow_file": file,
            "comfyui_port": self.sandbox.comfyui_port(),
            "comfyui_input_dir": self.sandbox.input_dir(),
            "comfyui_output_dir": self.sandbox.output_dir(),
        })
    }

    pub(super) async fn start(&self, graph: &Value) -> String {
        self.service.client().accepted(&self.request(graph)).await
    }

    /// Somebody else's prompt, sent past the service.
    pub(super) async fn submit_foreign(&self, graph: &Value) {
        let url = format!("http://127.0.0.1:{}/prompt", self.sandbox.comfyui_port());
        let body = json!({ "prompt": graph, "client_id": "somebody-else" });
        let answer = reqwest::Client::new().post(url).json(&body).send().await.expect("an answer of the engine");
        let answer: Value = answer.json().await.expect("JSON");
        self.foreign.borrow_mut().push(answer["prompt_id"].as_str().expect("a prompt id").to_owned());
    }

    /// How often the service's prompt was taken by the engine.
    pub(super) fn sent(&self) -> usize {
        self.sandbox.engine().submissions() - self.foreign.borrow().len()
    }

    /// How often it ran. An engine that was started again has forgotten its runs; then what it took counts.
    pub(super) fn runs(&self) -> usize {
        let ended = self.sandbox.engine().history_ids();
        if ended.is_empty() {
            self.sent()
        } else {
            ended.iter().filter(|id| !self.foreign.borrow().contains(id)).count()
        }
    }

    /// A file of [`BIG`] bytes to be uploaded, none of which are alike.
    pub(super) fn big_input(&self) -> PathBuf {
        let path = self.service.folder().join("big.bin");
        fs::write(&path, big_content()).unwrap();
        path
    }

    /// Waits until the workflow's connection is in a state, and checks what is said of it.
    pub(super) async fn wait_for_connection(&self, id: &str, state: &str) {
        let is_so = |progress: &Value| progress["connection"]["state"] == state;
        let progress = self.service.client().wait_for(id, state, PATIENCE, is_so).await;
        let connection = &progress["connection"];
        assert!(connection["since"].is_string(), "{connection}");
        assert_eq!(connection["cause"].is_string(), state == "reconnecting", "{connection}");
    }

    /// Every output is here as it is on the box, and nothing else.
    pub(super) fn judge_outputs(&self, end: &Value) {
        let outputs = end["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), 1, "{end:#}");
        for output in outputs {
            let read = |field: &str| fs::read(output[field].as_str().unwrap()).unwrap();
            assert!(read("local_path") == read("remote_path"), "the content differs: {output}");
        }
        assert_eq!(fs::read_dir(self.service.output_dir()).unwrap().count(), outputs.len(), "no part stays");
    }

    /// The input is on the box as it is here, and nothing else.
    pub(super) fn judge_upload(&self) {
        assert!(fs::read(self.sandbox.input_dir().join("big.bin")).unwrap() == big_content());
        assert_eq!(fs::read_dir(self.sandbox.input_dir()).unwrap().count(), 1, "no part stays");
    }
}

fn big_content() -> Vec<u8> {
    (0..BIG as u64 / 8).flat_map(|word| (word * 2_654_435_761).to_be_bytes()).collect()
}
