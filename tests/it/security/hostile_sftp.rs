//! What a box's SFTP server, its files and its checksums can do: packets of the wrong kind, sizes that lie, no end.

use axum::response::IntoResponse;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    impostor::{Impostor, PICTURE},
    rogue::{Request, Rogue, Shown, honestly, kind, packet, speak, text},
    siege::Siege,
};

const SIZE: u64 = 1000;
const FILE: Shown = Shown { size: SIZE, mode: 0o100_644 };

/// The SFTP server's answer, or `None` where an honest one would do.
type Lie = fn(&Request) -> Option<Vec<u8>>;

fn lying(lie: Lie) -> Rogue {
    Rogue::new().sftp(move |stream| async move {
        speak(stream, |request| lie(request).unwrap_or_else(|| honestly(request, FILE))).await;
    })
}

impl Siege {
    /// Runs a workflow to its end whose ComfyUI tells the truth about its file, behind this SSH server.
    async fn run_with_file(&self, rogue: Rogue) -> Value {
        let file = |_: &_| "x".repeat(SIZE as usize).into_response();
        let mut request = self.request(Impostor::new().lying("/view?filename=picture", file).serve().await);
        request["ssh_connection"] = json!(rogue.serve().await);
        self.ended(&self.stage.service.client().accepted(&request).await).await
    }

