//! The stage of attacks by boxes: a service, an honest box beside the hostile one, and what must hold in the end.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
};

/// What one box may cost in memory, as docs/OPERATIONS.md has it.
const ALLOWANCE: u64 = 300 << 20;

/// A box that lies without end is given up within the service's own limits, which are short here.
pub(crate) const IN_THE_END: Duration = Duration::from_secs(150);

/// The longest message that makes sense to somebody, in characters.
const LONGEST_MESSAGE: usize = 5000;

pub(crate) struct Siege {
    /// The service and the honest box.
    pub(crate) stage: Stage,
    /// The hostile box: its SSH server, behind which a test puts a ComfyUI of its own.
    pub(crate) hostile: Sandbox,
    idle: u64,
    before: BTreeSet<PathBuf>,
}

impl Siege {
    /// A service that has done a first run on an honest box.
    pub(crate) async fn begin() -> Self {
        let settings = [
            ("limits.unreachable_limit_s", 20.into()),
            ("limits.unreachable_before_submit_s", 5.into()),
            ("limits.max_running_per_box", 64.into()),
            ("ssh.connect_timeout_s", 3.into()),
            ("ssh.connect_attempts", 1.into()),
        ];
        let stage = Stage::configured(SandboxOptions::default(), &settings).await;
        let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
        stage.completed(&id).await;
        let idle = stage.service.memory("VmRSS");
        let hostile = Sandbox::start(SandboxOptions::default()).await.unwrap();
        Self { before: files_below(&stage), stage, hostile, idle }
    }

    /// A request to the ComfyUI on this port of the hostile box.
    pub(crate) fn request(&self, port: u16) -> Value {
        let mut request = self.stage.request(&graphs::slow(&tag(), 1, 1));
        request["ssh_connection"] = json!(self.hostile.ssh_connection());
        request["comfyui_port"] = json!(port);
        request["comfyui_input_dir"] = json!(self.hostile.input_dir());
        request["comfyui_output_dir"] = json!(self.hostile.output_dir());
        request
    }

    /// Runs a workflow on a hostile ComfyUI to its end.
    pub(crate) async fn run(&self, port: u16) -> Value {
        self.ended(&self.stage.service.client().accepted(&self.request(port)).await).await
    }

    /// Waits for the end of a workflow on a hostile box, while another one runs on the honest box as if nothing were.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let honest = self.stage.start(&graphs::slow(&tag(), 2, 10)).await;
        self.stage.service.client().wait_for_status(&honest, "completed", PATIENCE).await;
        self.stage.service.client().wait_for_end(id, IN_THE_END).await
    }

    /// Demands that a workflow failed for one of these reasons, and says so in a readable sentence.
    pub(crate) fn assert_failed(&self, failed: &Value, codes: &[&str]) {
        let code = failed["error_code"].as_str().unwrap_or_else(|| panic!("no failure: {failed:#}"));
        assert!(failed["status"] == "failed" && codes.contains(&code), "{codes:?}: {failed:#}");
        let message = failed["error_message"].as_str().unwrap();
        assert!(!message.is_empty() && message.chars().count() < LONGEST_MESSAGE, "{} bytes", message.len());
        assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "{message:?}");
    }

    /// Demands that the service has stayed within its memory, wrote no file but the honest box's and those named, and no
    /// line of the log that somebody else wrote.
    pub(crate) fn assert_held(&self, named: &[&str]) {
        let most = self.stage.service.memory("VmHWM");
        assert!(most < self.idle + ALLOWANCE, "{} MiB idle, {} MiB at most", self.idle >> 20, most >> 20);
        let new: BTreeSet<PathBuf> = files_below(&self.stage).difference(&self.before).cloned().collect();
        let outputs = self.stage.service.output_dir();
        let found: BTreeSet<String> = new
            .iter()
            .map(|path| path.strip_prefix(&outputs).unwrap_or(path).to_string_lossy().into_owned())
            .filter(|name| !name.ends_with("_slow_00001_.png"))
            .collect();
        assert_eq!(found, named.iter().map(|name| (*name).to_owned()).collect());
        let log = self.stage.service.log();
        assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "the log has control characters");
        let foreign = log.lines().find(|line| !line.starts_with("20") && !line.contains("comfy-remote"));
        assert_eq!(foreign, None, "a line that is no event");
    }
}

/// Every file in the service's folder, but for its own state and what the tests put there.
fn files_below(stage: &Stage) -> BTreeSet<PathBuf> {
    let root = stage.service.folder();
    let (mut files, mut folders) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    files.retain(|path| !path.starts_with(root.join("state")) && (path.parent() != Some(root)));
    files
}
