//! Faults at random: three lanes, one for the service, one for the road to the box and one for ComfyUI. Each causes one
//! fault after the other, and they overlap one another's.

use std::{io, num::NonZeroU64, sync::Arc, time::Duration};

use comfy_remote::sandbox::{ChaosProxy, Direction, Faults, LostAnswer, Page, Sandbox};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::service::Service;

/// How long an accident lasts at most.
const LONGEST_MS: u64 = 14_000;
/// How long it is quiet between two accidents of a lane, so that something gets done.
const SERVICE_PAUSE_MS: std::ops::Range<u64> = 6_000..30_000;
const ROAD_PAUSE_MS: std::ops::Range<u64> = 4_000..25_000;
const COMFYUI_PAUSE_MS: std::ops::Range<u64> = 2_000..12_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    Stop,
    Sleep,

    Cut,
    CutAfter,
    Stall,
    Refuse,
    SilentDrop,
    LoseAnswer,
    Slow,

    RestartComfyUi,
    KillComfyUi,
    HangComfyUi,
    CloseSockets,
    DeafSockets,
    DoubleMessages,
    Noise,
    LoseSubmitAnswer,
    LosePrompt,
    LateHistory,
    LoseInterrupt,
    BadGateway,
    RefuseSftp,
}

const OF_SERVICE: &[Fault] = &[Fault::Kill, Fault::Stop, Fault::Sleep];
/// Without those that end the process.
const OF_LASTING_SERVICE: &[Fault] = &[Fault::Sleep];
const OF_ROAD: &[Fault] =
    &[Fault::Cut, Fault::CutAfter, Fault::Stall, Fault::Refuse, Fault::SilentDrop, Fault::LoseAnswer, Fault::Slow];
const OF_COMFYUI: &[Fault] = &[
    Fault::RestartComfyUi,
    Fault::KillComfyUi,
    Fault::HangComfyUi,
    Fault::CloseSockets,
    Fault::DeafSockets,
    Fault::DoubleMessages,
    Fault::Noise,
    Fault::LoseSubmitAnswer,
    Fault::LosePrompt,
    Fault::LateHistory,
    Fault::LoseInterrupt,
    Fault::BadGateway,
    Fault::RefuseSftp,
];

impl Fault {
    /// ComfyUI forgets what it has.
    pub(crate) fn forgets(self) -> bool {
        matches!(self, Self::RestartComfyUi | Self::KillComfyUi)
    }

    /// The box may not be reached over SSH.
    pub(crate) fn closes_road(self) -> bool {
        matches!(self, Self::Cut | Self::CutAfter | Self::Stall | Self::Refuse | Self::SilentDrop | Self::LoseAnswer)
    }

    /// ComfyUI may not answer on a road that is good.
    pub(crate) fn silences_comfyui(self) -> bool {
        self.forgets() || matches!(self, Self::HangComfyUi | Self::BadGateway)
    }
}

/// What was caused, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incident {
    pub(crate) fault: Fault,
    pub(crate) from: Instant,
    pub(crate) to: Option<Instant>,
}

/// What the lanes share.
pub(crate) struct Chaos {
    pub(crate) service: Arc<Mutex<Service>>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) proxy: Arc<ChaosProxy>,
    pub(crate) incidents: std::sync::Mutex<Vec<Incident>>,
}

impl Chaos {
    /// Causes faults until `quiet` is cancelled; from `lasting` on, the service's process is left alive. Each fault is
    /// over when this returns.
    ///
    /// # Errors
    /// When the service does not stop or start, or ComfyUI's port is gone: the soak can't go on.
    pub(crate) async fn reign(
        &self,
        rng: &mut fastrand::Rng,
        lasting: &CancellationToken,
        quiet: &CancellationToken,
    ) -> io::Result<()> {
        let (mut first, mut second, mut third) = (rng.fork(), rng.fork(), rng.fork());
        let of_service = async {
            while idle(first.u64(SERVICE_PAUSE_MS), quiet).await {
                let faults = if lasting.is_cancelled() { OF_LASTING_SERVICE } else { OF_SERVICE };
                self.befall(pick(faults, &mut first), &mut first).await?;
            }
            Ok(())
        };
        let of_road = async {
            while idle(second.u64(ROAD_PAUSE_MS), quiet).await {
                self.befall(pick(OF_ROAD, &mut second), &mut second).await?;
            }
            Ok(())
        };
        let of_comfyui = async {
            while idle(third.u64(COMFYUI_PAUSE_MS), quiet).await {
                self.befall(pick(OF_COMFYUI, &mut third), &mut third).await?;
            }
            Ok(())
        };
        tokio::try_join!(of_service, of_road, of_comfyui).map(drop)
    }

    /// The incidents that touched a span of time.
    pub(crate) fn during(&self, from: Instant, to: Instant) -> Vec<Fault> {
        let touches = |incident: &Incident| incident.from <= to && incident.to.is_none_or(|end| end >= from);
        self.log().iter().filter(|incident| touches(incident)).map(|incident| incident.fault).collect()
    }