    async fn run_all(&self, lies: &[Lie]) -> Vec<Value> {
        join_all(lies.iter().map(|lie| self.run_with_file(lying(*lie)))).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_that_cannot_be_trusted_is_left_for_comfyuis_own_way() {
    let siege = Siege::begin().await;
    let lies: [Lie; 8] = [
        // A folder, a pipe, a device, and what does not say what it is.
        |request| (request.kind == kind::STAT).then(|| honestly(request, Shown { mode: 0o040_755, ..FILE })),
        |request| (request.kind == kind::STAT).then(|| honestly(request, Shown { mode: 0o010_644, ..FILE })),
        |request| (request.kind == kind::STAT).then(|| honestly(request, Shown { mode: 0o020_644, ..FILE })),
        |request| (request.kind == kind::STAT).then(|| request.answered(kind::ATTRS, &[&0_u32.to_be_bytes()])),
        // Another size than ComfyUI has it.
        |request| (request.kind == kind::STAT).then(|| honestly(request, Shown { size: u64::MAX, ..FILE })),
        // An answer to another question, a status that means nothing, words without end.
        |request| (request.kind == kind::STAT).then(|| request.answered(kind::HANDLE, &[&text(b"h")])),
        |request| (request.kind == kind::STAT).then(|| request.status(0, "")),
        |request| {
            (request.kind == kind::STAT).then(|| request.status(4, &"\u{1b}[2J\n2026 ERROR lost\r\n".repeat(5000)))
        },
    ];
    for done in siege.run_all(&lies).await {
        assert_eq!(done["status"], "completed", "{done:#}");
        let warnings = done["warnings"].to_string();
        assert!(warnings.contains("through ComfyUI instead of SFTP"), "{warnings}");
        assert!(warnings.len() < 2000 && !warnings.contains("\\u001b"), "{warnings}");
    }
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_lie_about_themselves_are_not_taken() {
    let siege = Siege::begin().await;
    let lies: [Lie; 7] = [
        // No end; an early end; an end at once.
        |request| (request.kind == kind::READ).then(|| request.answered(kind::DATA, &[&text(&vec![b'x'; 200_000])])),
        |request| (request.kind == kind::READ).then(|| honestly(request, Shown { size: SIZE - 1, ..FILE })),
        |request| (request.kind == kind::READ).then(|| request.answered(kind::DATA, &[&text(b"")])),
        // One byte at a time, for ever.
        |request| (request.kind == kind::READ).then(|| request.answered(kind::DATA, &[&text(b"x")])),
        |request| (request.kind == kind::READ).then(|| request.status(4, &"\u{1b}[2J\nlost\r\n".repeat(5000))),
        |request| (request.kind == kind::READ).then(|| request.answered(kind::HANDLE, &[&text(b"h")])),
        |request| (request.kind == kind::OPEN).then(|| request.status(3, &"\u{1b}[2J\nlost\r\n".repeat(5000))),
    ];
    for failed in siege.run_all(&lies).await {
        siege.assert_failed(&failed, &["download_failed"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_are_none_end_in_a_failure_that_says_so() {
    let siege = Siege::begin().await;
    let lies: [Lie; 7] = [
        // 4 GiB; nothing; less than it needs; a text that is longer than its packet.
        |request| (request.kind == kind::STAT).then(|| vec![0xff; 64]),
        |request| (request.kind == kind::STAT).then(|| vec![0; 4]),
        |request| (request.kind == kind::STAT).then(|| packet(kind::ATTRS, &[&[0; 2]])),
        |request| (request.kind == kind::READ).then(|| request.answered(kind::DATA, &[&[0x7f; 4]])),
        // Who one is, again and again.
        |request| (request.kind == kind::STAT).then(|| packet(kind::VERSION, &[&3_u32.to_be_bytes()]).repeat(1000)),
        // Nothing at all, and answers to what nobody asked.
        |request| (request.kind == kind::STAT).then(Vec::new),
        |request| (request.kind == kind::STAT).then(|| honestly(&request.of_nobody(), FILE).repeat(1000)),
    ];
    for failed in siege.run_all(&lies).await {
        siege.assert_failed(&failed, &["ssh_unreachable", "download_failed"]);
    }
    siege.assert_held(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_full_of_extensions_is_borne() {
    let siege = Siege::begin().await;
    let done = siege
        .run_with_file(lying(|request| {
            let extension = [text(b"x"), text(b"y")].concat().repeat(20_000);
            (request.kind == kind::INIT).then(|| packet(kind::VERSION, &[&3_u32.to_be_bytes(), &extension]))
        }))
        .await;
    assert_eq!(done["status"], "completed", "{done:#}");
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checksum_that_lies_or_never_ends_harms_nobody() {
    let siege = Siege::begin().await;
    let honest: Lie = |_| None;
    let lie = lying(honest).command(|mut stream| async move {
        let mut path = vec![0; 4096];
        let length = stream.read(&mut path).await.unwrap_or(0);
        let line = [&b"00".repeat(32), &b"  "[..], path[..length].trim_ascii_end(), b"\n"].concat();
        let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0).collect();
        stream.write_all(&line).await.ok();
        stream.shutdown().await.ok();
    });
    let endless = lying(honest)
        .command(|mut stream| async move { while stream.write_all(&vec![b'a'; 32 << 10]).await.is_ok() {} });
    let silent = lying(honest).command(|mut stream| async move {
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
        std::future::pending::<()>().await;
    });
    let ended = join_all([lie, endless, silent].map(|rogue| siege.run_with_file(rogue))).await;
    siege.assert_failed(&ended[0], &["download_failed"]);
    for done in &ended[1..] {
        assert_eq!(done["status"], "completed", "{done:#}");
    }
    siege.assert_held(&[PICTURE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_is_none_is_told_so_that_it_can_be_mended() {
    let siege = Siege::begin().await;
    let chatty = Rogue::new().sftp(|mut stream| async move {
        stream.write_all(b"Welcome to your rented box!\r\n").await.ok();
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
    });
    let ended = Rogue::new().sftp(|mut stream| async move { drop(stream.shutdown().await) });
    for done in join_all([chatty, ended].map(|rogue| siege.run_with_file(rogue))).await {
        assert_eq!(done["status"], "completed", "{done:#}");
        let warnings = done["warnings"].to_string();
        assert!(warnings.contains("does no start-up file of the shell (such as .bashrc) print text?"), "{warnings}");
        assert!(!warnings.contains("RecvError"), "{warnings}");
    }
    siege.assert_held(&[PICTURE]);
}
