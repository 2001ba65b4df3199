//! The two far ends in miniature: an SSH server with port forwarding and SFTP, and an engine that speaks ComfyUI's
//! HTTP and websocket protocol and runs a small set of nodes for real, on pixels. For the way to any SSH server, this one
//! or a real one, there is a [`ChaosProxy`].
//!
//! Used by the demo, the examples and the tests, never by the service itself. It lives in the process that starts it,
//! binds to loopback only, makes fresh keys for each start and keeps every remote file below one folder.
//! It imports nothing from the rest of the crate: if both ends shared a definition, a shared mistake would pass
//! every test. What it says follows recordings of real servers (`tests/fixtures/traces`), and `tests/fidelity`
//! holds it to them.
//!
//! Deliberately absent: models, video and audio nodes, run-time graph expansion, several users, TLS.

mod counted;
mod engine;
mod fault;
mod hold;
mod proxy;
mod sftp;
mod ssh;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use engine::{Engine, Version};
pub use fault::{Faults, LostAnswer, Page, WriteFault};
pub use hold::Hold;
pub use proxy::{ChaosProxy, Direction};

use engine::Folders;
use ssh::{Keys, SshServer};

/// What a [`Sandbox`] looks like from outside.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The folder that plays the box's file system; `None` makes a temporary one that is removed with the sandbox.
    pub root: Option<PathBuf>,
    /// Port of the SSH server on 127.0.0.1; 0 takes a free one.
    pub ssh_port: u16,
    /// Port of the engine on 127.0.0.1; 0 takes a free one.
    pub comfyui_port: u16,
    /// Which ComfyUI the engine imitates.
    pub version: Version,
    /// Whether the SSH server has an SFTP subsystem.
    pub sftp: bool,
    /// Whether the SSH server forwards ports, as `AllowTcpForwarding` does in OpenSSH.
    pub forwarding: bool,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self { root: None, ssh_port: 0, comfyui_port: 0, version: Version::default(), sftp: true, forwarding: true }
    }
}

