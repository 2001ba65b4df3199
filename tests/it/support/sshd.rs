//! A real OpenSSH server, run as the current user with keys and configuration of its own.
//!
//! It lets exactly one key in, has a host key that is made for it, and reads nothing of the machine's own
//! configuration. Its account must not be locked: OpenSSH refuses `!` in the password field where PAM is off.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{SOON, free_port, wait_until};

/// What the server allows.
#[derive(Debug, Clone)]
pub(crate) struct SshdOptions {
    /// Port forwarding.
    pub(crate) forwarding: bool,
    /// The SFTP subsystem.
    pub(crate) sftp: bool,
    /// More lines for its configuration. The first value of a keyword wins, and these come first.
    pub(crate) extra: Vec<String>,
}

impl Default for SshdOptions {
    fn default() -> Self {
        Self { forwarding: true, sftp: true, extra: Vec::new() }
    }
}

/// Which host key a restarted server shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostKey {
    /// The one that clients know.
    Same,
    /// Another one, as after a box was rented to somebody new.
    New,
}

/// A running (or stopped) server. Dropping it ends it and all its connections.
#[derive(Debug)]
pub(crate) struct Sshd {
    folder: TempDir,
    program: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Sshd {
    /// Whether there is an OpenSSH server on this machine.
    pub(crate) fn available() -> bool {
        program().is_some()
    }

    /// Starts one that accepts connections when this returns.
    ///
    /// # Panics
    /// If it can't be started; with the server's own words.
    pub(crate) fn start(options: SshdOptions) -> Self {
        let program = program().expect("an OpenSSH server; look at Sshd::available() first");
        let folder = tempfile::Builder::new().prefix("sshd-").tempdir().expect("a temporary folder");
        make_key(&folder.path().join("host_key"));
        make_key(&folder.path().join("client_key"));
        make_privilege_separation_folder();

        let mut sshd = Self { folder, program, port: 0, process: None };
        sshd.authorize_only(&sshd.client_key().with_extension("pub"));
        for attempts_left in (0..5).rev() {
            sshd.port = free_port();
            sshd.configure(&options);
            match sshd.launch() {
                Ok(()) => return sshd,
                Err(words) if attempts_left > 0 && words.contains("Address already in use") => {}
                Err(words) => panic!("sshd does not start:\n{words}"),
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    /// What goes into `ssh_connection`: reaches this server with its key and an own, at first empty, known_hosts file.
    pub(crate) fn connection(&self) -> String {
        format!("ssh {} {}@127.0.0.1", self.client_options().join(" "), user())
    }

    /// As [`Sshd::connection`], by way of a port that leads to this server.
    pub(crate) fn connection_through(&self, port: u16) -> String {
        self.connection().replace(&format!("-p {}", self.port), &format!("-p {port}"))
    }

    /// The port it listens on, also while it is stopped.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The private key that it lets in.
    pub(crate) fn client_key(&self) -> PathBuf {
        self.folder.path().join("client_key")
    }

    /// Lets in this key instead of all others; `public_key` is a file as ssh-keygen writes it.
    pub(crate) fn authorize_only(&self, public_key: &Path) {
        fs::copy(public_key, self.folder.path().join("authorized_keys")).expect("authorize a key");
    }

    /// Lets nobody in from now on.
    pub(crate) fn authorize_nobody(&self) {
        fs::write(self.folder.path().join("authorized_keys"), "").expect("empty the authorized keys");
    }

    /// The known_hosts file that [`Sshd::connection`] names; it may not exist yet.
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.folder.path().join("known_hosts")
    }

    /// The line for a known_hosts file that trusts this server.
    pub(crate) fn known_hosts_line(&self) -> String {
        let key = fs::read_to_string(self.folder.path().join("host_key.pub")).expect("read the public host key");
        format!("[127.0.0.1]:{} {}", self.port, key.trim_end())
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs a command through this server with OpenSSH's own client.
    pub(crate) fn run_with_openssh(&self, command: &str) -> Output {
        Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"])
            .args(["-o", "ConnectTimeout=10"])
            .args(self.client_options())
            .arg(format!("{}@127.0.0.1", user()))
            .arg(command)
            .stdin(Stdio::null())
            .output()
            .expect("run ssh")
    }

    /// Whether the server is up.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// Cuts every connection there is, as a broken network would: no goodbye. The server goes on to take new ones.
    ///
    /// Returns how many there were.
    pub(crate) fn cut_connections(&mut self) -> usize {
        self.process.as_ref().map_or(0, |process| cut_below(process.id()))
    }

    /// How many connections it has.
    pub(crate) fn connections(&self) -> usize {
        self.process.as_ref().map_or(0, |process| children_of(process.id()).len())
    }

    /// Lets the server and all its connections stand still (`SIGSTOP`), as a box does that hangs.
    pub(crate) fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, kind: Signal) {
        let process = self.process.as_ref().expect("a running server");
        // The listener first: halted, it makes no new ones.
        for member in family(process.id()) {
            signal(member, kind);
        }
    }

    /// Ends the server and its connections at once; new ones are refused from now on.
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // A halted listener forks no more, and its children are still known as its own.
        signal(process.id(), Signal::STOP);
        cut_below(process.id());
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Stops the server if need be and starts it again on the same port.
    ///
    /// # Panics
    /// If it does not come up.
    pub(crate) fn restart(&mut self, host_key: HostKey) {
        self.stop();
        if host_key == HostKey::New {
            let key = self.folder.path().join("host_key");
            fs::remove_file(&key).expect("remove the old host key");
            fs::remove_file(key.with_extension("pub")).expect("remove the old public host key");
            make_key(&key);
        }
        // The port may be held for a moment by a connection that is still closing.
        wait_until("sshd to come up again on its port", SOON, || self.launch().ok());
    }

    fn client_options(&self) -> Vec<String> {
        let file = |path: PathBuf| path.to_str().expect("a temporary folder named in UTF-8").to_owned();
        vec![
            "-p".to_owned(),
            self.port.to_string(),
            "-i".to_owned(),
            file(self.client_key()),
            "-o".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "-o".to_owned(),
            format!("UserKnownHostsFile={}", file(self.known_hosts())),
        ]
    }

    fn configure(&self, options: &SshdOptions) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut lines = options.extra.clone();
        lines.extend([
            format!("Port {}", self.port),
            "ListenAddress 127.0.0.1".to_owned(),
            format!("HostKey {}", at("host_key")),
            format!("AuthorizedKeysFile {}", at("authorized_keys")),
            format!("PidFile {}", at("pid")),
            "StrictModes no".to_owned(),
            "UsePAM no".to_owned(),
            // A shell that sshd starts reads the user's start-up files, which may do anything and take any time.
            format!("SetEnv HOME={}", self.folder.path().display()),
            "PermitRootLogin yes".to_owned(),
            "PasswordAuthentication no".to_owned(),
            "KbdInteractiveAuthentication no".to_owned(),
            "UseDNS no".to_owned(),
            "LogLevel VERBOSE".to_owned(),
            format!("AllowTcpForwarding {}", if options.forwarding { "yes" } else { "no" }),
        ]);
        if options.sftp {
            lines.push("Subsystem sftp internal-sftp".to_owned());
        }
        // Since 9.8, OpenSSH shuts out an address that failed to authenticate; here everybody has the same address.
        let gentle = [lines.as_slice(), &["PerSourcePenalties no".to_owned()]].concat();
        self.write_configuration(&gentle);
        if !self.understands_its_configuration() {
            self.write_configuration(&lines);
        }
    }

    fn write_configuration(&self, lines: &[String]) {
        fs::write(self.folder.path().join("config"), lines.join("\n") + "\n").expect("write sshd's configuration");
    }

    fn understands_its_configuration(&self) -> bool {
        let test = Command::new(&self.program)
            .args(["-t", "-f"])
            .arg(self.folder.path().join("config"))
            .stderr(Stdio::null())
            .status();
        test.is_ok_and(|status| status.success())
    }

    /// Starts the process and waits until it greets, or until it gives up; then its words are the error.
    fn launch(&mut self) -> Result<(), String> {
        let log = File::create(self.folder.path().join("log")).map_err(|error| error.to_string())?;
        let mut process = Command::new(&self.program)
            .args(["-D", "-e", "-f"])
            .arg(self.folder.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let up = wait_until("sshd to greet or to give up", SOON, || match process.try_wait() {
            Ok(None) => greets(self.port).then_some(true),
            _ => Some(false),
        });
        if !up {
            return Err(self.log());
        }
        self.process = Some(process);
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- log of sshd on port {}\n{}---", self.port, self.log());
        }
    }
}

/// sshd insists on being called by its absolute path, and is often outside a user's PATH.
fn program() -> Option<PathBuf> {
    ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/opt/homebrew/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join("sshd"))
        .find(|program| program.is_file())
}

/// Makes a key of the usual type, with its public half in `<path>.pub`.
///
/// # Panics
/// If ssh-keygen can't.
pub(crate) fn make_key(path: &Path) {
    make_key_as(path, &["-t", "ed25519", "-N", ""]);
}

/// As [`make_key`], with the type and passphrase in ssh-keygen's own words.
pub(crate) fn make_key_as(path: &Path, arguments: &[&str]) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-C", "test"])
        .args(arguments)
        .arg("-f")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .expect("run ssh-keygen");
    assert!(made.status.success(), "ssh-keygen failed: {}", String::from_utf8_lossy(&made.stderr));
}

