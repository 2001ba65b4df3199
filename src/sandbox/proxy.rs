//! A TCP proxy on which accidents can be arranged: the bad network between a client and a server.
//!
//! Used by tests and examples, in front of the sandbox's SSH server or a real one. Everything is off at first and may
//! change while connections run. Each switch imitates what real networks do to a connection; the bytes themselves are
//! never looked at nor altered.
//!
//! One thing can't be imitated from here: a connection attempt whose packets vanish. With the road blocked, this end's
//! kernel still completes the client's `connect`, and silence follows.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

const BACKLOG: u32 = 64;
const MAX_CONNECTIONS: usize = 256;
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that move as one.
const CHUNK: usize = 32 * 1024;

/// Chunks under way per direction of a connection: what a delayed road holds.
const CHUNKS_UNDER_WAY: usize = 128;

/// A way through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// A running proxy on a port of its own. Dropping it ends every task and connection.
pub struct ChaosProxy {
    shared: Arc<Shared>,
    port: u16,
    /// Bound but deaf: keeps the port ours while it is refused.
    _reservation: TcpSocket,
    _stop: DropGuard,
}

struct Shared {
    server: SocketAddr,
    road: watch::Sender<Road>,
    up: Lane,
    down: Lane,
    lose_answer_after: Mutex<Option<u64>>,
    /// Cancelled by the next cut.
    connections: Mutex<CancellationToken>,
    open: AtomicUsize,
    accepted: AtomicUsize,
}

/// What holds for both directions at once.
#[derive(Debug, Clone, Copy, Default)]
struct Road {
    refused: bool,
    stalled: bool,
    silent: bool,
}

/// One direction of all connections together.
#[derive(Default)]
struct Lane {
    passed: AtomicU64,
    settings: Mutex<LaneSettings>,
}

#[derive(Default)]
struct LaneSettings {
    delay: Duration,
    bytes_per_second: Option<NonZeroU64>,
    /// When the bytes that were let through before have passed the bottleneck.
    free_at: Option<Instant>,
    cut_after: Option<u64>,
}

