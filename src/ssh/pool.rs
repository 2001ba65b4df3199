//! The connections of this program: found, shared, replaced and closed here.
//!
//! For each route there is one connection for HTTP and websockets and, from the first transfer on, one for files. Callers
//! that ask at the same time share one dial and its outcome. A connection that died is replaced by the next call; one that
//! nobody uses is closed after a minute. Not more than four dials per host run at a time, because sshd turns
//! unauthenticated connections away by chance from the eleventh on (`MaxStartups 10:30:100`).

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    BoxName, Options, Session, SshError, Target,
    connection::{Connection, blocking},
    keys::KeyRing,
    pin::Pin,
    route::Route,
    socket_folder,
};
use crate::home::expand_home;

/// A route that nobody has a session for is kept for so long.
const GRACE: Duration = Duration::from_secs(60);
const SWEEP_EVERY: Duration = Duration::from_secs(15);
const DIALS_PER_HOST: usize = 4;
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How long [`Pool::close_all`] waits for goodbyes.
const GOODBYE: Duration = Duration::from_secs(1);

/// All SSH connections of this program. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// What pool and sessions share.
pub(super) struct Shared {
    options: Options,
    keys: Arc<KeyRing>,
    slots: Mutex<HashMap<Route, Arc<Slot>>>,
    /// The dials per first hop.
    dials: Mutex<HashMap<String, Weak<Semaphore>>>,
    closing: CancellationToken,
    sweeping: AtomicBool,
}

/// The connections along one route.
pub(super) struct Slot {
    route: Route,
    /// One for each hop.
    pins: Vec<Arc<Pin>>,
    control: Line,
    transfer: Line,
    users: Mutex<Users>,
}

#[derive(Debug)]
struct Users {
    count: usize,
    idle_since: Instant,
}

/// What a connection is for. Files have one of their own, so that they do not hold up messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// HTTP and websockets.
    Control,
    /// Files.
    Transfer,
}

/// One connection that is made on demand, and made again when it is gone.
#[derive(Default)]
struct Line {
    state: tokio::sync::Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    connection: Option<Arc<Connection>>,
    /// How the last dial failed and when, for those who waited for it.
    failure: Option<(Instant, SshError)>,
}

/// Keeps what the pool knows of the way to a box, such as a host key that is on no record, also between connections.
pub struct Hold {
    _lease: Lease,
}

/// Keeps a slot from being swept away while somebody uses it.
pub(super) struct Lease {
    slot: Arc<Slot>,
}

