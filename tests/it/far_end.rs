//! The other end of a story: what plays the box.

use std::path::{Path, PathBuf};

use comfy_remote::sandbox::{Sandbox, SandboxOptions, Version};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{
    self, SOON,
    comfyui::RealComfyUi,
    sshd::{Sshd, SshdOptions},
};

/// Stories share one real ComfyUI, which has one line and one stop button.
static REAL_COMFYUI: Mutex<()> = Mutex::const_new(());

/// Which far end to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The sandbox's SSH server and engine, as ComfyUI was at the end of 2025.
    Sandbox,
    /// The same as ComfyUI was in 2024: it makes up prompt ids and interrupts whatever runs.
    OldSandbox,
    /// The same as ComfyUI is in 2026: strict about ids, with a jobs API.
    NewSandbox,
    /// A real sshd in front of the sandbox's engine.
    OpenSsh,
    /// A real sshd in front of a real ComfyUI.
    ComfyUi,
}

/// A box.
pub(crate) struct FarEnd {
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) sshd: Option<Sshd>,
    pub(crate) comfyui: Option<RealComfyUi>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl FarEnd {
    /// `None`, said aloud, when a part of it can't be had here.
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        let sshd = match kind {
            Kind::Sandbox | Kind::OldSandbox | Kind::NewSandbox => None,
            Kind::OpenSsh | Kind::ComfyUi if Sshd::available() => Some(Sshd::start(SshdOptions::default())),
            _ => {
                support::skip("sshd", "no OpenSSH server is installed");
                return None;
            }
        };
        if kind == Kind::ComfyUi {
            let comfyui = RealComfyUi::from_env()?;
            let turn = REAL_COMFYUI.lock().await;
            return Some(Self { sandbox: None, sshd, comfyui: Some(comfyui), _turn: Some(turn) });
        }
        let version = match kind {
            Kind::OldSandbox => Version::Old,
            Kind::NewSandbox => Version::Current,
            _ => Version::default(),
        };
        let options = SandboxOptions { version, ..SandboxOptions::default() };
        let sandbox = Sandbox::start(options).await.expect("a sandbox");
        Some(Self { sandbox: Some(sandbox), sshd, comfyui: None, _turn: None })
    }

    /// The body of an execute request for a graph, which is written to `folder`.
    pub(crate) fn request(&self, folder: &Path, graph: &Value) -> Value {
        let file = folder.join(format!("{}.json", uuid::Uuid::new_v4().simple()));
        std::fs::write(&file, graph.to_string()).expect("write the workflow file");
        json!({
            "ssh_connection": self.connection(),
            "workflow_file": file,
            "comfyui_port": self.port(),
            "comfyui_input_dir": self.input_dir(),
            "comfyui_output_dir": self.output_dir(),
        })
    }

    /// What a provider would show.
    pub(crate) fn connection(&self) -> String {
        match (&self.sshd, &self.sandbox) {
            (Some(sshd), _) => sshd.connection(),
            (None, Some(sandbox)) => sandbox.ssh_connection(),
            (None, None) => unreachable!("a far end has an SSH server"),
        }
    }

    /// ComfyUI's port.
    pub(crate) fn port(&self) -> u16 {
        self.comfyui.as_ref().map_or_else(|| self.engine().comfyui_port(), |comfyui| comfyui.port)
    }

    /// ComfyUI's input folder.
    pub(crate) fn input_dir(&self) -> PathBuf {
        self.comfyui.as_ref().map_or_else(|| self.engine().input_dir().to_owned(), RealComfyUi::input_dir)
    }

    /// ComfyUI's output folder.
    pub(crate) fn output_dir(&self) -> PathBuf {
        self.comfyui.as_ref().map_or_else(|| self.engine().output_dir().to_owned(), RealComfyUi::output_dir)
    }

    /// Somebody else's prompt, sent past the service. Returns its id.
    pub(crate) async fn submit_foreign(&self, graph: &Value) -> String {
        let body = json!({ "prompt": graph, "client_id": "somebody-else" });
        let answer = self.post("/prompt", &body).await;
        answer["prompt_id"].as_str().unwrap_or_else(|| panic!("a foreign prompt was refused: {answer}")).to_owned()
    }

    /// Somebody presses ComfyUI's own stop button.
    pub(crate) async fn interrupt_whatever_runs(&self) {
        self.post("/interrupt", &json!({})).await;
    }

    /// What history says of a prompt, once it is there.
    pub(crate) async fn history(&self, prompt_id: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/history/{prompt_id}", self.port());
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let answer: Value = reqwest::get(&url).await.expect("history").json().await.expect("JSON");
            if let Some(entry) = answer.get(prompt_id) {
                return entry.clone();
            }
            assert!(std::time::Instant::now() < deadline, "no history of {prompt_id}");
            tokio::time::sleep(support::LOOK_EVERY).await;
        }
    }

    /// How many prompts of a workflow the box has run, however they are called there.
    pub(crate) async fn runs_of(&self, workflow_id: &str) -> usize {
        let url = format!("http://127.0.0.1:{}/history", self.port());
        let history: Value = reqwest::get(&url).await.expect("history").json().await.expect("JSON");
        let entries = history.as_object().expect("entries by prompt id").values();
        entries.filter(|entry| entry["prompt"][3].to_string().contains(workflow_id)).count()
    }

    /// The prompts that run or wait on the box.
    pub(crate) async fn prompts_in_line(&self) -> Vec<String> {
        let url = format!("http://127.0.0.1:{}/queue", self.port());
        let queue: Value = reqwest::get(&url).await.expect("the queue").json().await.expect("JSON");
        let entries = ["queue_running", "queue_pending"].iter().flat_map(|list| queue[list].as_array().cloned());
        entries.flatten().filter_map(|entry| entry[1].as_str().map(str::to_owned)).collect()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://127.0.0.1:{}{path}", self.port());
        let answer = reqwest::Client::new().post(url).json(body).send().await.expect("an answer of ComfyUI");
        answer.json().await.unwrap_or(Value::Null)
    }

    fn engine(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("a sandbox where there is no real ComfyUI")
    }
}
