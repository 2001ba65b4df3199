//! An engine that speaks ComfyUI's HTTP and websocket protocol and runs prompts for real.
//!
//! Used by [`Sandbox`](super::Sandbox). A prompt travels through the files here in this order: [`submit`] accepts it,
//! [`validate`] judges it, [`queue`] keeps it, [`process`] takes it, [`execute`] runs its [`nodes`] in the order of
//! [`graph`] with the results of [`cache`], and [`socket`] tells the clients.
//! Everything but files is lost with the process, which [`Engine::restart`] ends and begins anew.

mod cache;
mod execute;
mod folders;
mod graph;
mod jobs;
mod json;
mod nodes;
mod preview;
mod process;
mod query;
mod queue;
mod routes;
mod socket;
mod submit;
mod transfer;
mod validate;
mod version;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fault::Faults;
use super::hold::Hold;
use cache::Cache;
use process::Process;
use queue::Queue;
use socket::Hub;

pub(super) use folders::Folders;
pub use version::Version;

/// ComfyUI's default `--max-upload-size` in bytes; it bounds every request body.
const MAX_BODY: usize = 100 << 20;

/// A handle to the engine: observes it, restarts it, makes it misbehave. Clones share the engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    process: Arc<tokio::sync::Mutex<Option<Process>>>,
    stop: CancellationToken,
}

/// What all parts of the engine share.
struct Shared {
    version: Version,
    address: SocketAddr,
    folders: Folders,
    queue: Queue,
    hub: Hub,
    cache: Arc<Mutex<Cache>>,
    /// Set by `/interrupt`, used up by the first node that looks.
    interrupted: watch::Sender<bool>,
    faults: Faults,
    submissions: AtomicUsize,
    /// How often the worker took each prompt id, over all restarts.
    runs: Mutex<HashMap<String, usize>>,
    interrupts: AtomicUsize,
    requests: AtomicUsize,
    definitions_asked_for: AtomicUsize,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }

    fn note_run(&self, prompt_id: &str) {
        *lock(&self.runs).entry(prompt_id.to_owned()).or_default() += 1;
    }

    /// Asks whatever runs to end at its next step.
    fn interrupt(&self) {
        self.interrupted.send_replace(true);
    }

    /// The answer to feature flags and of `/features`.
    fn features(&self) -> Value {
        let mut features = json!({"supports_preview_metadata": true, "max_upload_size": MAX_BODY});
        if let (Version::Current, Some(map)) = (self.version, features.as_object_mut()) {
            map.insert("extension".into(), json!({"manager": {"supports_v4": true}}));
            map.insert("node_replacements".into(), true.into());
            map.insert("assets".into(), false.into());
        }
        features
    }
}

impl Engine {
    pub(super) async fn start(
        address: SocketAddr,
        version: Version,
        folders: Folders,
        faults: Faults,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let listener = process::bind(address).await?;
        let shared = Arc::new(Shared {
            version,
            address: listener.local_addr()?,
            folders,
            queue: Queue::default(),
            hub: Hub::new(faults.clone()),
            cache: Arc::default(),
            interrupted: watch::Sender::new(false),
            faults,
            submissions: AtomicUsize::new(0),
            runs: Mutex::default(),
            interrupts: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            definitions_asked_for: AtomicUsize::new(0),
        });
        let process = Process::start(Arc::clone(&shared), listener, &stop);
        Ok(Self { shared, process: Arc::new(tokio::sync::Mutex::new(Some(process))), stop })
    }

    /// Port on 127.0.0.1; stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.shared.address.port()
    }

    /// The ComfyUI this engine imitates.
    pub fn version(&self) -> Version {
        self.shared.version
    }

    /// Kills the process: connections break off, the port is closed, queue, history and cache are gone. Files stay,
    /// those in the temp folder until the next start.
    pub async fn kill(&self) {
        if let Some(process) = self.process.lock().await.take() {
            process.end().await;
        }
        self.shared.queue.forget();
        self.shared.hub.forget();
        self.shared.cache().clear();
        self.shared.interrupted.send_replace(false);
    }

    /// Starts the process again after [`kill`](Self::kill), on the same port, with an empty temp folder. Does nothing
    /// if it runs.
    ///
    /// # Errors
    /// If somebody else took the port meanwhile.
    pub async fn revive(&self) -> io::Result<()> {
        let mut process = self.process.lock().await;
        if process.is_none() && !self.stop.is_cancelled() {
            self.shared.folders.wipe_temp()?;
            let listener = process::bind(self.shared.address).await?;
            *process = Some(Process::start(Arc::clone(&self.shared), listener, &self.stop));
        }
        Ok(())
    }

    /// [`kill`](Self::kill), then [`revive`](Self::revive).
    ///
    /// # Errors
    /// If somebody else took the port meanwhile.
    pub async fn restart(&self) -> io::Result<()> {
        self.kill().await;
        self.revive().await
    }

    /// The switches that make the sandbox misbehave.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Shorthand for [`Faults::hold_before`].
    pub fn hold_before(&self, node_id: &str) -> Hold {
        self.shared.faults.hold_before(node_id)
    }

    /// Shorthand for [`Faults::hold_at_step`].
    pub fn hold_at_step(&self, node_id: &str, step: u64) -> Hold {
        self.shared.faults.hold_at_step(node_id, step)
    }

    /// How many prompts were accepted since the sandbox started, over all restarts.
    pub fn submissions(&self) -> usize {
        self.shared.submissions.load(Ordering::Relaxed)
    }

    /// How often each prompt id began to run since the sandbox started, over all restarts. A server that does as it
    /// should has no id more than once.
    pub fn runs(&self) -> HashMap<String, usize> {
        lock(&self.shared.runs).clone()
    }

    /// How many interrupts were asked for, lost ones included.
    pub fn interrupts(&self) -> usize {
        self.shared.interrupts.load(Ordering::Relaxed)
    }

    /// How many HTTP requests came in.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How often the definition of one class was asked for.
    pub fn definitions_asked_for(&self) -> usize {
        self.shared.definitions_asked_for.load(Ordering::Relaxed)
    }

    /// Ids of finished prompts, oldest first.
    pub fn history_ids(&self) -> Vec<String> {
        self.shared.queue.history_ids()
    }

    /// The history entry of a prompt, as `/history` shows it.
    pub fn history(&self, prompt_id: &str) -> Option<Value> {
        self.shared.queue.entry(prompt_id).map(|entry| entry.to_json())
    }

    /// Id of the prompt that runs.
    pub fn running(&self) -> Option<String> {
        self.shared.queue.running().map(|item| item.id)
    }

    /// Ids of waiting prompts, in the order of `/queue`, which is not the order they will run in.
    pub fn pending(&self) -> Vec<String> {
        self.shared.queue.pending().into_iter().map(|item| item.id).collect()
    }

    /// How many client ids have a websocket that hears something.
    pub fn sockets(&self) -> usize {
        self.shared.hub.len()
    }

    /// Waits for the end of the process; for the end of the sandbox.
    pub(super) async fn join(&self) {
        self.kill().await;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("version", &self.version()).field("port", &self.port()).finish_non_exhaustive()
    }
}

/// A panicked holder leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
