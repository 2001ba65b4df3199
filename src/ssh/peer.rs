//! Our side of the SSH protocol: which algorithms we offer, which host keys we accept, and what we make of a goodbye.
//!
//! [`Peer`] has russh's callbacks for one connection. The host key is judged here, before any key of ours is offered.
//! Everything the box could open towards us is refused, because nothing of the kind is ever asked for.

use std::{
    borrow::Cow,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use russh::{
    Channel, Preferred, cipher,
    client::{self, ChannelOpenHandle, Msg},
    keys::{Algorithm, PublicKey, PublicKeyOrCertificate},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    HostKeyPolicy, SshError, Unreachable,
    connection::blocking,
    known_hosts::{self, Record, Verdict},
    pin::Pin,
    route::Endpoint,
};
use crate::text::clip;

/// What the connection's task tells the rest of us.
#[derive(Debug, Default)]
pub(super) struct Shared {
    warnings: Mutex<Vec<String>>,
    farewell: Mutex<Option<Farewell>>,
    /// We are about to end the connection ourselves.
    leaving: AtomicBool,
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub(super) struct Farewell {
    /// The peer said goodbye, in contrast to a connection that just broke.
    pub(super) said: bool,
    /// Its words, or what broke.
    pub(super) text: String,
}

impl Shared {
    fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    pub(super) fn warn_unreadable(&self, record: &Record) {
        for (file, error) in &record.unreadable {
            self.warn(format!("the host keys on record in {} could not be read: {error}", file.display()));
        }
    }

    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn farewell(&self) -> Option<Farewell> {
        self.farewell.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What we offer and how we behave on a connection.
pub(super) fn config(endpoint: &Endpoint, record: &Record, pin: &Pin) -> client::Config {
    let mut known = record.algorithms();
    known.extend(pin.key().map(|key| key.algorithm()));
    client::Config {
        window_size: 16 << 20,
        // More would be legal, and OpenSSH takes 256 KiB, but that was not measurably faster, and russh logs an error.
        maximum_packet_size: 65_535,
        // Packets of up to 64 KiB: with these a channel takes up to 20 MiB while its reader stands still.
        channel_buffer_size: 256,
        preferred: Preferred {
            key: Cow::Owned(host_key_algorithms(&known)),
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_192_CTR,
                cipher::AES_128_CTR,
            ]),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(endpoint.keepalive),
        keepalive_max: endpoint.keepalive_max as usize,
        nodelay: true,
        ..client::Config::default()
    }
}

/// All types worth having, those on record first: a host that is known by one of its keys shows that one.
fn host_key_algorithms(recorded: &[Algorithm]) -> Vec<Algorithm> {
    let usable = Preferred::DEFAULT.key.iter().filter(|algorithm| **algorithm != Algorithm::Rsa { hash: None });
    let known = |algorithm: &&Algorithm| {
        recorded.iter().any(|recorded| match (recorded, algorithm) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (recorded, algorithm) => recorded == *algorithm,
        })
    };
    let (mut first, rest): (Vec<_>, Vec<_>) = usable.partition(known);
    first.extend(rest);
    first.into_iter().cloned().collect()
}

/// The callbacks of a connection's task. It is dropped when that task ends, and the connection with it.
pub(super) struct Peer {
    endpoint: Endpoint,
    record: Record,
    pin: Arc<Pin>,
    shared: Arc<Shared>,
    _gone: DropGuard,
}

/// What a callback, or russh itself, stops the connection with.
#[derive(Debug)]
pub(super) enum Fault {
    Russh(russh::Error),
    /// The host key was refused.
    HostKey(Box<SshError>),
}

impl From<russh::Error> for Fault {
    fn from(error: russh::Error) -> Self {
        Self::Russh(error)
    }
}

impl Fault {
    /// The error for a handshake that ended like this.
    pub(super) fn into_error(self, endpoint: &Endpoint) -> SshError {
        let address = endpoint.address();
        let dropped =
            |source| SshError::Unreachable { address: endpoint.address(), cause: Unreachable::Dropped, source };
        match self {
            Self::HostKey(error) => *error,
            Self::Russh(russh::Error::IO(error)) => dropped(Some(Arc::new(error))),
            Self::Russh(
                russh::Error::HUP | russh::Error::Disconnect | russh::Error::SendError | russh::Error::RecvError,
            ) => dropped(None),
            Self::Russh(error) => SshError::Handshake { address, source: Arc::new(error) },
        }
    }
}

impl client::Handler for Peer {
    type Error = Fault;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Fault> {
        let key = shown.public_key();
        self.check(&key).await.map_err(|error| Fault::HostKey(Box::new(error)))?;
        Ok(true)
    }

    // Nothing that the box could open towards us was ever asked for. A reply that is dropped refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Fault> {
        Ok(())
    }

    async fn disconnected(&mut self, reason: client::DisconnectReason<Fault>) -> Result<(), Fault> {
        let (said, text, result) = match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                (true, format!("the box said: {}", clip(&info.message)), Ok(()))
            }
            client::DisconnectReason::Error(fault) if self.shared.leaving.load(Ordering::Relaxed) => {
                (false, "it was closed on this side".to_owned(), Err(fault))
            }
            client::DisconnectReason::Error(fault) => (false, describe(&fault), Err(fault)),
        };
        *self.shared.farewell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Farewell { said, text });
        result
    }
}

