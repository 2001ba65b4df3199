//! The way into the box: what its SSH server lets a client do, seen by russh and by OpenSSH's own clients.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use comfy_remote::sandbox::{Sandbox, SandboxOptions, WriteFault};
use russh::client::{Handle, connect};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{ChannelMsg, ChannelOpenFailure, Error};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{RawSftpSession, SftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::within;

struct Client {
    fingerprint: String,
}

impl russh::client::Handler for Client {
    type Error = Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        Ok(key.fingerprint(russh::keys::HashAlg::Sha256).to_string() == self.fingerprint)
    }
}

async fn sandbox() -> Sandbox {
    Sandbox::start(SandboxOptions::default()).await.unwrap()
}

async fn dial(sandbox: &Sandbox) -> Result<Handle<Client>, Error> {
    let client = Client { fingerprint: sandbox.host_key_fingerprint() };
    within("an SSH connection", connect(Arc::default(), ("127.0.0.1", sandbox.ssh_port()), client)).await
}

async fn log_in(sandbox: &Sandbox) -> Handle<Client> {
    let mut handle = dial(sandbox).await.unwrap();
    let key = load_secret_key(sandbox.client_key(), None).unwrap();
    assert!(accepts(&mut handle, sandbox.ssh_user(), key).await);
    handle
}

async fn accepts(handle: &mut Handle<Client>, user: &str, key: PrivateKey) -> bool {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    handle.authenticate_publickey(user, key).await.unwrap().success()
}

async fn forward(handle: &Handle<Client>, host: &str, port: u16) -> Result<String, Error> {
    let channel = handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0).await?;
    let mut stream = channel.into_stream();
    stream.write_all(b"GET /prompt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    within("an answer through the tunnel", stream.read_to_string(&mut text)).await.unwrap();
    Ok(text)
}

async fn open_sftp(handle: &Handle<Client>) -> Result<RawSftpSession, Error> {
    let mut channel = handle.channel_open_session().await?;
    channel.request_subsystem(true, "sftp").await?;
    // A refusal leaves the channel open, so the answer has to be looked at.
    loop {
        match within("an answer about SFTP", channel.wait()).await {
            Some(ChannelMsg::Success) => break,
            Some(ChannelMsg::Failure) | None => return Err(Error::RequestDenied),
            Some(_) => {}
        }
    }
    let sftp = RawSftpSession::new(channel.into_stream());
    within("SFTP's first answer", sftp.init()).await.unwrap();
    Ok(sftp)
}