    pub(crate) fn log(&self) -> std::sync::MutexGuard<'_, Vec<Incident>> {
        self.incidents.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn befall(&self, fault: Fault, rng: &mut fastrand::Rng) -> io::Result<()> {
        let index = {
            let mut log = self.log();
            log.push(Incident { fault, from: Instant::now(), to: None });
            log.len() - 1
        };
        if OF_SERVICE.contains(&fault) {
            self.hit_service(fault, rng).await?;
        } else if OF_ROAD.contains(&fault) {
            self.hit_road(fault, rng).await;
        } else {
            self.hit_comfyui(fault, rng).await?;
        }
        if let Some(incident) = self.log().get_mut(index) {
            incident.to = Some(Instant::now());
        }
        Ok(())
    }

    async fn hit_service(&self, fault: Fault, rng: &mut fastrand::Rng) -> io::Result<()> {
        let mut service = self.service.lock().await;
        match fault {
            Fault::Sleep => return service.sleep(spell(rng, LONGEST_MS)).await,
            Fault::Kill => service.kill().await?,
            _ => service.terminate().await?,
        }
        sleep(spell(rng, 1_000)).await;
        service.launch(rng.bool()).await
    }

    async fn hit_road(&self, fault: Fault, rng: &mut fastrand::Rng) {
        let proxy = &self.proxy;
        let direction = if rng.bool() { Direction::Up } else { Direction::Down };
        match fault {
            Fault::Cut => proxy.cut(),
            Fault::CutAfter => {
                proxy.cut_after(direction, rng.u64(1..300_000));
                sleep(spell(rng, LONGEST_MS)).await;
            }
            Fault::LoseAnswer => {
                proxy.lose_answer_after(rng.u64(1..20_000));
                sleep(spell(rng, LONGEST_MS)).await;
            }
            Fault::Slow => {
                proxy.delay(direction, Duration::from_millis(rng.u64(20..400)));
                proxy.limit(direction, NonZeroU64::new(rng.u64(50_000..1_000_000)));
                sleep(spell(rng, LONGEST_MS)).await;
            }
            Fault::Refuse => {
                proxy.refuse(true);
                proxy.cut();
                sleep(spell(rng, LONGEST_MS)).await;
            }
            Fault::Stall => {
                proxy.stall(true);
                sleep(spell(rng, LONGEST_MS)).await;
            }
            _ => {
                proxy.drop_silently(true);
                sleep(spell(rng, LONGEST_MS)).await;
            }
        }
        proxy.clear();
    }

    async fn hit_comfyui(&self, fault: Fault, rng: &mut fastrand::Rng) -> io::Result<()> {
        let (engine, faults) = (self.sandbox.engine(), self.sandbox.faults());
        let time = spell(rng, LONGEST_MS);
        match fault {
            Fault::RestartComfyUi => return engine.restart().await,
            Fault::KillComfyUi => {
                engine.kill().await;
                sleep(time / 3).await;
                return engine.revive().await;
            }
            Fault::CloseSockets => faults.close_sockets(),
            _ => {
                misbehave(faults, fault, rng);
                sleep(time).await;
                behave(faults);
            }
        }
        Ok(())
    }
}

/// The switches that stay on for a while.
fn misbehave(faults: &Faults, fault: Fault, rng: &mut fastrand::Rng) {
    match fault {
        Fault::HangComfyUi => faults.hang_engine(true),
        Fault::DeafSockets => faults.deafen(true),
        Fault::DoubleMessages => faults.duplicate_messages(true),
        Fault::Noise => faults.noise(true),
        Fault::LoseSubmitAnswer => {
            faults.lose_submit_answers(1, if rng.bool() { LostAnswer::Cut } else { LostAnswer::Never });
        }
        Fault::LosePrompt => faults.lose_prompts(1),
        Fault::LateHistory => faults.delay_history(Some(spell(rng, 2_000))),
        Fault::LoseInterrupt => faults.lose_interrupts(1),
        Fault::BadGateway => faults.answer_with(Some(Page::BadGateway)),
        _ => faults.refuse_sftp(true),
    }
}

fn behave(faults: &Faults) {
    faults.hang_engine(false);
    faults.deafen(false);
    faults.duplicate_messages(false);
    faults.noise(false);
    faults.lose_submit_answers(0, LostAnswer::Cut);
    faults.lose_prompts(0);
    faults.delay_history(None);
    faults.lose_interrupts(0);
    faults.answer_with(None);
    faults.refuse_sftp(false);
}

/// Says whether it is still time for faults after the pause.
async fn idle(pause_ms: u64, quiet: &CancellationToken) -> bool {
    quiet.run_until_cancelled(sleep(Duration::from_millis(pause_ms))).await.is_some()
}

fn pick(faults: &[Fault], rng: &mut fastrand::Rng) -> Fault {
    rng.choice(faults).copied().unwrap_or(Fault::Cut)
}

/// Short ones are more frequent than long ones.
fn spell(rng: &mut fastrand::Rng, longest_ms: u64) -> Duration {
    let longest = rng.u64(1..=longest_ms);
    Duration::from_millis(rng.u64(1..=longest))
}
