//! The box's SSH server: public-key login with one fresh key, port forwarding to loopback, SFTP.
//!
//! Used by [`Sandbox`](super::Sandbox). It follows OpenSSH where a client can tell: forwarding to a closed port fails
//! as "connect failed", refused forwarding as "administratively prohibited", a missing subsystem as a failed request.
//! There is no shell and no command execution.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SandboxError;
use super::counted::Counted;
use super::fault::Faults;
use super::sftp::Sftp;

/// The user name that may log in.
pub(super) const USER: &str = "sandbox";
/// The client's key in the key folder.
pub(super) const CLIENT_KEY_FILE: &str = "client_key";
/// The known-hosts file in the key folder.
pub(super) const KNOWN_HOSTS_FILE: &str = "known_hosts";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
const REBIND_PAUSE: Duration = Duration::from_millis(20);
const MAX_CONNECTIONS: usize = 256;
const MAX_SESSION_CHANNELS: usize = 64;
const PUMP_BUFFER: usize = 32 * 1024;

/// Fresh host and client keys.
pub(super) struct Keys {
    host: PrivateKey,
    client: PublicKey,
}

impl Keys {
    /// Makes both keys and writes the client's into `folder`, readable by its owner only.
    pub(super) fn generate(folder: &Path) -> Result<Self, SandboxError> {
        let host = fresh_key("sandbox host key").map_err(SandboxError::Keys)?;
        let client = fresh_key("sandbox client key").map_err(SandboxError::Keys)?;
        let text = client.to_openssh(LineEnding::LF).map_err(SandboxError::Keys)?;
        let path = folder.join(CLIENT_KEY_FILE);
        write_private(&path, text.as_bytes()).map_err(|source| SandboxError::Folder { path, source })?;
        Ok(Self { host, client: client.public_key().clone() })
    }
}

/// What the server needs to run.
pub(super) struct Setup {
    pub(super) address: SocketAddr,
    pub(super) keys: Keys,
    pub(super) root: PathBuf,
    pub(super) sftp: bool,
    pub(super) forwarding: bool,
    pub(super) faults: Faults,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// A running server.
pub(super) struct SshServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    config: Arc<Config>,
    client_key: PublicKey,
    host_key: PublicKey,
    root: PathBuf,
    sftp: bool,
    forwarding: bool,
    faults: Faults,
    stop: CancellationToken,
    tasks: TaskTracker,
    connections: AtomicUsize,
    forwards: Arc<AtomicUsize>,
    sftp_sessions: Arc<AtomicUsize>,
}

/// Binds the port and starts serving.
pub(super) async fn start(setup: Setup) -> io::Result<SshServer> {
    let listener = TcpListener::bind(setup.address).await?;
    let address = listener.local_addr()?;
    let config = Config {
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(50),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![setup.keys.host.clone()],
        inactivity_timeout: None,
        nodelay: true,
        ..Config::default()
    };
    let shared = Arc::new(Shared {
        config: Arc::new(config),
        client_key: setup.keys.client,
        host_key: setup.keys.host.public_key().clone(),
        root: setup.root,
        sftp: setup.sftp,
        forwarding: setup.forwarding,
        faults: setup.faults,
        stop: setup.stop,
        tasks: setup.tasks,
        connections: AtomicUsize::new(0),
        forwards: Arc::default(),
        sftp_sessions: Arc::default(),
    });
    shared.tasks.spawn(listen(Arc::clone(&shared), listener, address));
    Ok(SshServer { shared, address })
}

impl SshServer {
    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub(super) fn forwards(&self) -> usize {
        self.shared.forwards.load(Ordering::Relaxed)
    }

    pub(super) fn sftp_sessions(&self) -> usize {
        self.shared.sftp_sessions.load(Ordering::Relaxed)
    }

