//! What a cancel leaves behind in the phases of a run, and other things that depend on the phase. Accidents are in `faults`.

use std::{fs, path::PathBuf, time::Duration};

use comfy_remote::sandbox::LostAnswer;
use serde_json::{Value, json};

use crate::{
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
};

/// Takes seconds to move, also on loopback.
const BIG: u64 = 60_000_000;

impl Stage {
    /// A workflow with an input that takes a while to upload.
    async fn start_with_big_input(&self) -> String {
        let input = self.service.folder().join("big.bin");
        fs::write(&input, vec![7; BIG as usize]).unwrap();
        let mut request = self.request(&graphs::slow(&tag(), 1, 1));
        request["input_images"] = json!([input]);
        self.service.client().accepted(&request).await
    }

    /// A workflow with an output that takes a while to download.
    async fn start_with_big_output(&self) -> String {
        let report = json!({"images": [{"filename": "big.bin", "subfolder": "", "type": "output", "_size": BIG}]});
        let graph = json!({"1": {"class_type": "SandboxFiles", "inputs": {"report": report.to_string()}}});
        self.service.client().accepted(&self.request(&graph)).await
    }

    async fn in_phase(&self, id: &str, phase: &str) {
        self.service.client().wait_for(id, phase, PATIENCE, |progress| progress["phase"] == phase).await;
    }

    async fn cancelled(&self, id: &str) -> Value {
        let (status, answer) = self.service.client().cancel(id).await;
        assert_eq!((status.as_u16(), &answer["success"]), (200, &json!(true)), "{answer}");
        self.service.client().wait_for_status(id, "cancelled", PATIENCE).await
    }

    /// Files of the box's input folder whose upload never ended.
    fn parts_on_the_box(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.sandbox.input_dir()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().ends_with(".part")).collect()
    }
}

#[tokio::test]
async fn a_kill_with_a_cancel_under_way() {
    let mut stage = Stage::new().await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1).stubborn();
    let id = stage.service.client().accepted(&stage.request(&graphs::slow(&tag(), 3000, 10))).await;
    hold.reached().await;
    stage.in_phase(&id, "running").await;
    assert_eq!(stage.service.client().cancel(&id).await.0.as_u16(), 200);
    // Right after the answer: what it promises must be on disk by then.
    stage.service.kill();
    stage.service.launch();
    let under_way = stage.service.client().progress(&id).await;
    assert_eq!((&under_way["status"], &under_way["cancel_requested"]), (&json!("executing"), &json!(true)));
    hold.release();
    stage.service.client().wait_for_status(&id, "cancelled", PATIENCE).await;
    assert_eq!(stage.sandbox.engine().running(), None);
}

#[tokio::test]
async fn a_cancel_while_uploading_stops_at_once_and_leaves_nothing_on_the_box() {
    let mut stage = Stage::new().await;
    let id = stage.start_with_big_input().await;
    stage.in_phase(&id, "uploading").await;
    stage.cancelled(&id).await;
    // The clean-up behind it is over once the service has stopped.
    assert!(stage.service.terminate(Duration::from_secs(10)).success());
    assert_eq!((stage.parts_on_the_box(), stage.sandbox.engine().submissions()), (vec![], 0));
}

#[tokio::test]
async fn a_cancel_while_downloading_ends_cancelled_and_keeps_no_half_file() {
    let stage = Stage::new().await;
    let id = stage.start_with_big_output().await;
    stage.in_phase(&id, "downloading").await;
    let cancelled = stage.cancelled(&id).await;
    assert_eq!(cancelled["outputs"][0]["downloaded"], false);
    assert_eq!(fs::read_dir(stage.service.output_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_part_refused_in_a_lost_answer_is_noticed_all_the_same() {
    let stage = Stage::new().await;
    stage.sandbox.faults().lose_submit_answers(1, LostAnswer::Cut);
    let hold = stage.sandbox.engine().hold_before("1");
    let id = stage.service.client().accepted(&stage.request(&graphs::refused_in_part())).await;
    let failed = stage.service.client().wait_for_end(&id, PATIENCE).await;
    assert_eq!(
        (&failed["status"], &failed["error_code"]),
        (&json!("failed"), &json!("invalid_workflow")),
        "{failed:#}"
    );
    assert!(failed["error_message"].as_str().unwrap().contains("5 (SaveImage)"), "{failed:#}");
    assert_eq!(stage.sandbox.engine().running(), None);
    drop(hold);
}

#[tokio::test]
async fn more_workflows_with_inputs_than_a_box_has_channels_wait_for_none() {
    let stage = Stage::with_settings(&[("limits.max_running_per_box", 13.into())]).await;
    let client = stage.service.client();
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let photo = stage.service.folder().join("photo.png");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &photo).unwrap();
    let request = |steps| {
        let mut request = stage.request(&graphs::slow(&tag(), steps, 1));
        request["input_images"] = json!([photo]);
        request
    };
    let mut ids = vec![client.accepted(&request(3)).await];
    hold.reached().await;
    for _ in 0..12 {
        ids.push(client.accepted(&request(1)).await);
    }
    for id in &ids[1..] {
        stage.in_phase(id, "queued").await;
    }
    hold.release();
    for id in &ids {
        stage.completed(id).await;
    }
}

#[tokio::test]
async fn an_input_with_two_dots_in_its_name_arrives() {
    let stage = Stage::new().await;
    let (tag, photo) = (tag(), stage.service.folder().join("my..photo.png"));
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &photo).unwrap();
    let mut request = stage.request(&graphs::invert(&tag, "my..photo.png"));
    request["input_images"] = json!([photo]);
    let id = stage.service.client().accepted(&request).await;
    assert_eq!(stage.completed(&id).await["warnings"], json!([]));
}
