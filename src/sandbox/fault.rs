//! The switches that make the sandbox misbehave.
//!
//! Used by tests through [`Sandbox::faults`](super::Sandbox::faults) and by both servers, which ask before they act.
//! Everything is off by default and may change while the servers run. Each switch imitates something that real
//! machines, tunnels or servers do; none of them is a shortcut into the client.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::hold::{Hold, Holds, Point};

/// How the answer to an accepted `POST /prompt` gets lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAnswer {
    /// Nothing is ever sent; the connection stays open.
    Never,
    /// The connection is closed instead.
    Cut,
}

/// What a proxy in front of ComfyUI answers to everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// 200 with a login page in HTML.
    Login,
    /// 401 with a basic-auth challenge and HTML.
    Unauthorized,
    /// 302 to a login page.
    Redirect,
    /// 502 with an HTML error page, as while ComfyUI is still starting.
    BadGateway,
}

/// Why writing a remote file over SFTP fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    /// The disk is full after this many more bytes; OpenSSH reports that as a bare "Failure".
    NoSpace {
        /// Bytes that still fit.
        after: u64,
    },
    /// The folder is not writable: opening for writing fails.
    PermissionDenied,
}

/// All switches of one sandbox. Clones share them.
#[derive(Clone, Default)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    settings: Mutex<Settings>,
    frozen: watch::Sender<bool>,
    stalled: watch::Sender<bool>,
    ssh_refused: watch::Sender<bool>,
    ssh_connections: Mutex<CancellationToken>,
    sockets: Mutex<CancellationToken>,
    holds: Holds,
}

#[derive(Default)]
struct Settings {
    history_delay: Option<Duration>,
    deaf: bool,
    noise: bool,
    duplicates: bool,
    reordered: bool,
    message_delay: Option<Duration>,
    no_success: bool,
    nan: bool,
    lost_interrupts: u32,
    ignore_prompt_id: bool,
    untargeted_interrupt: bool,
    lost_answers: Option<(u32, LostAnswer)>,
    lost_prompts: u32,
    page: Option<Page>,
    sftp_refused: bool,
    forwarding_refused: bool,
    write: Option<WriteFault>,
    cut_after: Option<u64>,
    ssh_bytes: u64,
}

impl Faults {
    /// Leaves this long between `execution_success` and the history entry. The run stays in the queue meanwhile,
    /// as in ComfyUI, where that gap lasts milliseconds. `None` turns it off.
    pub fn delay_history(&self, delay: Option<Duration>) {
        self.settings().history_delay = delay;
    }

    /// Drops every websocket message from now on; the sockets stay open and answer pings.
    pub fn deafen(&self, on: bool) {
        self.settings().deaf = on;
    }

    /// Closes every open websocket without a close frame. New ones are welcome.
    pub fn close_sockets(&self) {
        renew(&self.inner.sockets);
    }

    /// Sends messages of unknown type, unknown binary events and cut-off frames in between.
    pub fn noise(&self, on: bool) {
        self.settings().noise = on;
    }

    /// Sends every websocket message twice.
    pub fn duplicate_messages(&self, on: bool) {
        self.settings().duplicates = on;
    }

    /// Lets every second websocket message overtake the one before it.
    pub fn reorder_messages(&self, on: bool) {
        self.settings().reordered = on;
    }

    /// Waits this long before each websocket message, so that a socket falls ever further behind. `None` turns it off.
    pub fn delay_messages(&self, delay: Option<Duration>) {
        self.settings().message_delay = delay;
    }

    /// Leaves `execution_success` out, as ComfyUI before July 2024 did.
    pub fn omit_execution_success(&self, on: bool) {
        self.settings().no_success = on;
    }

    /// Puts bare `NaN` and `Infinity` into the JSON of `/history`, `/object_info` and `executed`, as Python does.
    pub fn nan_in_json(&self, on: bool) {
        self.settings().nan = on;
    }

    /// Lets the next `count` calls of `POST /interrupt` (or of the cancel route) answer 200 and do nothing.
    pub fn lose_interrupts(&self, count: u32) {
        self.settings().lost_interrupts = count;
    }