    pub(super) fn fingerprint(&self) -> String {
        self.shared.host_key.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn known_hosts_line(&self) -> String {
        // An ed25519 key always has this form; an empty line would match no host.
        let key = self.shared.host_key.to_openssh().unwrap_or_default();
        let mut words = key.split(' ');
        let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        format!("[127.0.0.1]:{} {kind} {data}", self.port())
    }

    pub(super) fn write_known_hosts(&self, folder: &Path) -> io::Result<()> {
        write_private(&folder.join(KNOWN_HOSTS_FILE), format!("{}\n", self.known_hosts_line()).as_bytes())
    }
}

/// Accepts connections until the end. While a test refuses SSH, the port is closed.
async fn listen(shared: Arc<Shared>, listener: TcpListener, address: SocketAddr) {
    let mut refusal = shared.faults.ssh_refusal();
    let mut listener = Some(listener);
    loop {
        if *refusal.borrow_and_update() {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            // The sender lives in `shared`, so this never fails.
            _ = refusal.changed() => {}
            () = accept(&shared, listener.as_ref()), if listener.is_some() => {}
            // Somebody else has the port for the moment.
            () = tokio::time::sleep(REBIND_PAUSE), if listener.is_none() && !*shared.faults.ssh_refusal().borrow() => {}
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: Option<&TcpListener>) {
    let Some(listener) = listener else { return };
    match listener.accept().await {
        Ok((stream, _)) if shared.connections.load(Ordering::Relaxed) < MAX_CONNECTIONS => {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            let shared = Arc::clone(shared);
            shared.tasks.clone().spawn(async move {
                serve(&shared, stream).await;
                shared.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        // Beyond the limit the connection is closed at once, as sshd does beyond MaxStartups.
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%error, "the sandbox could not accept an SSH connection");
            tokio::time::sleep(REBIND_PAUSE).await;
        }
    }
}

/// Serves one connection. The bytes go through a pipe of ours, so that a test can cut, stall or count them.
async fn serve(shared: &Arc<Shared>, mut socket: TcpStream) {
    let cut = shared.faults.ssh_cut();
    let _ = socket.set_nodelay(true);
    let (near, far) = tokio::io::duplex(PUMP_BUFFER);
    let ended = CancellationToken::new();
    let _at_the_end = ended.clone().drop_guard();
    let handler = Connection { shared: Arc::clone(shared), ended, channels: HashMap::new() };
    let session = russh::server::run_stream(Arc::clone(&shared.config), far, handler);
    let session = shared.tasks.spawn(async move {
        match session.await {
            Ok(running) => running.await,
            Err(error) => Err(error),
        }
    });
    {
        let (socket_read, socket_write) = socket.split();
        let (near_read, near_write) = tokio::io::split(near);
        tokio::select! {
            () = pump(socket_read, near_write, &shared.faults) => {}
            () = pump(near_read, socket_write, &shared.faults) => {}
            () = cut.cancelled() => {}
            () = shared.stop.cancelled() => {}
        }
    }
    drop(socket);
    // The pipe is gone, so the session sees the end of its stream and finishes by itself.
    match tokio::time::timeout(GOODBYE_TIMEOUT, session).await {
        Ok(Ok(Err(error))) => tracing::debug!(%error, "an SSH connection to the sandbox ended"),
        Ok(_) => {}
        Err(_) => tracing::warn!("an SSH session of the sandbox did not end in time"),
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, faults: &Faults) {
    let mut buffer = vec![0; PUMP_BUFFER];
    loop {
        faults.moving().await;
        let Ok(length) = from.read(&mut buffer).await else { return };
        faults.moving().await;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return };
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
        faults.count_ssh_bytes(length as u64);
    }
}

/// One client's connection.
struct Connection {
    shared: Arc<Shared>,
    /// Cancelled with the connection: a channel that waits for the client to read more would not notice its end.
    ended: CancellationToken,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Connection {
    fn is_welcome(&self, user: &str, key: &PublicKey) -> bool {
        user == USER && key.key_data() == self.shared.client_key.key_data()
    }

    fn judge(&self, user: &str, key: &PublicKey) -> Auth {
        if self.is_welcome(user, key) { Auth::Accept } else { Auth::reject() }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.len() >= MAX_SESSION_CHANNELS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            self.channels.insert(channel.id(), channel);
            reply.accept().await;
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let shared = Arc::clone(&self.shared);
        let Some(target) =
            loopback_target(host, port).filter(|_| shared.forwarding && !shared.faults.forwarding_refused())
        else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        // In a task of its own: a slow connect must not stop the other channels.
        self.shared.tasks.spawn(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
                Ok(Ok(socket)) => {
                    let _ = socket.set_nodelay(true);
                    let _counted = Counted::new(&shared.forwards);
                    reply.accept().await;
                    forward(channel, socket, &shared.stop).await;
                }
                _ => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        let offered = name == "sftp" && self.shared.sftp && !self.shared.faults.sftp_refused();
        match self.channels.remove(&id) {
            Some(channel) if offered => {
                session.channel_success(id)?;
                let alive = (self.shared.tasks.token(), Counted::new(&self.shared.sftp_sessions));
                let sftp = Sftp::new(self.shared.root.clone(), self.shared.faults.clone(), alive);
                let (near, far) = tokio::io::duplex(PUMP_BUFFER);
                russh_sftp::server::run(far, sftp).await;
                self.shared.tasks.spawn(self.ended.child_token().run_until_cancelled_owned(join(channel, near)));
                Ok(())
            }
            other => {
                self.channels.extend(other.map(|channel| (id, channel)));
                session.channel_failure(id)
            }
        }
    }

    async fn exec_request(&mut self, id: ChannelId, _command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}

/// Carries an SFTP session's bytes.
async fn join(channel: Channel<Msg>, mut session: DuplexStream) {
    // An error just means that one side went away.
    let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut session).await;
}

async fn forward(channel: Channel<Msg>, mut socket: TcpStream, stop: &CancellationToken) {
    let mut stream = channel.into_stream();
    tokio::select! {
        // An error just means that one side went away.
        _ = tokio::io::copy_bidirectional(&mut stream, &mut socket) => {}
        () = stop.cancelled() => {}
    }
    let _ = stream.shutdown().await;
}

/// The box forwards to itself only.
fn loopback_target(host: &str, port: u32) -> Option<SocketAddr> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let address = match host {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        other => other.trim_matches(['[', ']']).parse().ok()?,
    };
    address.is_loopback().then(|| SocketAddr::new(address, port))
}

fn fresh_key(comment: &str) -> ssh_key::Result<PrivateKey> {
    // Two random UUIDs carry 244 random bits from the operating system; the hash spreads them over the seed.
    let mut seed = Sha256::new();
    seed.update(uuid::Uuid::new_v4().as_bytes());
    seed.update(uuid::Uuid::new_v4().as_bytes());
    PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&seed.finalize().into())), comment)
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}
