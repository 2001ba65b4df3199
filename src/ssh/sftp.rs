//! The SFTP channels of a connection: opened when needed, kept for the next transfer, never more than the box permits.
//!
//! sshd allows ten sessions per connection (`MaxSessions`), some are configured for fewer; a box that opens no further one
//! is asked for no more than it has opened so far. This and `transfer` are the only files that know which SFTP library is
//! behind them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh_sftp::client::{Config, SftpSession};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    SshError,
    channel::{ChannelIo, Traffic},
    connection::{CHANNEL_DEADLINE, Connection, FarSide, OpenError},
};

/// Transfers side by side on one connection.
const MAX_CHANNELS: usize = 8;
/// How long a transfer waits for one of the others to end.
const TURN_DEADLINE: Duration = Duration::from_secs(600);
/// The largest packet OpenSSH takes (sftp-common.h, `SFTP_MAX_MSG_LENGTH`).
const MAX_PACKET: u32 = 256 * 1024;

/// The channels of one connection.
pub(super) struct SftpChannels {
    permits: Arc<Semaphore>,
    limit: AtomicUsize,
    idle: Mutex<Vec<SftpChannel>>,
}

/// A channel that speaks SFTP.
pub(super) struct SftpChannel {
    pub(super) client: SftpSession,
    pub(super) traffic: Traffic,
}

impl Default for SftpChannels {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_CHANNELS)),
            limit: AtomicUsize::new(MAX_CHANNELS),
            idle: Mutex::default(),
        }
    }
}

impl SftpChannels {
    /// An idle channel or a new one, once there is room for it.
    pub(super) async fn take(&self, of: &Arc<Connection>) -> Result<(SftpChannel, OwnedSemaphorePermit), SshError> {
        loop {
            let permit = self.turn(of).await?;
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(channel) = idle {
                return Ok((channel, permit));
            }
            match open(of).await {
                Ok(channel) => return Ok((channel, permit)),
                Err(OpenError::Failed(error)) => return Err(error),
                Err(OpenError::Denied) => return Err(missing(of, "the subsystem is not configured")),
                // Others have channels: this many is what the box permits. Wait for one of those.
                Err(_) if self.limit_to_those_open() => permit.forget(),
                Err(_) => return Err(missing(of, "it opens no session for it")),
            }
        }
    }

    /// Keeps a healthy channel for the next transfer. To be called before its permit is dropped.
    pub(super) fn give_back(&self, channel: SftpChannel) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    async fn turn(&self, of: &Connection) -> Result<OwnedSemaphorePermit, SshError> {
        let permit = tokio::select! {
            permit = timeout(TURN_DEADLINE, Arc::clone(&self.permits).acquire_owned()) => permit,
            () = of.gone.cancelled() => return Err(of.lost()),
        };
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(of.lost()),
            Err(_) => Err(SshError::TimedOut {
                address: of.address.clone(),
                what: "waiting for other transfers to end",
                after: TURN_DEADLINE,
            }),
        }
    }

    /// Gives up one channel for good, if any other is in use that can be waited for.
    fn limit_to_those_open(&self) -> bool {
        let free = self.permits.available_permits();
        let fewer = |limit: usize| (limit > free + 1).then_some(limit - 1);
        self.limit.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    }
}

fn missing(connection: &Connection, reason: &str) -> SshError {
    SshError::SftpMissing { address: connection.address.clone(), reason: reason.to_owned() }
}

async fn open(connection: &Arc<Connection>) -> Result<SftpChannel, OpenError> {
    let channel = connection.session(FarSide::Subsystem("sftp")).await?;
    let stream = ChannelIo::new(channel, &connection.gone);
    let traffic = stream.traffic().clone();
    let config = Config {
        max_packet_len: MAX_PACKET,
        max_concurrent_reads: 32,
        max_concurrent_writes: 16,
        max_write_packet_len: MAX_PACKET,
        // What is slow and what is stuck is decided by the bytes that move, not by the age of a request: with many
        // requests in line, each of them is old on a slow connection.
        request_timeout_secs: 24 * 60 * 60,
    };
    match timeout(CHANNEL_DEADLINE, SftpSession::new_with_config(stream, config)).await {
        Ok(Ok(client)) => Ok(SftpChannel { client, traffic }),
        Ok(Err(_)) if connection.is_closed() => Err(OpenError::Failed(connection.lost())),
        Ok(Err(error)) => {
            tracing::debug!(%error, "SFTP begins with something else");
            Err(OpenError::Failed(SshError::SftpBroken { address: connection.address.clone() }))
        }
        Err(_) => Err(OpenError::Failed(SshError::TimedOut {
            address: connection.address.clone(),
            what: "starting SFTP",
            after: CHANNEL_DEADLINE,
        })),
    }
}
