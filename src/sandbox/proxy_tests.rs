#![allow(clippy::unwrap_used)]

use super::*;

/// Longest wait for something that is to happen.
const SOON: Duration = Duration::from_secs(20);

/// How long nothing must happen.
const QUIET: Duration = Duration::from_millis(150);

/// A server that says everything back, and the proxy in front of it.
struct Stage {
    proxy: ChaosProxy,
    server: TcpListener,
}

/// Both ends of one connection through the proxy.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Stage {
    async fn new() -> Self {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = ChaosProxy::start(server.local_addr().unwrap()).await.unwrap();
        Self { proxy, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.proxy.port())).await.unwrap()
    }

    async fn served(&self) -> TcpStream {
        timeout(SOON, self.server.accept()).await.unwrap().unwrap().0
    }

    async fn pair(&self) -> Pair {
        let client = self.connect().await;
        Pair { client, server: self.served().await }
    }

    async fn is_refused(&self) -> bool {
        let tried = TcpStream::connect((Ipv4Addr::LOCALHOST, self.proxy.port())).await;
        tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

async fn hears(socket: &mut TcpStream, words: &str) {
    let mut heard = vec![0; words.len()];
    timeout(SOON, socket.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(heard).unwrap(), words);
}

/// Neither bytes nor an end.
async fn hears_nothing(socket: &mut TcpStream) {
    let heard = timeout(QUIET, socket.read(&mut [0; 64])).await;
    assert!(heard.is_err(), "{heard:?}");
}

async fn is_reset(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(SOON, socket.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn bytes_and_goodbyes_pass_and_are_counted() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    pair.client.write_all(b"question").await.unwrap();
    pair.client.shutdown().await.unwrap();
    hears(&mut pair.server, "question").await;
    assert_eq!(pair.server.read(&mut [0; 1]).await.unwrap(), 0, "the end arrives, and the way back is still open");
    pair.server.write_all(b"the answer").await.unwrap();
    hears(&mut pair.client, "the answer").await;
    let Stage { proxy, .. } = &stage;
    until("the count", async || (proxy.passed(Direction::Up), proxy.passed(Direction::Down)) == (8, 10)).await;
    assert_eq!((proxy.open(), proxy.accepted()), (1, 1));
    drop(pair);
    until("the end", async || proxy.open() == 0).await;
}

#[tokio::test]
async fn a_refusing_port_is_closed_for_new_ones_and_the_same_afterwards() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.refuse(true);
    until("the closed port", async || stage.is_refused().await).await;
    pair.client.write_all(b"still here").await.unwrap();
    hears(&mut pair.server, "still here").await;
    stage.proxy.refuse(false);
    until("the open port", async || !stage.is_refused().await).await;
}

#[tokio::test]
async fn what_was_stalled_arrives_afterwards() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.stall(true);
    let mut later = stage.connect().await;
    later.write_all(b"hello").await.unwrap();
    pair.client.write_all(b"late").await.unwrap();
    hears_nothing(&mut pair.server).await;
    assert!(timeout(QUIET, stage.server.accept()).await.is_err(), "no new connection gets through either");
    stage.proxy.stall(false);
    hears(&mut pair.server, "late").await;
    hears(&mut stage.served().await, "hello").await;
}

#[tokio::test]
async fn a_cut_resets_both_ends_and_new_ones_are_welcome() {
    let stage = Stage::new().await;
    let (mut pair, mut other) = (stage.pair().await, stage.pair().await);
    stage.proxy.cut();
    for socket in [&mut pair.client, &mut pair.server, &mut other.client, &mut other.server] {
        is_reset(socket).await;
    }
    let mut pair = stage.pair().await;
    pair.client.write_all(b"again").await.unwrap();
    hears(&mut pair.server, "again").await;
}

