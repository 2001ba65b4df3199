//! `comfy-remote check`: a look at a workflow and a box, for people and for scripts.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::value_parser;
use comfy_remote::{
    app,
    config::Config,
    runner::{DryRun, ExecuteRequest},
    text::one_line,
    workflow::{Edits, Severity},
};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{document, line};

/// The check could not be made.
pub(crate) const NOT_CHECKED: u8 = 2;

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
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A value to be set before the run, such as "6.text=a cat" or "Sampler.steps=30": JSON, or else text. May be given
    /// several times.
    #[arg(long = "parameter", value_name = "NODE.INPUT=VALUE", value_parser = parameter)]
    parameters: Vec<(String, Value)>,
    /// Seeds would get new values before the run.
    #[arg(long)]
    randomize_seeds: bool,
    /// Where outputs would land, in place of [defaults] output_dir.
    #[arg(long, value_name = "FOLDER")]
    output_dir: Option<String>,
    /// ComfyUI's input folder on the box, in place of [defaults] comfyui_input_dir.
    #[arg(long, value_name = "FOLDER")]
    comfyui_input_dir: Option<String>,
    /// ComfyUI's output folder on the box, in place of [defaults] comfyui_output_dir.
    #[arg(long, value_name = "FOLDER")]
    comfyui_output_dir: Option<String>,
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
                if let (Some(answer), Ok(Value::Object(plan))) = (answer.as_object_mut(), serde_json::to_value(&plan)) {
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
        output_dir: args.output_dir.clone(),
        comfyui_input_dir: args.comfyui_input_dir.clone(),
        comfyui_output_dir: args.comfyui_output_dir.clone(),
        edits: Edits { parameters: args.parameters.iter().cloned().collect(), randomize_seeds: args.randomize_seeds },
        ..ExecuteRequest::default()
    };
    app::check(&config, request).await.map_err(|error| one_line(&error.to_string()))
}

/// The value as JSON, or else as the text that it is.
fn parameter(given: &str) -> Result<(String, Value), String> {
    let (name, value) = given.split_once('=').ok_or("it has no = between name and value")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

fn tell(file: &str, plan: &DryRun, out: &mut impl Write) -> io::Result<()> {
    for warning in &plan.warnings {
        line(out, &format!("note: {warning}"))?;
    }
    for finding in &plan.findings {
        line(out, &format!("{}: {finding}", finding.severity.as_str()))?;
    }
    if !plan.valid {
        let errors = plan.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let s = if errors == 1 { "" } else { "s" };
        return line(out, &format!("{file} would not run: {errors} error{s}"));
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
    line(out, &format!("{file} would run: {} nodes", plan.nodes.len()))
}
