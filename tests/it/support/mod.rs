//! What the stories need around the service: a real OpenSSH server, a real ComfyUI, the built binary as a process of
//! its own, and a client of the API.
//!
//! Everything listens on 127.0.0.1, lives in its own temporary folder and is stopped when dropped. Waiting means to
//! look until a deadline has passed, and a passed deadline is a panic that says what was seen last.

#![allow(dead_code, reason = "each story uses its own part of this")]
#![allow(clippy::print_stderr, reason = "the test harness shows it with a failure")]

use std::{
    fs::OpenOptions,
    io::Write,
    net::TcpListener,
    time::{Duration, Instant},
};

pub(crate) mod client;
pub(crate) mod comfyui;
pub(crate) mod service;
pub(crate) mod sshd;
pub(crate) mod tmpfs;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod tracer;

/// Longest wait for something that takes a moment, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Says that a test can't run here, and leaves it to the test to return.
///
/// `part` is one word for what is missing (`sshd`, `comfyui`). The line goes to stderr and to the list that `tests/run`
/// shows at its end. In CI a test must not be skipped, save for a part that `tests/run` was not asked for.
pub(crate) fn skip(part: &str, reason: &str) {
    let excused = std::env::var("TESTS_MAY_SKIP").unwrap_or_default();
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        !in_ci || excused.split(',').any(|name| name == part),
        "can't run without {part}, and CI skips nothing: {reason}"
    );
    eprintln!("skipped for want of {part}: {reason}");
    let Ok(list) = std::env::var("TESTS_SKIPPED") else { return };
    // One write of one short line in append mode: other tests write to the same list.
    if let Ok(mut list) = OpenOptions::new().append(true).open(list) {
        let _ = list.write_all(format!("{part}: {reason}\n").as_bytes());
    }
}

/// A port on which nothing listens at the moment, for a server that is started on it at once. Somebody else may take it
/// before: try again then. For a port that stays closed, take `loopback::Deaf`.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port on 127.0.0.1");
    listener.local_addr().expect("address of a bound listener").port()
}

/// Looks until `look` finds something. Blocks the thread: for use outside of async code.
///
/// # Panics
/// After `patience`, naming `what`.
pub(crate) fn wait_until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until `look` finds something, and lets other tasks of the test go on meanwhile.
///
/// # Panics
/// After [`SOON`], naming `what`.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {SOON:?} in vain for {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
