//! One SSH connection: how it comes about, the channels on it, and how it ends.
//!
//! Each hop of a route gets the same treatment: TCP or a channel of the hop before, handshake, judgement of the host key,
//! authentication, all within the hop's connect timeout. A [`Connection`] is shared by many users; it ends when the last
//! of them lets go, when it is closed, or when the peer is gone, which cancels its `gone`.

use std::{io, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, Disconnect,
    client::{self, Handle, Msg},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    HostKeyPolicy, SshError, Unreachable, auth,
    channel::ChannelIo,
    checksum::Checksums,
    keys::KeyRing,
    known_hosts::{self, Record},
    named_file::NamedFile,
    peer::{self, Peer, Shared},
    pin::Pin,
    route::{Endpoint, Route},
    sftp::SftpChannels,
    wire::Wire,
};

/// How long the box may take to open a channel. Longer than a channel that nobody reads can hold up the others.
pub(super) const CHANNEL_DEADLINE: Duration = Duration::from_secs(20);

/// An authenticated connection.
pub(super) struct Connection {
    handle: Handle<Peer>,
    /// `host:port`.
    pub(super) address: String,
    /// Cancelled when the connection is gone.
    pub(super) gone: CancellationToken,
    /// Ends the connection at once when cancelled.
    cut: CancellationToken,
    shared: Arc<Shared>,
    /// The SFTP channels, on a connection for transfers.
    pub(super) sftp: SftpChannels,
    /// Whether the box computes checksums, on a connection for transfers.
    pub(super) checksums: Checksums,
    /// The connection this one runs through.
    via: Option<Arc<Connection>>,
}

/// What a session channel leads to. Both are constants: nothing that comes from outside is ever part of a command.
#[derive(Debug, Clone, Copy)]
pub(super) enum FarSide {
    /// A subsystem by its name.
    Subsystem(&'static str),
    /// A command line for the user's shell on the box.
    Command(&'static str),
}

/// Why a channel could not be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The box forbids it.
    Prohibited,
    /// The box tried and found nobody at the other end.
    NobodyThere,
    /// The channel opened, but not what it should be for.
    Denied,
    Failed(SshError),
}

impl Connection {
    /// Connects along the route. One attempt.
    pub(super) async fn open(route: &Route, keys: &Arc<KeyRing>, pins: &[Arc<Pin>]) -> Result<Self, SshError> {
        let mut via: Option<Arc<Self>> = None;
        let mut hops = route.hops.iter().zip(pins).peekable();
        while let Some((hop, pin)) = hops.next() {
            let opened = Self::hop(hop, via.take(), keys, pin).await;
            if hops.peek().is_none() {
                return opened;
            }
            let jump = opened.map_err(|source| SshError::Jump { hop: hop.address(), source: Box::new(source) })?;
            via = Some(Arc::new(jump));
        }
        Err(SshError::Config { message: "the route to the box is empty".to_owned() })
    }

    async fn hop(
        endpoint: &Endpoint,
        via: Option<Arc<Self>>,
        keys: &Arc<KeyRing>,
        pin: &Arc<Pin>,
    ) -> Result<Self, SshError> {
        let deadline = Instant::now() + endpoint.connect_timeout;
        let late = |what| SshError::TimedOut { address: endpoint.address(), what, after: endpoint.connect_timeout };
        let record = recorded(endpoint).await?;
        let shared = Arc::new(Shared::default());
        shared.warn_unreadable(&record);
        let gone = CancellationToken::new();
        let cut = CancellationToken::new();
        // Whatever fails from here on, also by being cancelled, must not leave a half-open connection behind.
        let cut_on_failure = cut.clone().drop_guard();
        let wire = match &via {
            None => Wire::dial(endpoint, deadline, &cut).await?,
            Some(via) => Wire::through(via.onward(endpoint, deadline).await?, &cut),
        };
        let config = Arc::new(peer::config(endpoint, &record, pin));
        let peer = Peer::new(endpoint.clone(), record, Arc::clone(pin), Arc::clone(&shared), &gone);
        let mut handle = match timeout_at(deadline, client::connect_stream(config, wire, peer)).await {
            Ok(Ok(handle)) => handle,
            Ok(Err(fault)) => return Err(fault.into_error(endpoint)),
            Err(_) => return Err(late("the SSH handshake")),
        };
        match timeout_at(deadline, auth::authenticate(&mut handle, endpoint, keys, &shared, &gone)).await {
            Ok(result) => result?,
            Err(_) => return Err(late("authentication")),
        }
        cut_on_failure.disarm();
        Ok(Self {
            handle,
            address: endpoint.address(),
            gone,
            cut,
            shared,
            sftp: SftpChannels::default(),
            checksums: Checksums::default(),
            via,
        })
    }

    /// A channel to the next hop, for a jump host.
    async fn onward(self: &Arc<Self>, next: &Endpoint, deadline: Instant) -> Result<ChannelIo, SshError> {
        let unreachable = |cause| SshError::Unreachable { address: next.address(), cause, source: None };
        match timeout_at(deadline, self.direct_tcpip(&next.host, next.port)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(OpenError::NobodyThere | OpenError::Denied)) => Err(unreachable(Unreachable::Refused)),
            Ok(Err(OpenError::Prohibited)) => Err(SshError::ForwardingRefused { address: self.address.clone() }),
            Ok(Err(OpenError::Failed(error))) => Err(error),
            Err(_) => Err(unreachable(Unreachable::TimedOut { after: next.connect_timeout })),
        }
    }

