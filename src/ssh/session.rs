//! A box we are connected to, as its users see it.
//!
//! Sessions are cheap: they are claims to the shared connections of a [`super::Pool`]. As long as a session, or a tunnel or
//! transfer made from it, is alive, the connections stay open. A session whose connection is gone stays gone; ask the pool
//! for another one.

use std::{fmt, sync::Arc};

use super::{
    BoxName, SshError, Target, Transfer, Tunnel,
    connection::Connection,
    pool::{Lease, Purpose, Shared},
};

/// A claim to the connections to one box. Clones are the same claim.
#[derive(Clone)]
pub struct Session {
    claim: Arc<Claim>,
}

struct Claim {
    pool: Arc<Shared>,
    lease: Lease,
    control: Arc<Connection>,
    target: Target,
    warnings: Vec<String>,
}

impl Session {
    pub(super) fn new(
        pool: Arc<Shared>,
        lease: Lease,
        control: Arc<Connection>,
        target: Target,
        warnings: Vec<String>,
    ) -> Self {
        Self { claim: Arc::new(Claim { pool, lease, control, target, warnings }) }
    }

    /// Opens a tunnel to `port` on the loopback of the box. That nothing listens there yet is no error.
    ///
    /// # Errors
    /// [`SshError::ForwardingRefused`] if the box forbids it, [`SshError::ConnectionLost`] or [`SshError::TimedOut`] if it
    /// does not answer, [`SshError::Local`] if the socket cannot be made.
    pub async fn forward(&self, port: u16) -> Result<Tunnel, SshError> {
        Tunnel::open_to(self.clone(), port).await
    }

    /// A transfer of its own, over the connection for files; that one is made when it is first needed.
    ///
    /// Up to eight transfers per box run side by side; further ones wait for their turn.
    ///
    /// # Errors
    /// [`SshError::SftpMissing`] if the box has no SFTP, otherwise why there is no connection.
    pub async fn transfer(&self) -> Result<Transfer, SshError> {
        let connection = self.claim.pool.get(self.claim.lease.slot(), Purpose::Transfer).await?;
        Transfer::open(self.clone(), connection).await
    }

    /// Whether the connection for HTTP and websockets is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.claim.control.is_closed()
    }

    /// Resolves when the connection for HTTP and websockets is gone. Cancel-safe.
    pub async fn closed(&self) {
        self.claim.control.gone.cancelled().await;
    }

    /// The target this session was asked for.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.claim.target
    }

    /// Which box this is.
    #[must_use]
    pub fn box_name(&self) -> BoxName {
        self.claim.lease.slot().box_name()
    }

    /// What was left out of account when connecting: parts of `~/.ssh/config`, files that could not be read. Those of
    /// the connection string itself are in [`Target::warnings`].
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.claim.warnings
    }

    pub(super) fn control(&self) -> &Arc<Connection> {
        &self.claim.control
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("target", &self.claim.target).field("closed", &self.is_closed()).finish()
    }
}
