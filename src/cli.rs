//! What a command does that is done at once, without the service.

mod check;

pub(crate) use check::{CheckArgs, NOT_CHECKED, check};

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use comfy_remote::{
    convert::{
        Conversion, ConvertError, Finding, NodeDefinitions, Options, Severity, convert as convert_ui,
        extract::{Workflow, extract},
    },
    text::{escaped, escaped_json},
};
use serde_json::Value;

#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// The workflow: JSON as ComfyUI saves it, or a PNG or WebP picture that it wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The box's node definitions: the answer of its GET /object_info. Needed for a workflow in UI format.
    #[arg(long, value_name = "FILE")]
    object_info: Option<PathBuf>,
}

/// Converts a file: the prompt to `out`, findings to `err`, one a line.
///
/// # Errors
/// When there is no conversion; what stopped it is on `err` where it is about nodes.
pub(crate) fn convert(args: &ConvertArgs, out: &mut impl Write, err: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let about_file = |error: &dyn Error| format!("{} {error}", args.file.display());
    let found = extract(&read(&args.file)?).map_err(|error| about_file(&error))?;
    let prompt = match found.workflow {
        Workflow::Api(prompt) => prompt,
        Workflow::Ui(ui) => {
            let definitions = match &args.object_info {
                Some(file) => definitions_in(file)?,
                None => {
                    return Err(format!("{} is in UI format, which takes --object-info", args.file.display()).into());
                }
            };
            let (prompt, findings) = match convert_ui(&ui, &definitions, &now()) {
                Ok(Conversion { prompt, findings, .. }) => (Some(prompt), findings),
                Err(ConvertError::Refused(findings)) => (None, findings),
                Err(other) => return Err(about_file(&other).into()),
            };
            for finding in &findings {
                line(err, &format!("{}: {finding}", finding.severity.as_str()))?;
            }
            prompt.ok_or_else(|| format!("{} cannot be converted: {}", args.file.display(), counted(&findings)))?
        }
    };
    document(out, &Value::Object(prompt))?;
    Ok(())
}

/// Writes one line, which stays one and commands no terminal, whatever others have named in it.
fn line(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{}", escaped(text))
}

/// Writes JSON, which likewise commands no terminal.
fn document(out: &mut impl Write, document: &Value) -> io::Result<()> {
    writeln!(out, "{}", escaped_json(&format!("{document:#}")))
}

fn definitions_in(file: &Path) -> Result<NodeDefinitions, String> {
    let none = |why: &str| format!("{} holds no node definitions: {why}", file.display());
    let definitions = NodeDefinitions::parse(&read(file)?).map_err(|error| none(&error.to_string()))?;
    if definitions.tell_nothing() {
        return Err(none("it is not what ComfyUI answers to GET /object_info"));
    }
    Ok(definitions)
}

/// How many errors there are. Each has been told already.
fn counted(findings: &[Finding]) -> String {
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        1 => "there is 1 error, named above".to_owned(),
        count => format!("there are {count} errors, named above"),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("could not read {}: {error}", path.display()))
}

fn now() -> Options {
    Options { now: Some(chrono::Local::now().naive_local()), seed: uuid::Uuid::new_v4().as_u64_pair().0 }
}
