//! What goes wrong, in every phase of a run. `docs/FAULTS.md` shows the table.
//!
//! Each cell of the table is a test named after its phase and its accident (`faults::running::silent_drop`): a workflow
//! is held in the phase, the accident happens and passes, the workflow is let go, and its end is judged: the content of
//! each output, that it ran once, and what was said meanwhile. The far end is a real sshd in front of the sandbox's
//! engine, with a chaos proxy between it and the service.

mod accident;
mod phase;
mod stage;

use serde_json::{Value, json};

use crate::sandbox_stage::PATIENCE;
use accident::Accident;
use phase::Phase;
use stage::Stage;

/// How a workflow ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `completed`, after exactly one run, with every output here as it is on the box.
    Completed,
    /// `cancelled`, and nothing runs on the box.
    Cancelled,
    /// `failed` with `job_lost`: ComfyUI has forgotten the prompt.
    JobLost,
}

impl Outcome {
    /// What becomes of a workflow that is in this phase when this happens.
    pub(crate) fn of(phase: Phase, accident: Accident) -> Self {
        use Accident::{ComfyuiKilled, ComfyuiRestarted};
        use Phase::{Queued, Running, Submitting};
        match (phase, accident) {
            (Phase::Cancelling, _) => Self::Cancelled,
            (Submitting | Queued | Running, ComfyuiKilled | ComfyuiRestarted) => Self::JobLost,
            _ => Self::Completed,
        }
    }
}

/// Declares a test for each phase and accident, and the lists of both.
macro_rules! table {
    (phases: [$($phase:ident $name:ident),*], accidents: $accidents:tt) => {
        pub(crate) const PHASES: &[(&str, Phase)] = &[$((stringify!($name), Phase::$phase)),*];
        table!(@list $accidents);
        $(table!(@phase $phase $name $accidents);)*
    };
    (@list [$($accident:ident $name:ident),*]) => {
        pub(crate) const ACCIDENTS: &[(&str, Accident)] = &[$((stringify!($name), Accident::$accident)),*];
    };
    (@phase $phase:ident $phase_name:ident [$($accident:ident $name:ident),*]) => {
        mod $phase_name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $name() {
                    super::play(super::Phase::$phase, super::Accident::$accident).await;
                }
            )*
        }
    };
}

table! {
    phases: [
        Connecting connecting,
        Uploading uploading,
        Submitting submitting,
        Queued queued,
        Running running,
        Downloading downloading,
        Cancelling cancelling
    ],
    accidents: [
        ServiceKilled service_killed,
        ServiceStopped service_stopped,
        ServiceAsleep service_asleep,
        SshdKilled sshd_killed,
        SshdPaused sshd_paused,
        Refused refused,
        Stalled stalled,
        Cut cut,
        SilentDrop silent_drop,
        Delay delay,
        ComfyuiKilled comfyui_killed,
        ComfyuiRestarted comfyui_restarted,
        ComfyuiHung comfyui_hung
    ]
}

async fn play(phase: Phase, accident: Accident) {
    let Some(mut stage) = Stage::new().await else { return };
    let held = phase.enter(&stage).await;
    let id = held.id.clone();
    accident.happen(&mut stage, &id, phase).await;
    if accident.outlasts_the_phase() {
        held.release(&stage).await;
        accident.pass(&mut stage, &id).await;
    } else {
        accident.pass(&mut stage, &id).await;
        if accident.blocks_the_road() && phase != Phase::Connecting {
            stage.wait_for_connection(&id, "connected").await;
        }
        held.release(&stage).await;
    }
    let end = stage.service.client().wait_for_end(&id, PATIENCE).await;
    stage.judge(&end, Outcome::of(phase, accident));
    if accident == Accident::Delay {
        let logins = stage.sshd.log().matches("Accepted publickey").count();
        assert!(logins <= 2, "late is not lost:\n{}", stage.sshd.log());
    }
    if phase == Phase::Uploading {
        stage.judge_upload();
    }
}

impl Stage {
    fn judge(&self, end: &Value, outcome: Outcome) {
        let engine = self.sandbox.engine();
        assert_eq!((&end["attempt"], &end["connection"]), (&json!(1), &Value::Null), "{end:#}");
        match outcome {
            Outcome::Completed => {
                assert_eq!((&end["status"], self.runs()), (&json!("completed"), 1), "{end:#}");
                self.judge_outputs(end);
            }
            Outcome::Cancelled => {
                assert_eq!((&end["status"], &end["cancel_requested"]), (&json!("cancelled"), &json!(true)), "{end:#}");
                assert_eq!((engine.running(), engine.pending()), (None, vec![]));
            }
            Outcome::JobLost => {
                assert_eq!((&end["status"], &end["error_code"]), (&json!("failed"), &json!("job_lost")), "{end:#}");
                let message = end["error_message"].as_str().expect("a message");
                assert!(message.starts_with("the box ") && message.contains(" the prompt"), "{message}");
                assert_eq!((engine.running(), engine.pending(), self.sent()), (None, vec![], 1), "not sent again");
            }
        }
    }
}
