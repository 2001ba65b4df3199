//! What happens to a workflow, and how it passes.

use std::time::Duration;

use comfy_remote::sandbox::Direction;

use super::{
    phase::{Phase, until},
    stage::Stage,
};
use crate::support::{client::is_over, sshd::HostKey};

/// How long the service may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// How late bytes are on a slow road, each way.
const LATE: Duration = Duration::from_millis(150);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accident {
    /// `kill -9`, and started again.
    ServiceKilled,
    /// SIGTERM, and started again after the workflow was let go.
    ServiceStopped,
    /// SIGSTOP until sshd has given its connections up: a laptop asleep.
    ServiceAsleep,
    /// sshd and its connections are killed; it is started again when that was noticed.
    SshdKilled,
    /// sshd and its connections hang.
    SshdPaused,
    /// Connections are cut and the port is closed for a while.
    Refused,
    /// Connections are open and nothing moves for a while.
    Stalled,
    /// Connections are reset.
    Cut,
    /// Packets vanish for a while, and connections of before stay half-open.
    SilentDrop,
    /// Everything is late, also while the workflow goes on.
    Delay,
    /// ComfyUI is killed; it is started again when that was noticed.
    ComfyuiKilled,
    /// ComfyUI is killed and started again at once.
    ComfyuiRestarted,
    /// ComfyUI does not answer for a while, also while the workflow goes on.
    ComfyuiHung,
}

impl Accident {
    /// Causes it. Where the way to the box is gone, returns when the service says so.
    pub(super) async fn happen(self, stage: &mut Stage, id: &str, phase: Phase) {
        match self {
            Self::ServiceKilled => stage.service.kill(),
            Self::ServiceStopped => assert!(stage.service.terminate(STOP).success()),
            Self::ServiceAsleep => {
                stage.service.pause();
                until("the end of sshd's connections", || stage.sshd.connections() == 0).await;
            }
            Self::SshdKilled => stage.sshd.stop(),
            Self::SshdPaused => stage.sshd.pause(),
            Self::Refused => {
                stage.proxy.refuse(true);
                stage.proxy.cut();
            }
            Self::Stalled => stage.proxy.stall(true),
            Self::Cut => {
                let before = stage.proxy.accepted();
                stage.proxy.cut();
                until("another connection", || stage.proxy.accepted() > before).await;
            }
            Self::SilentDrop => stage.proxy.drop_silently(true),
            Self::Delay => {
                stage.proxy.delay(Direction::Up, LATE);
                stage.proxy.delay(Direction::Down, LATE);
            }
            Self::ComfyuiKilled => stage.sandbox.engine().kill().await,
            Self::ComfyuiRestarted => stage.sandbox.engine().restart().await.unwrap(),
            Self::ComfyuiHung => stage.sandbox.faults().hang_engine(true),
        }
        let is_missed = self == Self::ComfyuiKilled && matches!(phase, Phase::Queued | Phase::Running);
        if self.blocks_the_road() || is_missed {
            stage.wait_for_connection(id, "reconnecting").await;
        }
    }

    /// Ends it.
    pub(super) async fn pass(self, stage: &mut Stage, id: &str) {
        match self {
            Self::ServiceKilled | Self::ServiceStopped => stage.service.launch(),
            Self::ServiceAsleep => stage.service.resume(),
            Self::SshdKilled => stage.sshd.restart(HostKey::Same),
            Self::SshdPaused => stage.sshd.resume(),
            Self::Refused => stage.proxy.refuse(false),
            Self::Stalled => stage.proxy.stall(false),
            Self::SilentDrop => stage.proxy.drop_silently(false),
            Self::Cut | Self::Delay | Self::ComfyuiRestarted => {}
            Self::ComfyuiKilled => stage.sandbox.engine().revive().await.unwrap(),
            Self::ComfyuiHung => {
                is_asked_in_vain(stage, id).await;
                stage.sandbox.faults().hang_engine(false);
            }
        }
    }

    /// Whether the workflow is let go before it passes.
    pub(super) fn outlasts_the_phase(self) -> bool {
        matches!(self, Self::ServiceStopped | Self::ComfyuiHung)
    }

    /// Whether the service notices that the way to the box is gone.
    pub(super) fn blocks_the_road(self) -> bool {
        matches!(self, Self::SshdKilled | Self::SshdPaused | Self::Refused | Self::Stalled | Self::SilentDrop)
    }
}

/// Returns when a request waits for a ComfyUI that hangs, or when the workflow needs none any more.
async fn is_asked_in_vain(stage: &Stage, id: &str) {
    let (engine, client) = (stage.sandbox.engine(), stage.service.client());
    let before = engine.requests();
    while engine.requests() == before && !is_over(&client.progress(id).await) {
        tokio::time::sleep(crate::support::LOOK_EVERY).await;
    }
}
