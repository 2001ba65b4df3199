//! The way to the box that one execution uses: session, tunnel, client, and a channel for files.

use tokio::sync::OnceCell;

use super::error::StepError;
use crate::{
    comfy::{Client, ComfyError, ServerInfo, Socket},
    ssh::{Pool, Session, SshError, Target, Transfer, Tunnel},
    workflow::ClientId,
};

/// Ports on which people run ComfyUI, for a hint when nothing is found on the one they named.
const USUAL_PORTS: [u16; 2] = [8188, 18188];

/// Everything that is needed to talk to one ComfyUI.
#[derive(Debug)]
pub(super) struct Link {
    session: Session,
    tunnel: Tunnel,
    pub(super) client: Client,
    transfer: OnceCell<Result<Transfer, String>>,
}

impl Link {
    /// Opens the tunnel. Nothing is said to ComfyUI yet.
    pub(super) async fn open(pool: &Pool, target: &Target, port: u16) -> Result<Self, SshError> {
        let session = pool.connect(target).await?;
        let tunnel = session.forward(port).await?;
        let client = Client::over_socket(tunnel.socket());
        Ok(Self { session, tunnel, client, transfer: OnceCell::new() })
    }

    /// Asks whether ComfyUI answers.
    ///
    /// # Errors
    /// A sentence that says what was found instead.
    pub(super) async fn probe(&self, port: u16) -> Result<ServerInfo, String> {
        let error = match self.client.probe().await {
            Ok(info) => return Ok(info),
            Err(error) => error,
        };
        let mut message = format!("could not reach ComfyUI on port {port} of the box: {error}");
        if matches!(error, ComfyError::Unreachable { .. })
            && let Some(other) = self.find_elsewhere(port).await
        {
            message.push_str(&format!("; ComfyUI answers on port {other}, set comfyui_port to it"));
        }
        Err(message)
    }

    /// What SSH had to say on the way.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.session.warnings().to_vec()
    }

    /// Resolves when the SSH connection is gone.
    pub(super) async fn lost(&self) {
        self.session.closed().await;
    }

    /// Whether the SSH connection is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.session.is_closed()
    }

    /// A websocket for this client id; `key` is what an earlier one was given.
    pub(super) async fn subscribe(&self, client_id: &ClientId, key: Option<&str>) -> Result<Socket, StepError> {
        let stream = self.tunnel.open().await?;
        Socket::connect_again(stream, client_id, key).await.map_err(|error| StepError::LinkLost(error.to_string()))
    }

    /// The channel for files, opened when first asked for; `Err` says why there is none on this box.
    pub(super) async fn transfer(&self) -> Result<Result<&Transfer, &str>, StepError> {
        let open = || async {
            match self.session.transfer().await {
                Ok(transfer) => Ok(Ok(transfer)),
                Err(error @ SshError::SftpMissing { .. }) => Ok(Err(error.to_string())),
                Err(error) => Err(StepError::from(error)),
            }
        };
        Ok(self.transfer.get_or_try_init(open).await?.as_ref().map_err(String::as_str))
    }

    async fn find_elsewhere(&self, port: u16) -> Option<u16> {
        for other in USUAL_PORTS.into_iter().filter(|other| *other != port) {
            if let Ok(tunnel) = self.session.forward(other).await
                && Client::over_socket(tunnel.socket()).probe().await.is_ok()
            {
                return Some(other);
            }
        }
        None
    }
}