/// Why a sandbox did not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A folder or key file of the sandbox could not be made.
    #[error("could not prepare the sandbox folder {path}; is it writable?")]
    Folder {
        /// The path in question.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// A port could not be bound.
    #[error("could not listen on {address} for the sandbox's {part}; is the port taken?")]
    Listen {
        /// `SSH server` or `ComfyUI engine`.
        part: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A key pair could not be made or written.
    #[error("could not make the sandbox's SSH keys")]
    Keys(#[source] russh::keys::ssh_key::Error),
}

/// A running sandbox. [`stop`](Self::stop) ends it in order; dropping it tells every task to end without waiting.
pub struct Sandbox {
    folders: Folders,
    ssh: SshServer,
    engine: Engine,
    faults: Faults,
    stop: CancellationToken,
    tasks: TaskTracker,
    keys: TempDir,
    // Declared last: the folder goes after everything that uses it.
    _root: Option<TempDir>,
}

impl Sandbox {
    /// Starts both servers. Once this returns they accept connections.
    ///
    /// # Errors
    /// [`SandboxError`] if a folder, a key or a port cannot be had; nothing keeps running then.
    pub async fn start(options: SandboxOptions) -> Result<Self, SandboxError> {
        let (root, temporary) = open_root(options.root)?;
        let folders = Folders::create(&root).map_err(|source| SandboxError::Folder { path: root, source })?;
        let keys_dir = temporary_folder("comfy-sandbox-keys-")?;
        let keys = Keys::generate(keys_dir.path())?;

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let faults = Faults::default();
        let guard = stop.clone().drop_guard();

        let ssh_address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.ssh_port));
        let ssh = ssh::start(ssh::Setup {
            address: ssh_address,
            keys,
            root: folders.root.clone(),
            sftp: options.sftp,
            forwarding: options.forwarding,
            faults: faults.clone(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        })
        .await
        .map_err(|source| SandboxError::Listen { part: "SSH server", address: ssh_address, source })?;

        let engine_address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.comfyui_port));
        let engine = Engine::start(engine_address, options.version, folders.clone(), faults.clone(), stop.clone())
            .await
            .map_err(|source| SandboxError::Listen { part: "ComfyUI engine", address: engine_address, source })?;

        ssh.write_known_hosts(keys_dir.path())
            .map_err(|source| SandboxError::Folder { path: keys_dir.path().to_owned(), source })?;
        guard.disarm();
        Ok(Self { folders, ssh, engine, faults, stop, tasks, keys: keys_dir, _root: temporary })
    }

    /// The way in, written as a rental site shows it: `ssh -p PORT -i KEY sandbox@127.0.0.1`.
    pub fn ssh_connection(&self) -> String {
        format!("ssh -p {} -i {} {}@127.0.0.1", self.ssh_port(), self.client_key().display(), ssh::USER)
    }

    /// Port of the SSH server.
    pub fn ssh_port(&self) -> u16 {
        self.ssh.port()
    }

    /// The user name that may log in.
    pub fn ssh_user(&self) -> &'static str {
        ssh::USER
    }

    /// The only key that may log in: an unencrypted ed25519 key in OpenSSH format, mode 0600, outside the root.
    pub fn client_key(&self) -> PathBuf {
        self.keys.path().join(ssh::CLIENT_KEY_FILE)
    }

    /// A `known_hosts` file that holds just this server.
    pub fn known_hosts(&self) -> PathBuf {
        self.keys.path().join(ssh::KNOWN_HOSTS_FILE)
    }

    /// The line of that file: `[127.0.0.1]:PORT ssh-ed25519 AAAA…`.
    pub fn known_hosts_line(&self) -> String {
        self.ssh.known_hosts_line()
    }

    /// The host key's fingerprint as OpenSSH prints it: `SHA256:…`.
    pub fn host_key_fingerprint(&self) -> String {
        self.ssh.fingerprint()
    }

    /// Port of the engine on 127.0.0.1, both of this machine and of the pretended box.
    pub fn comfyui_port(&self) -> u16 {
        self.engine.port()
    }

    /// The folder that plays the box's file system, with symbolic links resolved.
    pub fn root(&self) -> &Path {
        &self.folders.root
    }

    /// ComfyUI's input folder, the same path for this machine and over SFTP.
    pub fn input_dir(&self) -> &Path {
        &self.folders.input
    }

    /// ComfyUI's output folder.
    pub fn output_dir(&self) -> &Path {
        &self.folders.output
    }

    /// ComfyUI's temp folder; emptied by [`Engine::restart`].
    pub fn temp_dir(&self) -> &Path {
        &self.folders.temp
    }

    /// The engine, to observe and to restart it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The switches that make either server misbehave.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// How many SSH connections are open now.
    pub fn ssh_connections(&self) -> usize {
        self.ssh.connections()
    }

    /// How many bytes have passed over SSH so far, in both directions together.
    pub fn ssh_bytes(&self) -> u64 {
        self.faults.ssh_bytes()
    }

    /// How many forwarded connections are open now, over all SSH connections.
    pub fn forwards(&self) -> usize {
        self.ssh.forwards()
    }

    /// How many SFTP sessions are open now, over all SSH connections.
    pub fn sftp_sessions(&self) -> usize {
        self.ssh.sftp_sessions()
    }

    /// Ends every connection and task and waits for them; removes temporary folders.
    pub async fn stop(self) {
        self.stop.cancel();
        self.faults.release_all();
        self.engine.join().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("root", &self.folders.root)
            .field("ssh_port", &self.ssh_port())
            .field("comfyui_port", &self.comfyui_port())
            .finish_non_exhaustive()
    }
}

fn open_root(wanted: Option<PathBuf>) -> Result<(PathBuf, Option<TempDir>), SandboxError> {
    let temporary = match &wanted {
        Some(_) => None,
        None => Some(temporary_folder("comfy-sandbox-")?),
    };
    let path = match (&temporary, wanted) {
        (Some(dir), _) => dir.path().to_owned(),
        (None, path) => path.unwrap_or_default(),
    };
    Ok((path, temporary))
}

fn temporary_folder(prefix: &str) -> Result<TempDir, SandboxError> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .map_err(|source| SandboxError::Folder { path: std::env::temp_dir(), source })
}