    /// Whether the connection is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// The error for something that failed because the connection is gone.
    pub(super) fn lost(&self) -> SshError {
        let reason = self.shared.farewell().map_or_else(|| "it was closed".to_owned(), |farewell| farewell.text);
        SshError::ConnectionLost { address: self.address.clone(), reason }
    }

    /// Warnings that came up while connecting, including those of the hops before.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.via.as_ref().map(|via| via.warnings()).unwrap_or_default();
        warnings.extend(self.shared.warnings());
        warnings
    }

    /// Opens a channel to `host:port` as seen from the box.
    pub(super) async fn direct_tcpip(self: &Arc<Self>, host: &str, port: u16) -> Result<ChannelIo, OpenError> {
        let this = Arc::clone(self);
        let host = host.to_owned();
        let channel = self
            .open_channel(
                async move { this.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await },
            )
            .await?;
        Ok(ChannelIo::new(channel, &self.gone))
    }

    /// Opens a channel to a part of the box's sshd or to a program on it.
    pub(super) async fn session(self: &Arc<Self>, what: FarSide) -> Result<Channel<Msg>, OpenError> {
        let this = Arc::clone(self);
        self.open_channel(async move {
            let mut channel = this.handle.channel_open_session().await?;
            match what {
                FarSide::Subsystem(name) => channel.request_subsystem(true, name).await?,
                FarSide::Command(command) => channel.exec(true, command).await?,
            }
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Success) => return Ok(channel),
                    Some(ChannelMsg::Failure | ChannelMsg::Close) => {
                        channel.close().await?;
                        return Err(russh::Error::RequestDenied);
                    }
                    Some(_) => {}
                    None => return Err(russh::Error::Disconnect),
                }
            }
        })
        .await
    }

    /// Waits for a channel in a task of its own, so that one which opens after its time, or after its user has gone
    /// away, is closed and not left open on the box.
    async fn open_channel(
        &self,
        opening: impl Future<Output = Result<Channel<Msg>, russh::Error>> + Send + 'static,
    ) -> Result<Channel<Msg>, OpenError> {
        if self.is_closed() {
            return Err(OpenError::Failed(self.lost()));
        }
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(channel)) = sender.send(opening.await) {
                let _ = timeout(CHANNEL_DEADLINE, channel.close()).await;
            }
        });
        match timeout(CHANNEL_DEADLINE, receiver).await {
            Ok(Ok(Ok(channel))) => Ok(channel),
            Ok(Ok(Err(russh::Error::ChannelOpenFailure(failure)))) => Err(match failure {
                ChannelOpenFailure::AdministrativelyProhibited | ChannelOpenFailure::UnknownChannelType => {
                    OpenError::Prohibited
                }
                _ => OpenError::NobodyThere,
            }),
            Ok(Ok(Err(russh::Error::RequestDenied))) => Err(OpenError::Denied),
            Ok(Ok(Err(_)) | Err(_)) => Err(OpenError::Failed(self.lost())),
            Err(_) => Err(OpenError::Failed(SshError::TimedOut {
                address: self.address.clone(),
                what: "opening a channel",
                after: CHANNEL_DEADLINE,
            })),
        }
    }

    /// Says goodbye and ends the connection, whoever still uses it. Waits at most `limit` for the goodbye.
    pub(super) async fn close(&self, limit: Duration) {
        self.shared.leave();
        let goodbye = async {
            if self.handle.disconnect(Disconnect::ByApplication, "", "en").await.is_ok() {
                self.gone.cancelled().await;
            }
        };
        let _ = timeout(limit, goodbye).await;
        self.cut.cancel();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.leave();
        self.cut.cancel();
    }
}

/// What is on record about the host. A record that cannot be read is an error only where nothing else would do.
async fn recorded(endpoint: &Endpoint) -> Result<Record, SshError> {
    let host = endpoint.host_key_alias.clone();
    // An alias stands for the host on whatever port.
    let (host, port) = host.map_or_else(|| (endpoint.host.clone(), endpoint.port), |alias| (alias, 22));
    let files: Vec<NamedFile> = match endpoint.host_keys {
        HostKeyPolicy::Off => Vec::new(),
        HostKeyPolicy::AcceptNew | HostKeyPolicy::Strict => endpoint.known_hosts.clone(),
    };
    let mut record = blocking(move || Record::read(&files, &host, port)).await?;
    if let Some(path) = record.refused.take() {
        return Err(SshError::FileRefused { path, keys: known_hosts::ROOTS });
    }
    if endpoint.host_keys == HostKeyPolicy::Strict
        && let Some((file, source)) = record.unreadable.pop()
    {
        return Err(SshError::KnownHosts { file, source: Arc::new(source) });
    }
    Ok(record)
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SshError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| SshError::Local {
        what: "a background task of the SSH client ended early".to_owned(),
        source: Arc::new(io::Error::other(error)),
    })
}
