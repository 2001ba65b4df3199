//! The SSH part of the service against a real OpenSSH, without anything of ComfyUI.
//!
//! Every test has a server of its own, which is this machine too: what a test does to a file here, it does on the box.
//! Where there is no OpenSSH server the tests are skipped, aloud.

mod connecting;
mod host_keys;
mod jumps;
mod login;
mod pasted;
mod proxy;
mod transfer;
mod tunnel;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use comfy_remote::ssh::{Options, Pool, Session, Target};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{
    self, SOON,
    sshd::{Sshd, SshdOptions, make_key_as, user},
};

/// A server, and a folder for what a test keeps beside it on either side of the connection.
struct Place {
    sshd: Sshd,
    folder: TempDir,
}

impl Place {
    /// `None`, said aloud, where there is no OpenSSH server.
    fn start() -> Option<Self> {
        Self::start_with(SshdOptions::default())
    }

    /// As [`Place::start`]. The server has a host key of a second type, which is not the one clients prefer.
    fn start_with(mut options: SshdOptions) -> Option<Self> {
        if !Sshd::available() {
            support::skip("sshd", "no OpenSSH server is installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let second_host_key = folder.path().join("host_ecdsa");
        make_key_as(&second_host_key, &["-t", "ecdsa", "-N", ""]);
        options.extra.push(format!("HostKey {}", second_host_key.display()));
        fs::write(folder.path().join("config"), "").unwrap();
        Some(Self { sshd: Sshd::start(options), folder })
    }

    /// A file of the test; it may not exist yet.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text, as it is named on the box.
    fn remote(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Options that touch nothing outside the test: no agent, and a configuration file that is empty at first.
    fn options(&self) -> Options {
        Options {
            known_hosts: self.sshd.known_hosts(),
            use_agent: false,
            config_file: Some(self.path("config")),
            ..Options::default()
        }
    }

    fn pool(&self) -> Pool {
        Pool::new(self.options()).unwrap()
    }

    fn target(&self) -> Target {
        self.target_at(self.sshd.port(), "")
    }

    /// The same box at another port, with more options.
    fn target_at(&self, port: u16, more: &str) -> Target {
        let key = self.sshd.client_key();
        parsed(&format!("ssh -p {port} -i {} {more} {}@127.0.0.1", key.display(), user()))
    }

    async fn session(&self) -> Session {
        within(self.pool().connect(&self.target())).await.unwrap()
    }

    /// A session that the box has seen: it logs a login a moment after it has let somebody in, but before it does
    /// anything else for them.
    async fn reach(&self, pool: &Pool, target: &Target) -> Session {
        let session = within(pool.connect(target)).await.unwrap_or_else(|error| panic!("{target}: {error}"));
        within(session.forward(self.sshd.port())).await.unwrap_or_else(|error| panic!("{target}: {error}"));
        session
    }

    /// How many logins the box has logged.
    fn logins(&self) -> usize {
        self.sshd.log().matches("Accepted publickey").count()
    }
}

fn parsed(text: &str) -> Target {
    Target::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// A local file for an upload.
fn opened(path: &Path) -> tokio::fs::File {
    tokio::fs::File::from_std(fs::File::open(path).unwrap())
}

/// Gives a step of a test its deadline.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("took too long")
}

/// What an HTTP server answers behind the socket of a tunnel.
async fn get(socket: &Path) -> reqwest::Result<String> {
    let client = reqwest::Client::builder().unix_socket(socket).timeout(SOON).build()?;
    client.get("http://box/").send().await?.text().await
}

/// Runs a program of OpenSSH.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Set in the inner run of a test that runs itself again.
const INNER_RUN: &str = "OPENSSH_TEST_INNER_RUN";

fn is_inner_run() -> bool {
    env::var_os(INNER_RUN).is_some()
}

/// Runs a test of this binary again in another process, because the environment of a running one must not be changed.
/// `command` is the binary itself, or a program that starts it.
fn run_again(test: &str, command: &mut Command) {
    let output = command.args(["--exact", test, "--nocapture"]).env(INNER_RUN, "1").output().unwrap();
    let (told, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that fits no test is a success too.
    assert!(output.status.success() && told.contains("1 passed"), "{test} inside itself:\n{told}\n{complained}");
}