#[tokio::test]
async fn a_cut_comes_in_the_middle_of_a_transfer() {
    let stage = Stage::new().await;
    stage.proxy.cut_after(Direction::Down, 100_000);
    let Pair { mut client, mut server } = stage.pair().await;
    client.write_all(&[1; 200_000]).await.unwrap();
    let mut upload = vec![0; 200_000];
    timeout(SOON, server.read_exact(&mut upload)).await.unwrap().unwrap();
    let sending = tokio::spawn(async move { server.write_all(&[2; 50_000_000]).await });
    is_reset(&mut client).await;
    assert!(timeout(SOON, sending).await.unwrap().unwrap().is_err());
    let passed = stage.proxy.passed(Direction::Down);
    assert!((100_000..100_000 + 2 * CHUNK as u64).contains(&passed), "{passed}");
}

#[tokio::test]
async fn a_silent_road_loses_all_and_tells_nobody() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.drop_silently(true);
    let mut meanwhile = stage.connect().await;
    meanwhile.write_all(b"anybody?").await.unwrap();
    pair.client.write_all(b"lost").await.unwrap();
    hears_nothing(&mut pair.server).await;
    drop(pair.server);
    hears_nothing(&mut pair.client).await;
    stage.proxy.drop_silently(false);
    hears(&mut stage.served().await, "anybody?").await;
    pair.client.write_all(b"lost for good").await.unwrap();
    hears_nothing(&mut pair.client).await;
    drop((pair.client, meanwhile));
    until("the clients' ends", async || stage.proxy.open() == 0).await;
}

#[tokio::test]
async fn a_server_does_not_hear_that_a_silent_client_has_gone() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.drop_silently(true);
    pair.client.write_all(b"lost").await.unwrap();
    hears_nothing(&mut pair.server).await;
    drop(pair.client);
    until("the client's end", async || stage.proxy.open() == 0).await;
    hears_nothing(&mut pair.server).await;
    stage.proxy.cut();
    is_reset(&mut pair.server).await;
}

#[tokio::test]
async fn one_answer_gets_lost_and_the_question_arrives() {
    let stage = Stage::new().await;
    let (mut pair, mut other) = (stage.pair().await, stage.pair().await);
    stage.proxy.lose_answer_after(8);
    pair.client.write_all(b"question").await.unwrap();
    hears(&mut pair.server, "question").await;
    // The count comes right after the delivery.
    until("the count", async || stage.proxy.passed(Direction::Up) == 8).await;
    pair.server.write_all(b"answer").await.unwrap();
    hears_nothing(&mut pair.client).await;
    pair.client.write_all(b"hello?").await.unwrap();
    hears(&mut pair.server, "hello?").await;
    drop(pair.server);
    hears_nothing(&mut pair.client).await;
    other.server.write_all(b"another").await.unwrap();
    hears(&mut other.client, "another").await;
}

#[tokio::test]
async fn a_delay_is_kept_per_direction() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.delay(Direction::Up, Duration::from_millis(120));
    stage.proxy.delay(Direction::Down, Duration::from_millis(80));
    let began = Instant::now();
    pair.client.write_all(b"ping").await.unwrap();
    hears(&mut pair.server, "ping").await;
    let there = began.elapsed();
    assert!(there >= Duration::from_millis(120), "{there:?}");
    pair.server.write_all(b"pong").await.unwrap();
    hears(&mut pair.client, "pong").await;
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_narrow_road_takes_its_time_and_clearing_widens_it() {
    let stage = Stage::new().await;
    let mut pair = stage.pair().await;
    stage.proxy.limit(Direction::Up, NonZeroU64::new(1_000_000));
    let began = Instant::now();
    let sending = tokio::spawn(async move {
        pair.client.write_all(&[3; 300_000]).await.unwrap();
        pair.client
    });
    timeout(SOON, pair.server.read_exact(&mut [0; 300_000])).await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
    let mut client = sending.await.unwrap();
    stage.proxy.limit(Direction::Up, NonZeroU64::new(1));
    stage.proxy.clear();
    client.write_all(&[4; 300_000]).await.unwrap();
    timeout(SOON, pair.server.read_exact(&mut [0; 300_000])).await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_proxy() {
    let Stage { proxy, server } = Stage::new().await;
    let port = proxy.port();
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let (mut served, _) = server.accept().await.unwrap();
    let shared = Arc::downgrade(&proxy.shared);
    drop(proxy);
    assert_eq!(timeout(SOON, client.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(timeout(SOON, served.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    until("the end of its tasks", async || shared.strong_count() == 0).await;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
}
