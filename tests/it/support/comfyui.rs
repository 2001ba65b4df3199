//! A real ComfyUI: the one that `tests/run --comfyui` has started for all tests, or a private one for a test that stops
//! and starts it. Both have the nodes of `tests/rig/nodes`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{LOOK_EVERY, free_port};

/// A first start imports torch from a cold disk.
const START: Duration = Duration::from_secs(240);

/// A ComfyUI that answers. A private one ends when it is dropped.
#[derive(Debug)]
pub(crate) struct RealComfyUi {
    /// Where its API is, without a slash at the end.
    pub(crate) url: String,
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    base: PathBuf,
    private: Option<Private>,
}

#[derive(Debug)]
struct Private {
    _folder: TempDir,
    process: Option<Child>,
}

impl RealComfyUi {
    /// The one that all tests share, or `None` after saying that the test is skipped.
    ///
    /// Tests run side by side on it, so expect other prompts in its line and other files in its folders.
    ///
    /// # Panics
    /// In CI, if it was asked for and is not there.
    pub(crate) fn from_env() -> Option<Self> {
        let url = std::env::var("COMFYUI_URL").unwrap_or_default();
        let base = std::env::var("COMFYUI_BASE_DIR").unwrap_or_default();
        if url.is_empty() || base.is_empty() {
            super::skip("comfyui", "needs COMFYUI_URL and COMFYUI_BASE_DIR; tests/run --comfyui sets both");
            return None;
        }
        let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("COMFYUI_URL={url} does not end in a port"));
        Some(Self { url, port, base: base.into(), private: None })
    }

    /// One of the test's own, on fresh folders, that answers when this returns; or `None` as for [`Self::from_env`].
    /// Takes 10 seconds or more.
    ///
    /// # Panics
    /// If it does not come up; with the end of its log.
    pub(crate) async fn start_private() -> Option<Self> {
        if std::env::var("COMFYUI_START").unwrap_or_default().is_empty() {
            super::skip("comfyui", "needs COMFYUI_START; tests/run --comfyui sets it");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("comfyui-").tempdir().expect("a temporary folder");
        let port = free_port();
        let mut comfyui = Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            base: folder.path().to_owned(),
            private: Some(Private { _folder: folder, process: None }),
        };
        comfyui.start().await;
        Some(comfyui)
    }

    /// Where inputs lie.
    pub(crate) fn input_dir(&self) -> PathBuf {
        self.base.join("input")
    }

    /// Where results lie.
    pub(crate) fn output_dir(&self) -> PathBuf {
        self.base.join("output")
    }

    /// Where previews lie until the next start.
    pub(crate) fn temp_dir(&self) -> PathBuf {
        self.base.join("temp")
    }

    /// Fetches a JSON document, such as `/queue`.
    ///
    /// # Panics
    /// If it does not come.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.url);
        let answer = reqwest::get(&url).await.unwrap_or_else(|error| panic!("GET {url}: {error}"));
        answer.json().await.unwrap_or_else(|error| panic!("GET {url}: {error}"))
    }

    /// The prompt ids that run or wait.
    pub(crate) async fn prompts_in_line(&self) -> Vec<String> {
        let queue = self.get("/queue").await;
        ["queue_running", "queue_pending"]
            .iter()
            .flat_map(|list| queue[list].as_array().cloned().unwrap_or_default())
            .filter_map(|entry| entry[1].as_str().map(str::to_owned))
            .collect()
    }

    /// Kills a private one at once, as a crash would. Its files stay, what it had in memory is gone.
    ///
    /// # Panics
    /// If it is not private.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.private().process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts a killed private one again, on the same port and folders.
    ///
    /// # Panics
    /// If it is not private, or does not come up.
    pub(crate) async fn start(&mut self) {
        let process = launch(self.port, &self.base);
        self.private().process = Some(process);
        let deadline = Instant::now() + START;
        while !self.answers().await {
            let ended = self.private().process.as_mut().is_none_or(|process| !matches!(process.try_wait(), Ok(None)));
            assert!(!ended && Instant::now() < deadline, "ComfyUI does not come up:\n{}", self.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The end of a private one's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(log_of(&self.base)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    async fn answers(&self) -> bool {
        let answer = reqwest::Client::new()
            .get(format!("{}/system_stats", self.url))
            .timeout(Duration::from_secs(5))
            .send()
            .await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    fn private(&mut self) -> &mut Private {
        self.private.as_mut().expect("a private ComfyUI; the shared one is not ours to stop")
    }
}

impl Drop for RealComfyUi {
    fn drop(&mut self) {
        if self.private.is_some() {
            self.kill();
        }
    }
}

fn log_of(base: &Path) -> PathBuf {
    base.join("log")
}

fn launch(port: u16, base: &Path) -> Child {
    let start = std::env::var("COMFYUI_START").expect("COMFYUI_START is set");
    let words = shlex::split(&start).expect("COMFYUI_START is a shell command line");
    let log = File::options().create(true).append(true).open(log_of(base)).expect("open ComfyUI's log");
    Command::new(&words[0])
        .args(&words[1..])
        .arg(port.to_string())
        .arg(base)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share ComfyUI's log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("COMFYUI_START={start}: {error}"))
}
