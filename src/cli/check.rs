//! `comfy-remote check`: a look at a workflow and a box, for people and for scripts.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use comfy_remote::{
    app,
    config::Config,
    runner::{DryRun, ExecuteRequest},
    text::one_line,
    workflow::Severity,
};
use indicatif::HumanBytes;
use serde_json::json;

use super::{document, line};

/// The check could not be made.
const NOT_CHECKED: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The workflow: JSON in either of ComfyUI's formats, or a PNG or WebP picture that it wrote.
    #[arg(value_name = "FILE")]
    file: String,
    /// How to reach the box, as the provider shows it: "ssh -p 40001 root@203.0.113.7".
    #[arg(long, value_name = "COMMAND")]
    ssh: String,
    /// An input file that would come with the workflow; may be given several times.
    #[arg(short = 'i', long = "image", value_name = "FILE")]
    images: Vec<String>,
    /// ComfyUI's port on the box, in place of [defaults] comfyui_port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Print what POST /comfyui/workflow/execute with "dry_run" answers.
    #[arg(long)]
    json: bool,
    /// The configuration file [default: ./config.toml, if there is one].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// Checks a workflow; the result goes to `out`, and why there is none to `err`.
///
/// # Errors
/// When the result can't be written.
pub(crate) async fn check(args: &CheckArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<ExitCode> {
    match look(args).await {
        Ok(plan) => {
            if args.json {
                let mut answer = json!({"success": true, "dry_run": true});
                if let (Some(answer), Ok(serde_json::Value::Object(plan))) =
                    (answer.as_object_mut(), serde_json::to_value(&plan))
                {
                    answer.extend(plan);
                }
                document(out, &answer)?;
            } else {
                tell(&args.file, &plan, out)?;
            }
            Ok(if plan.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(message) => {
            if args.json {
                document(out, &json!({"success": false, "message": message}))?;
            }
            line(err, &format!("comfy-remote: {message}"))?;
            Ok(ExitCode::from(NOT_CHECKED))
        }
    }
}

async fn look(args: &CheckArgs) -> Result<DryRun, String> {
    let config = Config::load(args.config.as_deref()).map_err(|error| error.to_string())?;
    let request = ExecuteRequest {
        ssh_connection: args.ssh.clone(),
        workflow_file: args.file.clone(),
        input_images: args.images.clone(),
        comfyui_port: args.port,
        ..ExecuteRequest::default()
    };
    app::check(&config, request).await.map_err(|error| one_line(&error.to_string()))
}

fn tell(file: &str, plan: &DryRun, out: &mut impl Write) -> io::Result<()> {
    for warning in &plan.warnings {
        line(out, &format!("note: {warning}"))?;
    }
    for finding in &plan.findings {
        line(out, &format!("{}: {finding}", finding.severity.as_str()))?;
    }
    for node in &plan.nodes {
        let title = node.title.as_deref().filter(|title| *title != node.node_type);
        let title = title.map(|title| format!(" ({title})")).unwrap_or_default();
        line(out, &format!("would run: {} {}{title}", node.node_id, node.node_type))?;
    }
    for upload in &plan.uploads {
        let (local, remote, size) = (upload.local_path.display(), &upload.remote_name, HumanBytes(upload.bytes));
        let how = if upload.already_there { "is on the box already" } else { "would be uploaded" };
        line(out, &format!("input: {local} ({size}) {how} as {remote}"))?;
    }
    for output in &plan.outputs {
        line(out, &format!("output: of {} {} in {}", output.node_id, output.node_type, output.folder.display()))?;
    }
    let errors = plan.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match (plan.valid, errors) {
        (true, _) => line(out, &format!("{file} would run: {} nodes", plan.nodes.len())),
        (false, 1) => line(out, &format!("{file} would not run: 1 error")),
        (false, errors) => line(out, &format!("{file} would not run: {errors} errors")),
    }
}