fn describe(fault: &Fault) -> String {
    match fault {
        Fault::Russh(russh::Error::KeepaliveTimeout) => "the box no longer answers".to_owned(),
        Fault::Russh(russh::Error::IO(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the box closed it".to_owned()
        }
        Fault::Russh(russh::Error::Disconnect | russh::Error::HUP) => "the box closed it".to_owned(),
        Fault::Russh(error) => error.to_string(),
        Fault::HostKey(error) => error.to_string(),
    }
}

impl Peer {
    /// Dropping the peer, which russh does when the connection ends, cancels `gone`.
    pub(super) fn new(
        endpoint: Endpoint,
        record: Record,
        pin: Arc<Pin>,
        shared: Arc<Shared>,
        gone: &CancellationToken,
    ) -> Self {
        Self { endpoint, record, pin, shared, _gone: gone.clone().drop_guard() }
    }

    /// Whether the policy lets this host key pass. One that is seen for the first time is put on record.
    async fn check(&self, key: &PublicKey) -> Result<(), SshError> {
        match self.endpoint.host_keys {
            HostKeyPolicy::Off => {
                let fingerprint = known_hosts::fingerprint(key);
                let address = self.endpoint.address();
                tracing::warn!("the host key of {address} was not checked, as its policy is off: {fingerprint}");
                self.pin.judge(&self.record.name, key)
            }
            HostKeyPolicy::Strict => self.settle(self.record.judge(key), key),
            HostKeyPolicy::AcceptNew => match self.record.judge(key) {
                Verdict::Unknown => self.remember(key).await,
                verdict => self.settle(verdict, key),
            },
        }
    }

    fn settle(&self, verdict: Verdict, key: &PublicKey) -> Result<(), SshError> {
        let host = self.record.name.clone();
        let fingerprint = known_hosts::fingerprint(key);
        match verdict {
            Verdict::Known => Ok(()),
            Verdict::Revoked { file, line } => Err(SshError::HostKeyRevoked { host, fingerprint, file, line }),
            Verdict::Changed { file, line, old } => {
                Err(SshError::HostKeyChanged { host, file, line, old, new: fingerprint })
            }
            Verdict::Unknown => Err(SshError::HostKeyUnknown {
                fingerprint,
                file: self.endpoint.known_hosts.first().map(|file| file.path.clone()).unwrap_or_default(),
                entry: known_hosts::entry_line(&host, key),
                host,
            }),
        }
    }

    /// Records a key on first sight, unless another connection has recorded a different one meanwhile. That it cannot be
    /// recorded is only a warning: this connection is as safe as a recorded one, and the next ones are held to its key.
    async fn remember(&self, key: &PublicKey) -> Result<(), SshError> {
        let host = &self.record.name;
        let Some(file) = self.endpoint.known_hosts.first().cloned() else { return self.pin.judge(host, key) };
        let (named, name, new) = (file.clone(), self.record.name.clone(), key.clone());
        let file = file.path;
        let error = match blocking(move || known_hosts::remember(&named, &name, &new)).await {
            Ok(Ok(Verdict::Unknown)) => {
                let fingerprint = known_hosts::fingerprint(key);
                tracing::info!("new host key of {} recorded in {}: {fingerprint}", self.record.name, file.display());
                return Ok(());
            }
            Ok(Ok(verdict)) => return self.settle(verdict, key),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.shared.warn(format!("the host key of {host} could not be recorded in {}: {error}", file.display()));
        self.pin.judge(host, key)
    }
}