impl Pool {
    /// A pool without any connections yet.
    ///
    /// # Errors
    /// [`SshError::Config`] if a limit is zero, since nothing could be connected then.
    pub fn new(options: Options) -> Result<Self, SshError> {
        let zero = [
            ("connect_attempts", options.connect_attempts == 0),
            ("connect_timeout", options.connect_timeout.is_zero()),
            ("keepalive", options.keepalive.is_zero()),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, is_zero)| *is_zero) {
            return Err(SshError::Config { message: format!("{name} must be more than 0") });
        }
        let options = Options {
            known_hosts: expand_home(&options.known_hosts),
            identity_files: options.identity_files.iter().map(|file| expand_home(file)).collect(),
            passphrase_file: options.passphrase_file.as_deref().map(expand_home),
            config_file: options.config_file.as_deref().map(expand_home),
            // Deadlines are computed from these, and must stay computable.
            connect_timeout: options.connect_timeout.min(LONGEST),
            keepalive: options.keepalive.min(LONGEST),
            ..options
        };
        let default_files = match env::home_dir() {
            Some(home) => ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name)).into(),
            None => Vec::new(),
        };
        socket_folder::remove_stale();
        let keys = KeyRing::new(options.use_agent, options.passphrase_file.clone(), default_files);
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                keys: Arc::new(keys),
                slots: Mutex::default(),
                dials: Mutex::default(),
                closing: CancellationToken::new(),
                sweeping: AtomicBool::new(false),
            }),
        })
    }

    /// A session with the target: an existing connection if there is one that lives, a new one otherwise.
    ///
    /// Transient failures are tried again up to `connect_attempts` times. Needs a tokio runtime. Cancel-safe.
    ///
    /// # Errors
    /// Why there is no connection; see [`SshError::kind`].
    pub async fn connect(&self, target: &Target) -> Result<Session, SshError> {
        self.shared.start_sweeper();
        let (wanted, shared) = (target.clone(), Arc::clone(&self.shared));
        let (route, mut warnings) = blocking(move || Route::resolve(&wanted, &shared.options)).await??;
        let lease = self.shared.lease(route)?;
        let control = self.shared.get(&lease.slot, Purpose::Control).await?;
        warnings.extend(control.warnings());
        Ok(Session::new(Arc::clone(&self.shared), lease, control, target.clone(), warnings))
    }

    /// Keeps what is known of the way to a target while the hold lasts. `None` where [`connect`](Self::connect) will fail
    /// too.
    pub async fn hold(&self, target: &Target) -> Option<Hold> {
        let (wanted, shared) = (target.clone(), Arc::clone(&self.shared));
        let (route, _) = blocking(move || Route::resolve(&wanted, &shared.options)).await.ok()?.ok()?;
        self.shared.lease(route).ok().map(|lease| Hold { _lease: lease })
    }

    /// Which box a target is, if the way to it keeps to what the operator allows: its hosts, and the files that it names.
    /// Blocks: reads `~/.ssh/config`.
    ///
    /// # Errors
    /// [`SshError::HostRefused`] and [`SshError::FileRefused`] only; what else is wrong shows when connecting.
    pub fn check(&self, target: &Target) -> Result<BoxName, SshError> {
        let route = Route::resolve(target, &self.shared.options);
        let found = route.and_then(|(route, _)| route.check_files().map(|()| BoxName::of(&route)));
        match found {
            Err(error @ (SshError::HostRefused { .. } | SshError::FileRefused { .. })) => Err(error),
            found => Ok(found.unwrap_or_else(|_| BoxName::given(target))),
        }
    }

    /// Which box a connection string leads to, allowed or not. Blocks: reads `~/.ssh/config`.
    #[must_use]
    pub fn box_name(&self, ssh_connection: &str) -> BoxName {
        let known = Target::parse(ssh_connection).ok().and_then(|target| self.check(&target).ok());
        known.unwrap_or_else(|| BoxName::unresolved(ssh_connection))
    }

    /// What the user should know about the way to a target before it is taken, such as lines of `~/.ssh/config` that
    /// are not used. [`connect`](Self::connect) gives the same with its session, if it comes to one.
    pub async fn warnings(&self, target: &Target) -> Vec<String> {
        let (wanted, shared) = (target.clone(), Arc::clone(&self.shared));
        match blocking(move || Route::resolve(&wanted, &shared.options)).await {
            Ok(Ok((_, warnings))) => warnings,
            _ => Vec::new(),
        }
    }

    /// Closes all connections, also those in use, and refuses new ones from now on. Takes at most about a second.
    pub async fn close_all(&self) {
        self.shared.closing.cancel();
        let slots: Vec<_> = lock(&self.shared.slots).drain().map(|(_, slot)| slot).collect();
        let goodbyes = slots.iter().map(|slot| slot.close());
        let _ = timeout(GOODBYE * 2, futures_util::future::join_all(goodbyes)).await;
    }
}

impl Shared {
    /// The connection of a slot for this purpose, dialled if need be.
    pub(super) async fn get(&self, slot: &Slot, purpose: Purpose) -> Result<Arc<Connection>, SshError> {
        let line = match purpose {
            Purpose::Control => &slot.control,
            Purpose::Transfer => &slot.transfer,
        };
        tokio::select! {
            connection = line.get(self, slot) => connection,
            () = self.closing.cancelled() => Err(SshError::Closed),
        }
    }