    /// Makes up prompt ids instead of taking the client's, as ComfyUI before 0.3.45 does.
    pub fn ignore_prompt_id(&self, on: bool) {
        self.settings().ignore_prompt_id = on;
    }

    /// Interrupts whatever runs even if the request names a prompt, as ComfyUI before 0.3.57 does.
    pub fn untargeted_interrupt(&self, on: bool) {
        self.settings().untargeted_interrupt = on;
    }

    /// Accepts the next `count` prompts but loses the answers.
    pub fn lose_submit_answers(&self, count: u32, how: LostAnswer) {
        self.settings().lost_answers = Some((count, how));
    }

    /// Lets the next `count` prompts break off on their way, before they are taken.
    pub fn lose_prompts(&self, count: u32) {
        self.settings().lost_prompts = count;
    }

    /// How many prompts are still to get lost.
    pub fn prompts_to_lose(&self) -> u32 {
        self.settings().lost_prompts
    }

    /// Answers every HTTP request with this page, websocket upgrades included. `None` turns it off.
    pub fn answer_with(&self, page: Option<Page>) {
        self.settings().page = page;
    }

    /// Freezes the engine, as a stopped process is: connections are accepted, nothing is answered or sent and
    /// nothing runs. Turned off, it continues where it was.
    pub fn hang_engine(&self, on: bool) {
        self.inner.frozen.send_replace(on);
    }

    /// Refuses the SFTP subsystem on new channels.
    pub fn refuse_sftp(&self, on: bool) {
        self.settings().sftp_refused = on;
    }

    /// Refuses port forwarding on new channels.
    pub fn refuse_forwarding(&self, on: bool) {
        self.settings().forwarding_refused = on;
    }

    /// Makes SFTP writes fail. `None` turns it off.
    pub fn fail_writes(&self, fault: Option<WriteFault>) {
        self.settings().write = fault;
    }

    /// Cuts every SSH connection now, without a goodbye. New ones are welcome.
    pub fn cut_ssh(&self) {
        renew(&self.inner.ssh_connections);
    }

    /// Cuts every SSH connection once this many more bytes have passed in either direction.
    pub fn cut_ssh_after(&self, bytes: u64) {
        self.settings().cut_after = Some(bytes);
    }

    /// Lets SSH connections stand still, as a dead network path does: open, and no byte moves either way.
    pub fn stall_ssh(&self, on: bool) {
        self.inner.stalled.send_replace(on);
    }

    /// Closes the SSH port, so that new connections are refused. Open ones live on.
    pub fn refuse_ssh(&self, on: bool) {
        self.inner.ssh_refused.send_replace(on);
    }

    /// Stops the next run just before it begins `node_id`, until the hold is released or dropped.
    pub fn hold_before(&self, node_id: &str) -> Hold {
        self.inner.holds.add(Point::BeforeNode(node_id.to_owned()))
    }

    /// Stops the next run in the stepping node `node_id` once step `step` has been announced.
    pub fn hold_at_step(&self, node_id: &str, step: u64) -> Hold {
        self.inner.holds.add(Point::AtStep(node_id.to_owned(), step))
    }

    /// Stops the next run between its last message and its history entry.
    pub fn hold_before_history(&self) -> Hold {
        self.inner.holds.add(Point::BeforeHistory)
    }

    /// Releases every hold.
    pub fn release_all(&self) {
        self.inner.holds.release_all();
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.inner.settings)
    }
}

/// What the two servers ask.
impl Faults {
    pub(super) fn history_delay(&self) -> Option<Duration> {
        self.settings().history_delay
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.settings().deaf
    }

    pub(super) fn is_noisy(&self) -> bool {
        self.settings().noise
    }

    pub(super) fn duplicates(&self) -> bool {
        self.settings().duplicates
    }

    pub(super) fn reorders(&self) -> bool {
        self.settings().reordered
    }

    pub(super) fn message_delay(&self) -> Option<Duration> {
        self.settings().message_delay
    }