/// Run by root, sshd wants an empty folder that Debian makes only when its service starts.
fn make_privilege_separation_folder() {
    if rustix::process::geteuid().is_root() {
        let _ = fs::create_dir("/run/sshd");
    }
}

/// The user that this runs as, and the only one that the server lets in.
pub(crate) fn user() -> String {
    let id = Command::new("id").arg("-un").output().expect("run id");
    String::from_utf8(id.stdout).expect("a user name in UTF-8").trim().to_owned()
}

fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"SSH-"
}

/// Kills all that descends from a listener: the processes of its connections, and what those run. Returns the number of
/// connections.
fn cut_below(listener: u32) -> usize {
    let connections = children_of(listener);
    for connection in &connections {
        kill_tree(*connection);
    }
    connections.len()
}

/// Kills a process and all that descends from it, so that no heir keeps a socket open.
fn kill_tree(root: u32) {
    for process in family(root) {
        signal(process, Signal::KILL);
    }
}

/// A process and all that descends from it, parents before their children.
fn family(root: u32) -> Vec<u32> {
    let parents = parents();
    let mut family = vec![root];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, its)| **its == parent).map(|(process, _)| process));
        at += 1;
    }
    family
}

fn signal(process: u32, signal: Signal) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(process, signal);
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    parents().into_iter().filter(|(_, its)| *its == parent).map(|(process, _)| process).collect()
}

/// Every process with its parent.
fn parents() -> HashMap<u32, u32> {
    let table = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    if let Ok(table) = table
        && table.status.success()
    {
        return String::from_utf8_lossy(&table.stdout).lines().filter_map(pair).collect();
    }
    // Small containers have no ps, but then they are Linux.
    let Ok(processes) = fs::read_dir("/proc") else { return HashMap::new() };
    processes
        .filter_map(|entry| {
            let process = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            // The name in parentheses may hold anything; state and parent follow it.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((process, parent))
        })
        .collect()
}

fn pair(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