    fn lease(&self, route: Route) -> Result<Lease, SshError> {
        let mut slots = lock(&self.slots);
        // Under the lock, so that no slot appears after close_all has emptied the map.
        if self.closing.is_cancelled() {
            return Err(SshError::Closed);
        }
        let slot = slots.entry(route).or_insert_with_key(|route| Arc::new(Slot::new(route.clone())));
        lock(&slot.users).count += 1;
        Ok(Lease { slot: Arc::clone(slot) })
    }

    /// Dials until it works, the failure is final, or the attempts are used up.
    async fn dial(&self, slot: &Slot) -> Result<Connection, SshError> {
        let permits = self.permits(&slot.route);
        let mut attempt = 1;
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await;
            let result = Connection::open(&slot.route, &self.keys, &slot.pins).await;
            drop(permit);
            match result {
                Err(error) if error.is_transient() && attempt < self.options.connect_attempts => {
                    tracing::debug!(attempt, "connecting failed, trying again: {error}");
                    sleep(Duration::from_millis(300) * attempt.min(4)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn permits(&self, route: &Route) -> Arc<Semaphore> {
        let first = route.hops.first().map(|hop| hop.address()).unwrap_or_default();
        let mut dials = lock(&self.dials);
        dials.retain(|_, permits| permits.strong_count() > 0);
        if let Some(permits) = dials.get(&first).and_then(Weak::upgrade) {
            return permits;
        }
        let permits = Arc::new(Semaphore::new(DIALS_PER_HOST));
        dials.insert(first, Arc::downgrade(&permits));
        permits
    }

    /// Starts the task that closes what nobody uses, once. It ends with the pool.
    fn start_sweeper(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(pool) = pool.upgrade().filter(|pool| !pool.closing.is_cancelled()) else { return };
                let stale = pool.sweep(Instant::now());
                drop(pool);
                for slot in stale {
                    slot.close().await;
                }
            }
        });
    }

    /// Takes out the slots that nobody has used for a while.
    fn sweep(&self, now: Instant) -> Vec<Arc<Slot>> {
        lock(&self.slots).extract_if(|_, slot| slot.is_stale(now)).map(|(_, slot)| slot).collect()
    }
}

impl Slot {
    pub(super) fn box_name(&self) -> BoxName {
        BoxName::of(&self.route)
    }

    fn new(route: Route) -> Self {
        Self {
            pins: route.hops.iter().map(|_| Arc::default()).collect(),
            route,
            control: Line::default(),
            transfer: Line::default(),
            users: Mutex::new(Users { count: 0, idle_since: Instant::now() }),
        }
    }

    fn is_stale(&self, now: Instant) -> bool {
        let users = lock(&self.users);
        users.count == 0 && now.saturating_duration_since(users.idle_since) >= GRACE
    }

    async fn close(&self) {
        tokio::join!(self.control.close(), self.transfer.close());
    }
}

impl Line {
    async fn get(&self, pool: &Shared, slot: &Slot) -> Result<Arc<Connection>, SshError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.take_if(|connection| connection.is_closed()) {
            tracing::debug!("replacing a connection that is gone: {}", connection.lost());
        }
        if let Some(connection) = &state.connection {
            return Ok(Arc::clone(connection));
        }
        // Whoever waited for this dial shares its failure instead of repeating it one by one.
        if let Some((failed, error)) = &state.failure
            && *failed >= asked
        {
            return Err(error.clone());
        }
        match pool.dial(slot).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = LineState { connection: Some(Arc::clone(&connection)), failure: None };
                Ok(connection)
            }
            Err(error) => {
                state.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn close(&self) {
        // A dial in progress holds the lock; it is given up by whoever runs it.
        if let Ok(mut state) = timeout(GOODBYE, self.state.lock()).await
            && let Some(connection) = state.connection.take()
        {
            connection.close(GOODBYE).await;
        }
    }
}

impl Lease {
    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut users = lock(&self.slot.users);
        users.count = users.count.saturating_sub(1);
        users.idle_since = Instant::now();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