impl ChaosProxy {
    /// Listens on a free port of 127.0.0.1 and connects each client to `server`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let reservation = shared_port(0)?;
        let port = reservation.local_addr()?.port();
        let listener = shared_port(port)?.listen(BACKLOG)?;
        let shared = Arc::new(Shared {
            server,
            road: watch::Sender::default(),
            up: Lane::default(),
            down: Lane::default(),
            lose_answer_after: Mutex::default(),
            connections: Mutex::default(),
            open: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(Arc::clone(&shared), listener, port, stop.clone())));
        Ok(Self { shared, port, _reservation: reservation, _stop: stop.drop_guard() })
    }

    /// The port to connect to in place of the server's; stays the same.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes the port, as a machine that is up but runs no server. Open connections live on.
    pub fn refuse(&self, on: bool) {
        self.shared.road.send_modify(|road| road.refused = on);
    }

    /// Lets everything stand still: connections are open and no byte moves. Turned off, all of it arrives; nothing was
    /// lost.
    pub fn stall(&self, on: bool) {
        self.shared.road.send_modify(|road| road.stalled = on);
    }

    /// Loses every byte without a word, as a router does that has forgotten its connections. Neither side hears when
    /// the other one closes.
    ///
    /// Turned off, the connections of before stay lost, and those that were opened meanwhile begin to work.
    pub fn drop_silently(&self, on: bool) {
        self.shared.road.send_modify(|road| road.silent = on);
    }

    /// Resets every connection, on both sides. New ones are welcome.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Resets every connection once this many more bytes, over all connections, have gone in a direction.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.shared.lane(direction).settings().cut_after = Some(bytes);
    }

    /// Once this many more bytes have gone up, over all connections, nothing comes down any more on the connection
    /// that carried the last of them. It stays open and still carries bytes up.
    pub fn lose_answer_after(&self, bytes_up: u64) {
        *lock(&self.shared.lose_answer_after) = Some(bytes_up);
    }

    /// Makes every byte in a direction take so much longer. Bytes under way keep their time.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.shared.lane(direction).settings().delay = by;
    }

    /// Lets no more bytes than this through in a direction, over all connections. `None` is no limit.
    pub fn limit(&self, direction: Direction, bytes_per_second: Option<NonZeroU64>) {
        let mut settings = self.shared.lane(direction).settings();
        settings.bytes_per_second = bytes_per_second;
        settings.free_at = None;
    }

    /// Turns every switch off. Connections that were lost silently stay lost.
    pub fn clear(&self) {
        *lock(&self.shared.lose_answer_after) = None;
        *self.shared.up.settings() = LaneSettings::default();
        *self.shared.down.settings() = LaneSettings::default();
        self.shared.road.send_replace(Road::default());
    }

    /// Bytes that have arrived in a direction since the start.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.lane(direction).passed.load(Ordering::Relaxed)
    }

    /// Connections that clients hold open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Connections that clients have opened since the start.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ChaosProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosProxy")
            .field("port", &self.port)
            .field("server", &self.shared.server)
            .field("road", &*self.shared.road.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn cut(&self) {
        std::mem::take(&mut *lock(&self.connections)).cancel();
    }

    /// Waits while no byte moves.
    async fn moving(&self) {
        self.road_is(|road| !road.stalled).await;
    }

    async fn road_is(&self, wanted: impl FnMut(&Road) -> bool) {
        // The sender is ours, so this cannot fail.
        let _ = self.road.subscribe().wait_for(wanted).await;
    }

    /// Takes note of bytes that have arrived, and does what was to happen after so many. An error is a cut.
    fn arrived(&self, direction: Direction, bytes: u64, answers: &CancellationToken) -> io::Result<()> {
        let lane = self.lane(direction);
        lane.passed.fetch_add(bytes, Ordering::Relaxed);
        let cut = used_up(&mut lane.settings().cut_after, bytes);
        if direction == Direction::Up && used_up(&mut lock(&self.lose_answer_after), bytes) {
            answers.cancel();
        }
        if cut {
            self.cut();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Lane {
    fn settings(&self) -> MutexGuard<'_, LaneSettings> {
        lock(&self.settings)
    }

    /// Waits until so many bytes fit through the bottleneck.
    async fn room_for(&self, bytes: usize) {
        let at = {
            let mut settings = self.settings();
            let Some(rate) = settings.bytes_per_second else { return };
            let now = Instant::now();
            let begins = settings.free_at.unwrap_or(now).max(now);
            let ends = begins + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            settings.free_at = Some(ends);
            ends
        };
        sleep_until(at).await;
    }
}

/// Counts down, and says whether this was the moment.
fn used_up(left: &mut Option<u64>, bytes: u64) -> bool {
    match left {
        Some(more) if *more > bytes => {
            *more -= bytes;
            false
        }
        Some(_) => {
            *left = None;
            true
        }
        None => false,
    }
}

/// Several sockets of ours can have one port, of which those that listen get the connections.
fn shared_port(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

async fn listen(shared: Arc<Shared>, listener: TcpListener, port: u16, stop: CancellationToken) {
    let mut listener = Some(listener);
    loop {
        tokio::select! {
            () = accept(&shared, listener.as_ref(), &stop) => {}
            () = shared.road_is(|road| road.refused), if listener.is_some() => listener = None,
            () = shared.road_is(|road| !road.refused), if listener.is_none() => {
                listener = shared_port(port).and_then(|socket| socket.listen(BACKLOG)).ok();
                if listener.is_none() {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: Option<&TcpListener>, stop: &CancellationToken) {
    let Some(listener) = listener else { return std::future::pending().await };
    let accepted = listener.accept().await;
    match accepted.and_then(|(client, _)| reset_when_dropped(&client).map(|()| client)) {
        // The port is about to be closed.
        Ok(_) if shared.road.borrow().refused => {}
        Ok(client) if shared.open.load(Ordering::Relaxed) < MAX_CONNECTIONS => {
            shared.accepted.fetch_add(1, Ordering::Relaxed);
            shared.open.fetch_add(1, Ordering::Relaxed);
            let cut = lock(&shared.connections).clone();
            let serve = serve(Arc::clone(shared), client, cut);
            tokio::spawn(stop.clone().run_until_cancelled_owned(serve));
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%error, "the proxy could not accept a connection");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Serves one client to its end, however that comes about. Whatever is dropped on the way is reset.
async fn serve(shared: Arc<Shared>, client: TcpStream, cut: CancellationToken) {
    let mut client = Client { socket: client, shared: Arc::clone(&shared) };
    let Some(Ok(mut server)) = cut.run_until_cancelled(dial(&shared)).await else { return };
    tokio::select! {
        carried = carry(&shared, &mut client.socket, &mut server) => {
            if carried.is_ok() {
                say_goodbye(&client.socket);
                say_goodbye(&server);
            }
        }
        () = shared.road_is(|road| road.silent) => {
            cut.run_until_cancelled(lose(client, server)).await;
        }
        () = cut.cancelled() => {}
    }
}

/// The client's end of a connection; counted as open as long as it lives.
struct Client {
    socket: TcpStream,
    shared: Arc<Shared>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects to the server as soon as the road lets anything through.
async fn dial(shared: &Shared) -> io::Result<TcpStream> {
    shared.road_is(|road| !road.stalled && !road.silent).await;
    let socket = if shared.server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    reset_when_dropped(&socket)?;
    timeout(DIAL_TIMEOUT, socket.connect(shared.server)).await?
}

/// Carries both directions until both have ended.
async fn carry(shared: &Shared, client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers_lost = CancellationToken::new();
    let up = async {
        let pumped = pump(shared, Direction::Up, &mut from_client, &mut to_server, &answers_lost).await;
        if pumped.is_err() && answers_lost.is_cancelled() {
            // That the server is gone would be an answer too.
            return drain(&mut from_client).await;
        }
        pumped
    };
    let down = async {
        tokio::select! {
            pumped = pump(shared, Direction::Down, &mut from_server, &mut to_client, &answers_lost) => return pumped,
            () = answers_lost.cancelled() => {}
        }
        drain(&mut from_server).await.or(Ok(()))
    };
    tokio::try_join!(up, down).map(drop)
}

/// Moves bytes one way until the sender has closed its end.
async fn pump(
    shared: &Shared,
    direction: Direction,
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    answers: &CancellationToken,
) -> io::Result<()> {
    let lane = shared.lane(direction);
    let (sender, mut under_way) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_UNDER_WAY);
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            shared.moving().await;
            buffer.reserve(CHUNK);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            let due = Instant::now() + lane.settings().delay;
            // The receiver outlives this future.
            let _ = sender.send((due, buffer.split().freeze())).await;
        }
    };
    let write = async {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            lane.room_for(bytes.len()).await;
            shared.moving().await;
            to.write_all(&bytes).await?;
            shared.arrived(direction, bytes.len() as u64, answers)?;
        }
        shared.moving().await;
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

/// Swallows what both ends say. The client's is closed when the client closes it; the server's lives on, since nobody
/// tells the server, until it is closed there.
async fn lose(mut client: Client, mut server: TcpStream) {
    let from_client = async move { drain(&mut client.socket.split().0).await };
    let from_server = async { drain(&mut server.split().0).await };
    // How they end is of no interest.
    let _ = tokio::join!(from_client, from_server);
}

async fn drain(from: &mut ReadHalf<'_>) -> io::Result<()> {
    tokio::io::copy(from, &mut tokio::io::sink()).await.map(drop)
}

/// Lets the other side see a reset when the socket is dropped.
fn reset_when_dropped<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    socket.into().set_linger(Some(Duration::ZERO))
}

/// Takes that back.
fn say_goodbye(socket: &TcpStream) {
    // A socket that is gone already needs no goodbye.
    let _ = SockRef::from(socket).set_linger(None);
}

/// A panicked holder leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
