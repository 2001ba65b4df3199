//! `comfy-remote convert`, as a user runs it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

const DEFINITIONS: &str = r#"{
    "Loader": {"input": {"required": {"name": [["a"]], "strength": ["FLOAT", {"default": 1, "max": Infinity}]}}, "output": ["MODEL"]},
    "Odd": {"input": null, "output": [NaN]}
}"#;

fn convert(folder: &Path, workflow: &[u8]) -> Output {
    fs::write(folder.join("workflow"), workflow).unwrap();
    fs::write(folder.join("object_info.json"), DEFINITIONS).unwrap();
    Command::new(env!("CARGO_BIN_EXE_comfy-remote"))
        .args(["convert", "workflow", "--object-info", "object_info.json"])
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Without definitions.
fn convert_alone(folder: &Path, workflow: &[u8]) -> Output {
    fs::write(folder.join("workflow"), workflow).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
    command.args(["convert", "workflow"]).current_dir(folder).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_prompt_goes_to_standard_output_and_what_to_know_to_standard_error() {
    let folder = TempDir::new().unwrap();
    let ui =
        json!({"nodes": [{"id": 1, "type": "Loader", "title": "My loader", "widgets_values": ["b"]}], "links": []});
    let output = convert(folder.path(), ui.to_string().as_bytes());
    assert!(output.status.success(), "{}", told(&output));
    let prompt: Value = serde_json::from_slice(&output.stdout).unwrap();
    let inputs = json!({"name": "b", "strength": 1});
    assert_eq!(prompt, json!({"1": {"inputs": inputs, "class_type": "Loader", "_meta": {"title": "My loader"}}}));
    let warning = "warning: node 1 (My loader, Loader): 1 of its values are not in the file and have their defaults; ";
    assert!(told(&output).starts_with(warning), "{}", told(&output));
}

#[test]
fn a_file_in_api_format_comes_out_as_it_is() {
    let folder = TempDir::new().unwrap();
    let api = json!({"1": {"class_type": "Unheard of", "inputs": {"seed": u64::MAX}}});
    let envelope = json!({"prompt": api}).to_string();
    for output in [convert(folder.path(), envelope.as_bytes()), convert_alone(folder.path(), envelope.as_bytes())] {
        assert!(output.status.success(), "{}", told(&output));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), api);
        assert_eq!(told(&output), "");
    }
}

#[test]
fn a_file_in_ui_format_needs_definitions_that_are_some() {
    let folder = TempDir::new().unwrap();
    let ui = json!({"nodes": [{"id": 1, "type": "Loader"}], "links": []}).to_string();
    let output = convert_alone(folder.path(), ui.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(told(&output), "comfy-remote: workflow is in UI format, which takes --object-info\n");
    for other in [ui.as_str(), r#"{"1": {"class_type": "Loader", "inputs": {"name": "a"}}}"#, "{}"] {
        fs::write(folder.path().join("other.json"), other).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
        command.args(["convert", "workflow", "--object-info", "other.json"]).current_dir(folder.path());
        let output = command.output().unwrap();
        let expected = "comfy-remote: other.json holds no node definitions: it is not what ComfyUI answers to GET \
                        /object_info\n";
        assert_eq!((output.status.code(), told(&output).as_str()), (Some(1), expected), "{other}");
    }
}

#[test]
fn what_cannot_be_converted_is_told_by_node_and_ends_in_failure_without_output() {
    let folder = TempDir::new().unwrap();
    let gone = |id: u64| json!({"id": id, "type": "Gone", "inputs": [{"name": "x", "type": "*"}]});
    let ui = json!({"nodes": [gone(1)], "links": []});
    let output = convert(folder.path(), ui.to_string().as_bytes());
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let told = told(&output);
    assert!(told.starts_with("error: node 1 (Gone): the class Gone is not among the node definitions; "), "{told}");
    assert!(told.ends_with("\ncomfy-remote: workflow cannot be converted: there is 1 error, named above\n"), "{told}");
    let ui = json!({"nodes": [gone(1), gone(2)], "links": []});
    let told = self::told(&convert(folder.path(), ui.to_string().as_bytes()));
    assert!(
        told.ends_with("\ncomfy-remote: workflow cannot be converted: there are 2 errors, named above\n"),
        "{told}"
    );
    for node in ["node 1", "node 2"] {
        assert_eq!(told.matches(node).count(), 1, "{told}");
    }
}

#[test]
fn other_files_are_refused_with_what_they_are() {
    let folder = TempDir::new().unwrap();
    let output = convert(folder.path(), b"[1, 2]");
    assert!(!output.status.success());
    assert!(told(&output).starts_with("comfy-remote: workflow holds no workflow: "), "{}", told(&output));
}