async fn closed(handle: &Handle<Client>) {
    while !handle.is_closed() {
        tokio::task::yield_now().await;
    }
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, SftpError>, code: StatusCode) {
    match result {
        Err(SftpError::Status(status)) if status.status_code == code => {}
        other => panic!("{code:?} was due, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_one_key_logs_in() {
    let sandbox = sandbox().await;
    let key = || load_secret_key(sandbox.client_key(), None).unwrap();
    let other = self::sandbox().await;
    let wrong = load_secret_key(other.client_key(), None).unwrap();

    assert!(!accepts(&mut dial(&sandbox).await.unwrap(), sandbox.ssh_user(), wrong).await);
    assert!(!accepts(&mut dial(&sandbox).await.unwrap(), "root", key()).await);
    assert!(accepts(&mut dial(&sandbox).await.unwrap(), sandbox.ssh_user(), key()).await);
    assert!(dial(&sandbox).await.unwrap().authenticate_none("sandbox").await.is_ok_and(|answer| !answer.success()));
    let stranger = Client { fingerprint: other.host_key_fingerprint() };
    let refused = connect(Arc::default(), ("127.0.0.1", sandbox.ssh_port()), stranger).await;
    assert!(matches!(refused, Err(Error::UnknownKey)));
    other.stop().await;
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarding_reaches_this_machine_only() {
    let sandbox = sandbox().await;
    let handle = log_in(&sandbox).await;
    let port = sandbox.comfyui_port();
    for host in ["127.0.0.1", "localhost"] {
        let text = forward(&handle, host, port).await.unwrap();
        assert!(text.contains("queue_remaining"), "{text}");
    }
    let reason = |result: Result<String, Error>| match result {
        Err(Error::ChannelOpenFailure(reason)) => reason,
        other => panic!("a refusal was due, not {other:?}"),
    };
    for host in ["192.0.2.1", "example.com", "0.0.0.0", "169.254.169.254"] {
        let refused = reason(forward(&handle, host, port).await);
        assert!(matches!(refused, ChannelOpenFailure::AdministrativelyProhibited), "{host}: {refused:?}");
    }
    sandbox.engine().kill().await;
    assert!(matches!(reason(forward(&handle, "127.0.0.1", port).await), ChannelOpenFailure::ConnectFailed));
    sandbox.engine().revive().await.unwrap();
    assert!(forward(&handle, "127.0.0.1", port).await.is_ok());
    sandbox.faults().refuse_forwarding(true);
    assert!(matches!(
        reason(forward(&handle, "127.0.0.1", port).await),
        ChannelOpenFailure::AdministrativelyProhibited
    ));
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_answers_as_openssh_does() {
    let sandbox = sandbox().await;
    let sftp = open_sftp(&log_in(&sandbox).await).await.unwrap();
    let path = |name: &str| sandbox.input_dir().join(name).to_str().unwrap().to_owned();
    let attrs = FileAttributes::empty;
    let new = OpenFlags::CREATE | OpenFlags::EXCLUDE | OpenFlags::WRITE;

    let handle = sftp.open(path("a"), new, attrs()).await.unwrap().handle;
    // Out of order, as a client that writes ahead may.
    sftp.write(&handle, 4, b"efgh".to_vec()).await.unwrap();
    sftp.write(&handle, 0, b"abcd".to_vec()).await.unwrap();
    assert_eq!(sftp.fstat(&handle).await.unwrap().attrs.size, Some(8));
    sftp.fsync(&handle).await.unwrap();
    sftp.close(&handle).await.unwrap();
    fails(sftp.close(&handle).await, StatusCode::Failure);
    assert_eq!(std::fs::read(path("a")).unwrap(), b"abcdefgh");

    fails(sftp.open(path("a"), new, attrs()).await, StatusCode::Failure);
    fails(sftp.open(path("absent"), OpenFlags::READ, attrs()).await, StatusCode::NoSuchFile);
    fails(sftp.open(path("absent/b"), new, attrs()).await, StatusCode::NoSuchFile);
    let handle = sftp.open(path("a"), OpenFlags::READ, attrs()).await.unwrap().handle;
    assert_eq!(sftp.read(&handle, 6, 100).await.unwrap().data, b"gh");
    fails(sftp.read(&handle, 8, 100).await, StatusCode::Eof);
    fails(sftp.write(&handle, 0, b"x".to_vec()).await, StatusCode::Failure);

    sftp.mkdir(path("folder"), attrs()).await.unwrap();
    fails(sftp.mkdir(path("folder"), attrs()).await, StatusCode::Failure);
    fails(sftp.mkdir(path("absent/folder"), attrs()).await, StatusCode::NoSuchFile);
    std::fs::write(path("b"), "b").unwrap();
    fails(sftp.rename(path("a"), path("b")).await, StatusCode::Failure);
    sftp.rename(path("a"), path("folder/ü ö")).await.unwrap();
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let both = [string(&path("folder/ü ö")), string(&path("b"))].concat();
    let answer = sftp.extended("posix-rename@openssh.com", both).await.unwrap();
    assert!(matches!(answer, Packet::Status(status) if status.status_code == StatusCode::Ok));
    assert_eq!(std::fs::read(path("b")).unwrap(), b"abcdefgh");
    fails(sftp.rmdir(path("b")).await, StatusCode::NoSuchFile);
    fails(sftp.remove(path("folder")).await, StatusCode::Failure);
    sftp.remove(path("b")).await.unwrap();
    sftp.rmdir(path("folder")).await.unwrap();
    assert!(sftp.statvfs(sandbox.root().to_str().unwrap()).await.unwrap().block_size > 0);
    assert_eq!(sftp.limits().await.unwrap().max_read_len, 261_120);
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_stays_in_its_folder() {
    let sandbox = sandbox().await;
    let sftp = open_sftp(&log_in(&sandbox).await).await.unwrap();
    let root = sandbox.root().to_str().unwrap();
    assert_eq!(sftp.realpath(".").await.unwrap().files[0].filename, root);
    std::os::unix::fs::symlink("/etc", sandbox.input_dir().join("out")).unwrap();
    let out = sandbox.input_dir().join("out/hostname");

    for path in ["/etc/hostname", out.to_str().unwrap(), "../x", "ComfyUI/../../x"] {
        let flags = OpenFlags::CREATE | OpenFlags::WRITE;
        fails(sftp.stat(path).await, StatusCode::NoSuchFile);
        fails(sftp.open(path, OpenFlags::READ, FileAttributes::empty()).await, StatusCode::NoSuchFile);
        fails(sftp.open(path, flags, FileAttributes::empty()).await, StatusCode::PermissionDenied);
        fails(sftp.remove(path).await, StatusCode::PermissionDenied);
    }
    fails(sftp.opendir("/").await, StatusCode::NoSuchFile);
    // A client that makes a path piece by piece must be able to see where it begins.
    assert!(sftp.stat("/").await.unwrap().attrs.is_dir());
    fails(sftp.mkdir("/", FileAttributes::empty()).await, StatusCode::Failure);
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_can_fail() {
    let sandbox = sandbox().await;
    let handle = log_in(&sandbox).await;
    let sftp = open_sftp(&handle).await.unwrap();
    let path = sandbox.input_dir().join("big").to_str().unwrap().to_owned();
    let flags = OpenFlags::CREATE | OpenFlags::WRITE;
    let file = sftp.open(&path, flags, FileAttributes::empty()).await.unwrap().handle;

    sandbox.faults().fail_writes(Some(WriteFault::NoSpace { after: 10 }));
    sftp.write(&file, 0, vec![1; 8]).await.unwrap();
    fails(sftp.write(&file, 8, vec![1; 8]).await, StatusCode::Failure);
    fails(sftp.write(&file, 8, vec![1; 8]).await, StatusCode::Failure);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10);
    sandbox.faults().fail_writes(Some(WriteFault::PermissionDenied));
    fails(sftp.open(&path, flags, FileAttributes::empty()).await, StatusCode::PermissionDenied);
    fails(sftp.rename(&path, format!("{path}2")).await, StatusCode::PermissionDenied);
    assert!(sftp.stat(&path).await.is_ok());
    sandbox.faults().fail_writes(None);
    sftp.write(&file, 8, vec![1; 8]).await.unwrap();

    sandbox.faults().refuse_sftp(true);
    assert!(matches!(open_sftp(&handle).await, Err(Error::RequestDenied)));
    sandbox.faults().refuse_sftp(false);

    sandbox.faults().cut_ssh_after(200_000);
    let mut written = 0;
    // The SFTP client itself would wait for its own time-out.
    let broken = closed(&handle);
    tokio::pin!(broken);
    while tokio::select! {
        result = sftp.write(&file, written * 1000, vec![2; 1000]) => result.is_ok(),
        () = &mut broken => false,
    } {
        written += 1;
    }
    assert!((100..=200).contains(&written), "{written} KB passed");
    within("the end of the session", closed(&handle)).await;
    assert!(open_sftp(&log_in(&sandbox).await).await.is_ok(), "a new connection is welcome");
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_can_be_cut_refused_and_stalled() {
    let sandbox = sandbox().await;
    let handle = log_in(&sandbox).await;
    sandbox.faults().refuse_ssh(true);
    within("the port to close", async {
        while tokio::net::TcpStream::connect(("127.0.0.1", sandbox.ssh_port())).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(forward(&handle, "127.0.0.1", sandbox.comfyui_port()).await.is_ok(), "open connections live on");
    sandbox.faults().cut_ssh();
    within("the connection to break", closed(&handle)).await;
    assert!(dial(&sandbox).await.is_err());

    sandbox.faults().refuse_ssh(false);
    within("the port to open", async {
        while tokio::net::TcpStream::connect(("127.0.0.1", sandbox.ssh_port())).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let handle = log_in(&sandbox).await;
    sandbox.faults().stall_ssh(true);
    let answer = forward(&handle, "127.0.0.1", sandbox.comfyui_port());
    tokio::pin!(answer);
    let silent = tokio::time::timeout(std::time::Duration::from_millis(200), &mut answer).await;
    assert!(silent.is_err(), "nothing moves");
    sandbox.faults().stall_ssh(false);
    assert!(answer.await.is_ok(), "and then it does again");
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_high_level_client_works_too() {
    let sandbox = sandbox().await;
    let channel = log_in(&sandbox).await.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    let sftp = SftpSession::new(channel.into_stream()).await.unwrap();
    let folder = sandbox.output_dir().join("many");
    std::fs::create_dir(&folder).unwrap();
    for index in 0..250 {
        std::fs::write(folder.join(format!("{index}.png")), "x").unwrap();
    }
    let names = sftp.read_dir(folder.to_str().unwrap()).await.unwrap();
    assert_eq!(names.filter(|entry| entry.file_name().ends_with(".png")).count(), 250);

    let content: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let path = sandbox.input_dir().join("three megabytes");
    let mut file = sftp.create(path.to_str().unwrap()).await.unwrap();
    file.write_all(&content).await.unwrap();
    file.shutdown().await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert!(sftp.read(path.to_str().unwrap()).await.unwrap() == content);
    sandbox.stop().await;
}

/// The same with the real clients, where they are installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_gets_along_with_it() {
    if Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
        println!("skipped: no OpenSSH client here");
        return;
    }
    let sandbox = sandbox().await;
    let (key, known) = (sandbox.client_key(), sandbox.known_hosts());
    let (port, engine) = (sandbox.ssh_port().to_string(), sandbox.comfyui_port());
    let options = move |program: &str, port_flag: &str| {
        let mut command = Command::new(program);
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", known.display())).arg("-i").arg(&key);
        command.args([port_flag, &port]);
        command
    };
    let folder = sandbox.input_dir().to_owned();
    let local = tempfile::tempdir().unwrap();
    std::fs::write(local.path().join("picture.png"), vec![5; 100_000]).unwrap();

    let (sftp, tunnel) = tokio::task::spawn_blocking(move || {
        let script = format!(
            "lcd {0}\ncd {1}\nput picture.png\nmkdir sub\nrename picture.png sub/renamed.png\nget sub/renamed.png back.png\nls -l sub\n",
            local.path().display(),
            folder.display()
        );
        let sftp = run(options("sftp", "-P").args(["-b", "-", "sandbox@127.0.0.1"]), &script);
        assert!(std::fs::read(folder.join("sub/renamed.png")).unwrap() == vec![5; 100_000], "{sftp}");
        assert!(same_file(&local.path().join("back.png"), &folder.join("sub/renamed.png")));
        let forward = format!("127.0.0.1:{engine}");
        let request = "GET /prompt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        (sftp, run(options("ssh", "-p").args(["-W", &forward, "sandbox@127.0.0.1"]), request))
    })
    .await
    .unwrap();
    assert!(sftp.contains("renamed.png"), "{sftp}");
    assert!(tunnel.contains("queue_remaining"), "{tunnel}");
    sandbox.stop().await;
}

fn same_file(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

fn run(command: &mut Command, input: &str) -> String {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    // `ssh -W` hangs up when its input ends, and `sftp -b -` begins then.
    if command.get_program() == "sftp" {
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        return format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
