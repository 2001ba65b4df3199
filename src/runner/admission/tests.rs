use std::fs;

use super::*;
use crate::ssh;

struct Case {
    folder: tempfile::TempDir,
    request: ExecuteRequest,
    least: u64,
}

fn case() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("w.json"), r#"{"1": {"class_type": "A"}}"#).unwrap();
    fs::create_dir(path("other")).unwrap();
    for (name, content) in [("a.png", "1"), ("b.png", "2"), ("other/a.png", "3"), ("other/b.png", "2")] {
        fs::write(path(name), content).unwrap();
    }
    let request = ExecuteRequest {
        ssh_connection: "ssh root@box".into(),
        workflow_file: path("w.json"),
        output_dir: Some(path("new/out")),
        ..ExecuteRequest::default()
    };
    Case { folder, request, least: 0 }
}

impl Case {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn check(&self) -> Result<Admitted, String> {
        let defaults = Defaults {
            comfyui_port: 18188,
            comfyui_input_dir: "/in".into(),
            comfyui_output_dir: "/out".into(),
            output_dir: "/nowhere".into(),
        };
        let options = Options { min_free_bytes: self.least, ..Options::of_a_test(defaults) };
        check_blocking(
            self.request.clone(),
            Purpose::Run,
            &options,
            &Pool::new(ssh::Options::default()).unwrap(),
            &CancellationToken::new(),
        )
    }
}

#[test]
fn what_is_left_out_is_filled_in() {
    let case = case();
    let Admitted { request, .. } = case.check().unwrap();
    assert_eq!((request.workflow_name.as_str(), request.comfyui_port), ("w.json", 18188));
    assert_eq!((request.comfyui_input_dir.as_str(), request.comfyui_output_dir.as_str()), ("/in", "/out"));
    assert!(Path::new(&case.path("new/out")).is_dir());
}

#[test]
fn each_refusal_names_its_file_and_leaves_no_trace() {
    let mut case = case();
    for (content, expected) in [
        (Some(""), "Workflow file {} is empty"),
        (Some("{x"), "Workflow file {} is not JSON: "),
        (Some("x"), "Workflow file {} is neither JSON nor a PNG or WebP picture"),
        (Some("[]"), "Workflow file {} is not a workflow graph: "),
        (None, "Workflow file not found: {}"),
    ] {
        case.request.workflow_file = case.path("bad.json");
        fs::remove_file(case.path("bad.json")).ok();
        if let Some(content) = content {
            fs::write(case.path("bad.json"), content).unwrap();
        }
        let message = case.check().unwrap_err();
        assert!(message.starts_with(&expected.replace("{}", &case.path("bad.json"))), "{message}");
    }
    case.request.workflow_file = case.path("other");
    assert_eq!(case.check().unwrap_err(), format!("Workflow file is a directory: {}", case.path("other")));
    case.request.ssh_connection = "ssh".into();
    assert!(case.check().unwrap_err().starts_with("Invalid ssh_connection: "));
    assert!(!Path::new(&case.path("new")).exists());
}

#[test]
fn images_are_checked_and_same_names_must_be_same_content() {
    let mut case = case();
    case.request.input_images = vec![case.path("a.png"), case.path("gone.png")];
    assert_eq!(case.check().unwrap_err(), format!("Input image not found: {}", case.path("gone.png")));
    case.request
        .input_images
        .extend(["none.png", "gone.png"].map(|name| format!("{}/{name}", case.folder.path().display())));
    let both = format!("Input image not found: {}, {}", case.path("gone.png"), case.path("none.png"));
    assert_eq!(case.check().unwrap_err(), both);
    let more: Vec<String> = (0..10).map(|n| case.path(&format!("none{n}.png"))).collect();
    case.request.input_images.extend(more);
    assert!(case.check().unwrap_err().ends_with("none7.png and 2 more"));
    case.request.input_images = vec![case.path("a.png"), case.path("other/a.png")];
    assert!(case.check().unwrap_err().starts_with("Two input images are named a.png but differ: "));
    case.request.input_images = vec![case.path("b.png"), case.path("other/b.png"), case.path("b.png")];
    assert_eq!(case.check().unwrap().request.input_images.len(), 1);
}

#[test]
fn folders_on_the_box_are_absolute() {
    let mut case = case();
    for (folder, expected) in [
        ("input", "must be an absolute path on the box, such as /workspace/ComfyUI/input: input"),
        (
            "~/in",
            "must be an absolute path on the box, such as /workspace/ComfyUI/input; ~ is not expanded there: ~/in",
        ),
        ("/in\n", "must not contain control characters"),
    ] {
        case.request.comfyui_input_dir = Some(folder.to_owned());
        assert_eq!(case.check().unwrap_err(), format!("Field comfyui_input_dir {expected}"));
    }
    case.request.comfyui_input_dir = None;
    case.request.comfyui_output_dir = Some("~/out".to_owned());
    assert!(case.check().unwrap_err().starts_with("Field comfyui_output_dir must be an absolute path on the box"));
    assert!(!Path::new(&case.path("new")).exists());
}

#[test]
fn a_full_disk_is_refused() {
    let mut case = case();
    case.least = u64::MAX;
    let message = case.check().unwrap_err();
    assert!(
        message.starts_with("the disk has too little room: ") && message.contains(&case.path("new/out")),
        "{message}"
    );
}

#[test]
fn an_output_folder_that_cannot_be_made_is_refused() {
    let mut case = case();
    case.request.output_dir = Some(case.path("a.png"));
    assert_eq!(case.check().unwrap_err(), format!("Output folder is not a folder: {}", case.path("a.png")));
    case.request.output_dir = Some(case.path("a.png/sub"));
    assert!(case.check().unwrap_err().starts_with("Output folder cannot be created: "));
}

#[test]
fn a_request_is_the_same_in_whichever_order_its_parameters_are_given() {
    let request = |names: [&str; 2]| {
        let parameters = names.into_iter().map(|name| (name.to_owned(), serde_json::json!(name))).collect();
        ExecuteRequest { edits: Edits { parameters, randomize_seeds: false }, ..ExecuteRequest::default() }
    };
    assert_eq!(request(["1.a", "2.b"]).fingerprint(), request(["2.b", "1.a"]).fingerprint());
    assert_ne!(request(["1.a", "2.b"]).fingerprint(), request(["1.a", "2.c"]).fingerprint());
}
