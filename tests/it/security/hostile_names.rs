//! Names that a box gives its files, and links where they are to lie: nothing is written elsewhere.

use std::{fs, os::unix::fs::symlink};

use axum::response::IntoResponse;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{
    impostor::{Impostor, files, history},
    siege::Siege,
};

fn file(filename: &str, subfolder: &str) -> Value {
    json!({"images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]})
}

async fn run_all(siege: &Siege, outputs: impl IntoIterator<Item = Value>) -> Vec<Value> {
    join_all(outputs.into_iter().map(async |output| {
        let port = Impostor::with_outputs(output).serve().await;
        siege.run(port).await
    }))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_lead_elsewhere_are_refused_and_nothing_is_written() {
    let siege = Siege::begin().await;
    let (long, deep) = ("x".repeat(5000), "d/".repeat(40));
    let names = [
        "..",
        ".",
        "../escaped.png",
        "/escaped.png",
        "a/../../escaped.png",
        "..\\escaped.png",
        "C:\\escaped.png",
        "a\0b.png",
        "a\nINFO all is well.png",
        "a\u{1b}[2J.png",
        "a\u{7f}.png",
        "a\u{9b}31m.png",
        ".comfyui_workflow_1_00000000-0123456789abcdef-0123456789abcdef.part",
        ".x.PART",
        &long,
    ];
    let folders = ["..", "a/../../b", "/tmp", "a/..", "..\\..", "a\0b", "a\nb", ".x.part", &long, &deep];
    let outputs = names.iter().map(|name| file(name, "")).chain(folders.iter().map(|folder| file("a.png", folder)));
    for failed in run_all(&siege, outputs).await {
        siege.assert_failed(&failed, &["path_refused"]);
        assert_eq!(failed["outputs"][0]["local_path"], Value::Null, "{failed:#}");
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_only_look_odd_lie_side_by_side_with_their_own_content() {
    let siege = Siege::begin().await;
    let names = [
        "A.png",
        "a.png",
        "\u{430}.png",
        "\u{e9}.png",
        "e\u{301}.png",
        "CON",
        "nul.png",
        "b.png.",
        "b.png ",
        " b.png",
        "...",
        "~",
        "-rf",
        "%2e%2e%2fc.png",
        "$(reboot).png",
        "*",
        "[output]",
    ];
    let port = Impostor::with_outputs(files(&names)).serve().await;
    let done = siege.run(port).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    let mut contents: Vec<String> =
        names.iter().map(|name| fs::read_to_string(siege.stage.service.output_dir().join(name)).unwrap()).collect();
    contents.sort();
    contents.dedup();
    assert_eq!(contents.len(), names.len(), "each has the content of its own name");
    siege.assert_held(&names);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_half_characters_is_a_name() {
    let siege = Siege::begin().await;
    // So Python writes a name that is no UTF-8.
    let impostor = Impostor::new().lying("/history", |asked| {
        history(&asked.prompt_id, &files(&["HALF.png"])).to_string().replace("HALF", "\\udcff\\ud800").into_response()
    });
    let done = siege.run(impostor.serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    siege.assert_held(&["\u{fffd}\u{fffd}.png"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_types_are_outputs_and_uploads_are_none() {
    let siege = Siege::begin().await;
    let of_type = |kind: Value| json!({"images": [{"filename": "a.png", "subfolder": "", "type": kind}]});
    let strange = [json!("../.."), json!("OUTPUT"), json!(3), json!(null), json!(["temp"])];
    for done in run_all(&siege, strange.map(of_type)).await {
        assert_eq!((&done["status"], &done["outputs"][0]["filename"]), (&json!("completed"), &json!("a.png")));
    }
    let done = &run_all(&siege, [of_type(json!("input")), json!({"images": [{"filename": ""}]})]).await[0];
    assert_eq!((&done["status"], &done["outputs"]), (&json!("completed"), &json!([])), "{done:#}");
    siege.assert_held(&["a.png"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_appears_under_the_name_of_a_file_is_not_written_through() {
    let siege = Siege::begin().await;
    let outputs = siege.stage.service.output_dir();
    let precious = siege.stage.service.folder().join("precious");
    fs::write(&precious, "mine").unwrap();
    let (link, target) = (outputs.join("a.png"), precious.clone());
    // It appears when the service is about to fetch the file.
    let impostor = Impostor::with_outputs(files(&["a.png"])).lying("/view?filename=a.png", move |asked| {
        if asked.is_head && !link.is_symlink() {
            symlink(&target, &link).unwrap();
        }
        "from the box".into_response()
    });
    let done = siege.run(impostor.serve().await).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    assert_eq!(done["outputs"][0]["local_path"], json!(outputs.join("a-2.png")));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    siege.assert_held(&["a.png", "a-2.png"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_on_the_box_brings_what_it_leads_to_into_the_output_folder_only() {
    let siege = Siege::begin().await;
    let link = siege.hostile.output_dir().join("link.txt");
    symlink("/etc/hostname", &link).unwrap();
    let report = files(&["link.txt"]).to_string();
    let graph = json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report}}});
    let mut request = siege.request(siege.hostile.comfyui_port());
    request["workflow_file"] = siege.stage.request(&graph)["workflow_file"].take();
    let ended = siege.ended(&siege.stage.service.client().accepted(&request).await).await;
    let named: &[&str] = if ended["status"] == "completed" { &["link.txt"] } else { &[] };
    siege.assert_held(named);
}
