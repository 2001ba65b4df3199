//! The way to the box that one execution uses: session, tunnel, client.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    comfy::{Client, ComfyError, Socket, SocketError},
    ssh::{Pool, Session, SshError, Target, Transfer, Tunnel},
    workflow::{ClientId, ErrorCode, Failure},
};

use super::error::StepError;

/// Ports on which people run ComfyUI, for a hint when nothing is found on the one they named.
const USUAL_PORTS: [u16; 2] = [8188, 18188];

/// Everything that is needed to talk to one ComfyUI.
#[derive(Debug)]
pub(super) struct Link {
    session: Session,
    tunnel: Tunnel,
    pub(super) client: Client,
    has_jobs_api: AtomicBool,
    version: Mutex<Option<String>>,
}

impl Link {
    /// Opens the tunnel. Nothing is said to ComfyUI yet.
    pub(super) async fn open(pool: &Pool, target: &Target, port: u16) -> Result<Self, SshError> {
        let session = pool.connect(target).await?;
        let tunnel = session.forward(port).await?;
        let client = Client::over_socket(tunnel.socket(), &session.box_name().to_string());
        Ok(Self { session, tunnel, client, has_jobs_api: AtomicBool::new(false), version: Mutex::default() })
    }

    /// Asks whether ComfyUI answers, and returns its version if it tells.
    ///
    /// # Errors
    /// Says what was found instead.
    pub(super) async fn probe(&self, port: u16) -> Result<Option<String>, NoComfyUi> {
        let error = match self.client.probe().await {
            Ok(info) => {
                self.has_jobs_api.store(info.has_jobs_api, Ordering::Relaxed);
                self.version.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&info.version);
                return Ok(info.version);
            }
            Err(error) => error,
        };
        let found = match error {
            ComfyError::Unreachable { .. } => self.what_is_there(&error).await,
            ComfyError::Timeout { after, .. } => {
                format!("it takes connections but has not answered within {} s; it may hang", after.as_secs())
            }
            _ => error.to_string(),
        };
        let mut message = format!("could not reach ComfyUI on port {port} of the box: {found}");
        let mut may_come = error.is_transient();
        if matches!(error, ComfyError::Unreachable { .. })
            && let Some(other) = self.find_elsewhere(port).await
        {
            message.push_str(&format!("; ComfyUI answers on port {other}, set comfyui_port to it"));
            may_come = false;
        }
        let is_silent = matches!(error, ComfyError::Timeout { .. });
        let code = if is_silent { ErrorCode::Wedged } else { ErrorCode::ComfyuiUnreachable };
        Err(NoComfyUi { failure: Failure::new(code, message), may_come })
    }

    /// A closed port looks, from this end of the tunnel, like a connection that is cut.
    async fn what_is_there(&self, error: &ComfyError) -> String {
        match self.tunnel.open().await {
            Err(closed) if closed.is_port_closed() => "nothing listens on it; is ComfyUI running?".to_owned(),
            Err(lost) => lost.to_string(),
            Ok(_) => format!("what listens there does not answer as ComfyUI does: {error}"),
        }
    }

    /// What SSH had to say on the way.
    pub(super) fn warnings(&self) -> &[String] {
        self.session.warnings()
    }

    /// Resolves when the SSH connection is gone.
    pub(super) async fn lost(&self) {
        self.session.closed().await;
    }

    /// Whether the SSH connection is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.session.is_closed()
    }

    /// Whether ComfyUI has `/api/jobs`, as the last probe found.
    pub(super) fn has_jobs_api(&self) -> bool {
        self.has_jobs_api.load(Ordering::Relaxed)
    }

    /// ComfyUI's version, as the last probe found.
    pub(super) fn version(&self) -> Option<String> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds out whether something listens on the port at all: what is sent to a closed one certainly does not arrive,
    /// and what is sent through a broken tunnel may.
    pub(super) async fn knock(&self) -> Result<(), StepError> {
        self.tunnel.open().await?;
        Ok(())
    }

    /// A websocket for this client id; `key` is what an earlier one was given.
    pub(super) async fn subscribe(&self, client_id: &ClientId, key: Option<&str>) -> Result<Socket, SubscribeError> {
        let stream = self.tunnel.open().await.map_err(SubscribeError::Ssh)?;
        Socket::connect_again(stream, client_id, key).await.map_err(SubscribeError::Socket)
    }

    /// A channel for files; `Err` says why there is none on this box. There are few per box: hold it only for a step.
    pub(super) async fn transfer(&self) -> Result<Result<Transfer, String>, StepError> {
        match self.session.transfer().await {
            Ok(transfer) => Ok(Ok(transfer)),
            Err(error @ (SshError::SftpMissing { .. } | SshError::SftpBroken { .. })) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn find_elsewhere(&self, port: u16) -> Option<u16> {
        for other in USUAL_PORTS.into_iter().filter(|other| *other != port) {
            if let Ok(tunnel) = self.session.forward(other).await
                && Client::over_socket(tunnel.socket(), &self.session.box_name().to_string()).probe().await.is_ok()
            {
                return Some(other);
            }
        }
        None
    }
}

/// What was found where ComfyUI should be.
#[derive(Debug)]
pub(super) struct NoComfyUi {
    pub(super) failure: Failure,
    /// Whether it looks like a ComfyUI that is starting.
    pub(super) may_come: bool,
}

impl From<NoComfyUi> for Failure {
    fn from(found: NoComfyUi) -> Self {
        found.failure
    }
}

/// Why there is no websocket.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubscribeError {
    #[error(transparent)]
    Ssh(SshError),
    #[error(transparent)]
    Socket(SocketError),
}
