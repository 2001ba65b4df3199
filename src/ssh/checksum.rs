//! Checksums that the box computes itself, so that a file need not cross the line for them.
//!
//! The command is a constant and the file's path goes to its standard input: no text from outside is ever part of a
//! shell's words. Many boxes allow no commands, or lack the programs; then there is just no checksum, which is no error.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};

use super::{
    channel::ChannelIo,
    connection::{Connection, FarSide, OpenError},
};

/// Reads paths that end in NUL. Understood by the programs of GNU and of BusyBox.
const COMMAND: &str = "xargs -0 sha256sum --";

/// Commands side by side on one connection. One that is just being closed still counts for the box, so that with eight
/// SFTP channels there are OpenSSH's ten sessions.
const MAX_COMMANDS: usize = 1;

/// How long an answer may take for a small file: the box has to start a shell, which may read its start-up files.
const DEADLINE: Duration = Duration::from_secs(30);

/// Slower than this no disk is waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 20 << 20;

/// No answer is longer; what a shell says when it starts is part of it.
const MAX_ANSWER: u64 = 64 << 10;

/// What is known about one connection's box.
#[derive(Debug)]
pub(super) struct Checksums {
    turns: Semaphore,
    /// It refused a command, or let one hang: it is not asked again over this connection.
    unavailable: AtomicBool,
}

impl Default for Checksums {
    fn default() -> Self {
        Self { turns: Semaphore::new(MAX_COMMANDS), unavailable: AtomicBool::new(false) }
    }
}

/// The SHA-256 of a file of about `size` bytes; `None` if the box does not tell.
pub(super) async fn by_box(connection: &Arc<Connection>, path: &str, size: u64) -> Option<[u8; 32]> {
    let checksums = &connection.checksums;
    let _turn = checksums.turns.acquire().await.ok()?;
    // A path that is not absolute could be read as one of another folder; one with a NUL as two.
    if checksums.unavailable.load(Ordering::Relaxed) || !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let deadline = DEADLINE + Duration::from_secs(size / SLOWEST_BYTES_PER_SECOND);
    let asked = async {
        match connection.session(FarSide::Command(COMMAND)).await {
            Ok(channel) => ask(ChannelIo::new(channel, &connection.gone), path).await,
            Err(OpenError::Denied) => {
                checksums.unavailable.store(true, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    };
    let hash = match timeout(deadline, asked).await {
        Ok(answer) => answer.as_deref().and_then(|answer| parse(answer, path)),
        Err(_) => {
            checksums.unavailable.store(true, Ordering::Relaxed);
            None
        }
    };
    if hash.is_none() {
        tracing::debug!(path, "the box computes no checksum");
    }
    hash
}

async fn ask(mut stream: ChannelIo, path: &str) -> Option<String> {
    stream.write_all(path.as_bytes()).await.ok()?;
    stream.write_all(b"\0").await.ok()?;
    stream.shutdown().await.ok()?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// Finds the one line `<64 hex digits>  <path>` in an answer. A star may stand in front of the path, and a backslash in
/// front of the line, which is then not compared: it says that the path is written with escapes.
fn parse(answer: &str, path: &str) -> Option<[u8; 32]> {
    let digest = |line: &str| {
        let (line, is_escaped) = line.strip_prefix('\\').map_or((line, false), |line| (line, true));
        let (digits, name) = line.split_at_checked(64)?;
        let name = name.strip_prefix("  ").or_else(|| name.strip_prefix(" *"))?;
        let hash: [u8; 32] = hex::decode(digits).ok()?.try_into().ok()?;
        (is_escaped || name == path).then_some(hash)
    };
    let mut found = answer.lines().filter_map(digest);
    let hash = found.next()?;
    found.next().is_none().then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_about_the_file_counts() {
        let digits = "ab".repeat(32);
        let hash = Some([0xab; 32]);
        let about = |name: &str| format!("{digits}{name}\n");
        assert_eq!(parse(&about("  /a b"), "/a b"), hash);
        assert_eq!(parse(&about(" */a b"), "/a b"), hash);
        assert_eq!(parse(&format!("Welcome!\n{}bye\n", about("  /a")), "/a"), hash);
        assert_eq!(parse(&format!("\\{}", about("  /a\\\\b")), "/a\\b"), hash);
        for strange in ["", "abc  /a", &about("  /other"), &about(" /a"), &about("  /a").repeat(2)] {
            assert_eq!(parse(strange, "/a"), None, "{strange:?}");
        }
    }
}
