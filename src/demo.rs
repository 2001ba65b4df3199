//! The main job without a GPU machine: a sandbox stands in for the box, and a workflow goes there and back.
//!
//! It uses the service exactly as a client would, over HTTP. State, keys and inputs lie in a temporary folder that is
//! removed at the end; only the output folder stays.

mod bars;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bars::Bars;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    app::{self, Service, StartError},
    config::{Config, ConfigError, LogLevel},
    sandbox::{Sandbox, SandboxError, SandboxOptions},
    telemetry::{self, TelemetryError},
};

const WORKFLOW: &[u8] = include_bytes!("../examples/workflows/demo.json");
const PHOTO: &[u8] = include_bytes!("../examples/photo.png");

/// How often the progress is asked for.
const POLL: Duration = Duration::from_millis(100);

/// The run takes a few seconds; past this something is broken.
const DEADLINE: Duration = Duration::from_secs(120);

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct Options {
    /// End after the run instead of serving until Ctrl-C.
    pub once: bool,
    /// Where the output lands.
    pub output: PathBuf,
    /// Where the service listens.
    pub bind: SocketAddr,
}

/// Why the demo did not come to its end.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the variants say what they wrap")]
pub enum DemoError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Service(#[from] StartError),
    #[error("could not prepare the demo's files: {0}")]
    Files(#[from] io::Error),
    #[error("the service did not answer: {0}")]
    Http(#[from] reqwest::Error),
    #[error("{0}")]
    Failed(String),
}

/// Runs the example workflow and, unless told otherwise, serves until Ctrl-C.
///
/// # Errors
/// When anything but success comes of it.
pub async fn run(options: Options) -> Result<(), DemoError> {
    let folder = tempfile::Builder::new().prefix("comfy-remote-demo-").tempdir()?;
    let sandbox = Sandbox::start(SandboxOptions::default()).await?;
    // Empty, so that nothing in ~/.ssh/config applies to the sandbox.
    fs::write(folder.path().join("ssh_config"), "")?;
    let config = config(folder.path(), &options)?;
    let _flush = telemetry::init(&config.log)?;
    let service = Service::start(&config).await?;
    let base = format!("http://{}", service.address());
    say(&format!("The service listens on {base}; the sandbox plays the GPU machine:"));
    say(&format!("  {}", sandbox.ssh_connection()));
    let ended = tokio::select! {
        ended = run_example(&base, &sandbox, folder.path(), &options.output) => ended,
        signal = app::stop_signal() => Err(signal.err().map_or(DemoError::Failed("interrupted".into()), Into::into)),
    };
    if ended.is_ok() && !options.once {
        invite(&base, &sandbox, folder.path());
        app::stop_signal().await?;
    }
    service.stop().await;
    sandbox.stop().await;
    ended
}

async fn run_example(base: &str, sandbox: &Sandbox, folder: &Path, output: &Path) -> Result<(), DemoError> {
    let (workflow, photo) = (folder.join("demo.json"), folder.join("photo.png"));
    fs::write(&workflow, WORKFLOW)?;
    fs::write(&photo, PHOTO)?;
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
    let request = json!({
        "ssh_connection": sandbox.ssh_connection(),
        "workflow_file": workflow,
        "workflow_name": "Demo",
        "input_images": [photo],
        "output_dir": std::path::absolute(output)?,
        "comfyui_port": sandbox.comfyui_port(),
        "comfyui_input_dir": sandbox.input_dir(),
        "comfyui_output_dir": sandbox.output_dir(),
    });
    let started: Value =
        client.post(format!("{base}/comfyui/workflow/execute")).json(&request).send().await?.json().await?;
    let id = text(&started["workflow_id"])
        .filter(|_| started["success"] == json!(true))
        .ok_or_else(|| DemoError::Failed(text(&started["message"]).unwrap_or("no answer").to_owned()))?;
    say(&format!("Workflow {id} is accepted."));
    let progress = follow(&client, &format!("{base}/comfyui/workflow/{id}/progress")).await?;
    if progress["status"] != "completed" {
        let message = text(&progress["error_message"]).unwrap_or("the workflow was stopped");
        return Err(DemoError::Failed(message.to_owned()));
    }
    for output in progress["outputs"].as_array().into_iter().flatten() {
        say(&format!("Output: {}", text(&output["local_path"]).unwrap_or("not downloaded")));
    }
    Ok(())
}

/// Draws the progress until the status is final.
async fn follow(client: &reqwest::Client, url: &str) -> Result<Value, DemoError> {
    let deadline = Instant::now() + DEADLINE;
    let mut bars = Bars::new();
    while Instant::now() < deadline {
        let mut answer: Value = client.get(url).send().await?.json().await?;
        let progress = answer["progress"].take();
        bars.draw(&progress);
        if matches!(text(&progress["status"]), Some("completed" | "failed" | "cancelled")) {
            return Ok(progress);
        }
        tokio::time::sleep(POLL).await;
    }
    Err(DemoError::Failed(format!("the workflow did not end within {} s", DEADLINE.as_secs())))
}

/// The shipped defaults, with everything that leaves a trace in the temporary folder.
fn config(folder: &Path, options: &Options) -> Result<Config, DemoError> {
    let mut config = Config::defaults()?;
    config.server.bind = options.bind;
    config.state.file = folder.join("state.json");
    config.ssh.known_hosts = folder.join("known_hosts");
    config.ssh.use_agent = false;
    config.defaults.output_dir = std::path::absolute(&options.output)?.display().to_string();
    config.ssh.config_file = Some(folder.join("ssh_config"));
    config.log.level = LogLevel::Warn;
    Ok(config)
}

fn invite(base: &str, sandbox: &Sandbox, folder: &Path) {
    say(&format!(
        "\nThe service and its sandbox go on until Ctrl-C. Try:\n\n  curl -s {base}/comfyui/workflow/state\n\n  \
         curl -s {base}/comfyui/workflow/execute -H 'Content-Type: application/json' -d '{{\n    \
         \"ssh_connection\": \"{}\",\n    \"workflow_file\": \"{}\",\n    \"input_images\": [\"{}\"],\n    \
         \"comfyui_port\": {},\n    \"comfyui_input_dir\": \"{}\",\n    \"comfyui_output_dir\": \"{}\"\n  }}'\n",
        sandbox.ssh_connection(),
        folder.join("demo.json").display(),
        folder.join("photo.png").display(),
        sandbox.comfyui_port(),
        sandbox.input_dir().display(),
        sandbox.output_dir().display(),
    ));
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

#[expect(clippy::print_stdout, reason = "what the demo is for")]
fn say(line: &str) {
    println!("{line}");
}