    pub(super) fn omits_success(&self) -> bool {
        self.settings().no_success
    }

    pub(super) fn has_nan(&self) -> bool {
        self.settings().nan
    }

    pub(super) fn ignores_prompt_id(&self) -> bool {
        self.settings().ignore_prompt_id
    }

    pub(super) fn interrupts_anything(&self) -> bool {
        self.settings().untargeted_interrupt
    }

    pub(super) fn page(&self) -> Option<Page> {
        self.settings().page
    }

    pub(super) fn sftp_refused(&self) -> bool {
        self.settings().sftp_refused
    }

    pub(super) fn forwarding_refused(&self) -> bool {
        self.settings().forwarding_refused
    }

    pub(super) fn take_lost_interrupt(&self) -> bool {
        let mut settings = self.settings();
        let lost = settings.lost_interrupts > 0;
        settings.lost_interrupts = settings.lost_interrupts.saturating_sub(1);
        lost
    }

    pub(super) fn take_lost_answer(&self) -> Option<LostAnswer> {
        let mut settings = self.settings();
        let (count, how) = settings.lost_answers?;
        settings.lost_answers = (count > 1).then(|| (count - 1, how));
        (count > 0).then_some(how)
    }

    pub(super) fn take_lost_prompt(&self) -> bool {
        let mut settings = self.settings();
        let lost = settings.lost_prompts > 0;
        settings.lost_prompts = settings.lost_prompts.saturating_sub(1);
        lost
    }

    pub(super) fn denies_writing(&self) -> bool {
        self.settings().write == Some(WriteFault::PermissionDenied)
    }

    /// How many of `wanted` bytes still fit on the pretended disk.
    pub(super) fn room_for(&self, wanted: u64) -> u64 {
        match &mut self.settings().write {
            Some(WriteFault::NoSpace { after }) => {
                let granted = wanted.min(*after);
                *after -= granted;
                granted
            }
            _ => wanted,
        }
    }

    /// Counts bytes that passed over SSH; cuts all connections when the limit set by a test is reached.
    pub(super) fn count_ssh_bytes(&self, passed: u64) {
        let reached = {
            let mut settings = self.settings();
            settings.ssh_bytes += passed;
            match settings.cut_after {
                Some(left) if left > passed => {
                    settings.cut_after = Some(left - passed);
                    false
                }
                Some(_) => {
                    settings.cut_after = None;
                    true
                }
                None => false,
            }
        };
        if reached {
            self.cut_ssh();
        }
    }

    pub(super) fn ssh_bytes(&self) -> u64 {
        self.settings().ssh_bytes
    }

    /// Cancelled by the next [`cut_ssh`](Self::cut_ssh).
    pub(super) fn ssh_cut(&self) -> CancellationToken {
        lock(&self.inner.ssh_connections).clone()
    }

    /// Cancelled by the next [`close_sockets`](Self::close_sockets).
    pub(super) fn sockets_cut(&self) -> CancellationToken {
        lock(&self.inner.sockets).clone()
    }

    pub(super) fn ssh_refusal(&self) -> watch::Receiver<bool> {
        self.inner.ssh_refused.subscribe()
    }

    /// Waits while the engine is frozen.
    pub(super) async fn thawed(&self) {
        until_false(&self.inner.frozen).await;
    }

    /// Waits while SSH connections stand still.
    pub(super) async fn moving(&self) {
        until_false(&self.inner.stalled).await;
    }

    /// Waits at `point` if a test holds it; see [`Hold`].
    pub(super) async fn pass(&self, point: &Point, interrupted: &watch::Sender<bool>) {
        self.inner.holds.pass(point, interrupted).await;
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

/// Cancels what hangs on the token and puts a fresh one in its place.
fn renew(token: &Mutex<CancellationToken>) {
    std::mem::take(&mut *lock(token)).cancel();
}

async fn until_false(flag: &watch::Sender<bool>) {
    // The sender outlives the wait, so it cannot fail.
    let _ = flag.subscribe().wait_for(|on| !on).await;
}

/// A panicking test must not take the other switches with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
