//! Chapter: the box is reached, for the first time and again.

use std::{sync::PoisonError, time::Duration};

use chrono::{TimeDelta, Utc};

use super::{
    ear::Ear,
    error::{StepError, tunnel_failure},
    execution::Execution,
    link::{Link, NoComfyUi, SubscribeError},
    patience::Patience,
};
use crate::{
    ssh::{SshError, SshErrorKind},
    workflow::{ErrorCode, Event, Failure, Phase, Submission},
};

/// How long something else than ComfyUI is looked at again on the first connection.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(10);

impl Execution {
    /// The first way to the box. Its failure is final, and known to whoever waits for the answer to execute.
    pub(super) async fn connect(&self) -> Result<Link, Failure> {
        let state = self.state().map_err(StepError::into_failure)?;
        // A recovered run whose tunnel had stood before.
        if state.phase() > Some(Phase::Connecting) {
            self.report_beginning(Ok(()));
            let cause = Failure::new(ErrorCode::SshUnreachable, "the service was restarted");
            return self.reconnect(cause, &mut Patience::new()).await;
        }
        self.apply(Event::Entered(Phase::Connecting));
        let (target, port) = (self.target()?, state.request.comfyui_port);
        for warning in self.pool.warnings(&target).await {
            self.warn(warning);
        }
        let link = Link::open(&self.pool, &target, port).await.map_err(|error| tunnel_failure(&error))?;
        link.warnings().iter().for_each(|warning| self.warn(warning.clone()));
        self.wait_for_comfyui(link, port).await
    }

    /// Gives a ComfyUI that does not answer yet some time: a box takes logins before that has started.
    async fn wait_for_comfyui(&self, link: Link, port: u16) -> Result<Link, Failure> {
        let (mut starting, mut foreign) = (Patience::new(), Patience::new());
        loop {
            let NoComfyUi { failure: Failure { mut message, .. }, may_come } = match link.probe(port).await {
                Ok(version) => {
                    tracing::info!(comfyui.version = version, "reached ComfyUI");
                    self.apply(Event::Connected);
                    return Ok(link);
                }
                Err(found) => found,
            };
            if link.is_lost() {
                let cause = StepError::connection_lost().into_failure();
                return self.reconnect(cause, &mut Patience::new()).await;
            }
            let limit = self.options.comfyui_start;
            let (patience, limit) =
                if may_come { (&mut starting, limit) } else { (&mut foreign, limit.min(FOREIGN_PATIENCE)) };
            let announce = |pause| self.announce_reconnecting(message.clone(), Some(pause));
            if !patience.pause_announced(limit, announce).await {
                if may_come {
                    let seconds = patience.lasted().as_secs();
                    message.push_str(&format!("; it was waited for {seconds} s ([limits] comfyui_start_s)"));
                }
                return Err(Failure::new(ErrorCode::ComfyuiUnreachable, message));
            }
        }
    }

    /// A new way to the box after one has stood, tried until the patience is over. If it never comes, the workflow
    /// fails with what stood in the way last, or with the cause.
    pub(super) async fn reconnect(&self, cause: Failure, patience: &mut Patience) -> Result<Link, Failure> {
        tracing::info!(cause = cause.message, "connecting again");
        let port = self.state().map_err(StepError::into_failure)?.request.comfyui_port;
        let target = self.target()?;
        let mut last = cause;
        loop {
            let ((limit, setting), message) = (self.unreachable_limit(), last.message.clone());
            self.announce_reconnecting(message.clone(), None);
            let announce = |pause| self.announce_reconnecting(message, Some(pause));
            if !patience.wait(limit, announce).await {
                let seconds = patience.lasted().as_secs();
                let mut message =
                    format!("the box was out of reach for {seconds} s ([limits] {setting} ends it): {}", last.message);
                if self.state().is_ok_and(|state| state.submission != Submission::None) {
                    message.push_str(
                        "; the run may go on there: when the box is back, download what it left before you run it again",
                    );
                }
                return Err(Failure { message, ..last });
            }
            last = match Link::open(&self.pool, &target, port).await {
                Ok(link) => match link.probe(port).await {
                    Ok(_) => {
                        self.apply(Event::Connected);
                        return Ok(link);
                    }
                    Err(found) => found.failure,
                },
                Err(error) if self.is_final(&error) => return Err(tunnel_failure(&error)),
                Err(error) => tunnel_failure(&error),
            };
            tracing::debug!(message = last.message, "still out of reach");
            if last.code == ErrorCode::Wedged {
                self.report_stall(patience.lasted()).map_err(StepError::into_failure)?;
            }
        }
    }

    /// Lets readers know why nothing moves, and when the next try is due if none is under way.
    fn announce_reconnecting(&self, cause: String, pause: Option<Duration>) {
        let next_attempt = pause.and_then(|pause| Some(Utc::now() + TimeDelta::from_std(pause).ok()?));
        self.apply(Event::Reconnecting { cause, next_attempt });
    }

    /// Whether an error on the way back ends the workflow at once. With a prompt on the box only another machine at
    /// its address does: a box that boots may refuse keys for a while.
    fn is_final(&self, error: &SshError) -> bool {
        let submitted = self.state().is_ok_and(|state| state.submission != Submission::None);
        error.kind() == SshErrorKind::HostKey || (!submitted && !error.is_transient())
    }

    /// How long the box may stay out of reach, and the setting that says so.
    fn unreachable_limit(&self) -> (Duration, &'static str) {
        match self.state().map(|state| state.submission) {
            Ok(Submission::Unclear | Submission::Accepted) => (self.options.unreachable_limit, "unreachable_limit_s"),
            _ => (self.options.unreachable_before_submit, "unreachable_before_submit_s"),
        }
    }

    /// A websocket for this run, always under the same client id. `None` when there is none to be had: then the run
    /// is followed by polling.
    pub(super) async fn listen(&self, link: &Link) -> Result<Option<Ear>, StepError> {
        let client_id = self.state()?.client_id.clone();
        let key = self.credential_key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match link.subscribe(&client_id, key.as_deref()).await {
            Ok(socket) => {
                if let Some(key) = socket.credential_key() {
                    *self.credential_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.to_owned());
                }
                Ok(Some(Ear::new(socket)))
            }
            Err(SubscribeError::Ssh(error)) if link.is_lost() => Err(error.into()),
            Err(error) => {
                tracing::info!(%error, "no websocket yet");
                Ok(None)
            }
        }
    }
}
