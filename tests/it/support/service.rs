//! The built binary as a process of its own, for stories in which it is killed, stopped and started again.
//!
//! It reads one configuration file in a temporary folder that is also its home, so nothing of the user's own keys,
//! settings and state is touched. What it logs is shown when the test fails.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toml::{Table, Value};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use super::tracer::Traced;
use super::{SOON, client::ApiClient, eventually, wait_until};

/// How the binary says where it is; the address follows.
const LISTENING: &str = "comfy-remote is listening on ";

/// A service process, its folder and its log. Dropping it kills the process and removes the folder.
#[derive(Debug)]
pub(crate) struct Service {
    folder: TempDir,
    log: Log,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    url: String,
    /// They end with the process.
    readers: [JoinHandle<()>; 2],
}

impl Running {
    /// Waits until what the process said before its end is in the log.
    fn read_to_the_end(self) {
        self.readers.into_iter().for_each(|reader| reader.join().expect("a reader of the log"));
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vitals {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) rss_kib: usize,
}

/// Lines of all the processes that this service has been, oldest first.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Service {
    /// Starts the service with the settings of a test, changed by `settings`: pairs of a dotted name and a value, such
    /// as `("ssh.connect_attempts", 1.into())`.
    ///
    /// # Panics
    /// If it does not say within half a minute where it listens; with its log.
    pub(crate) fn start(settings: &[(&str, Value)]) -> Self {
        let folder = tempfile::Builder::new().prefix("comfy-remote-").tempdir().expect("a temporary folder");
        let mut service = Self { folder, log: Log::default(), running: None };
        service.configure(settings);
        service.launch();
        service
    }

    /// A client of it. After a restart, ask for a new one: the port is another.
    pub(crate) fn client(&self) -> ApiClient {
        ApiClient::new(self.url())
    }

    /// Where it listens, such as `http://127.0.0.1:5000`.
    pub(crate) fn url(&self) -> &str {
        &self.running.as_ref().expect("a running service").url
    }

    /// Where outputs go unless a request says otherwise.
    pub(crate) fn output_dir(&self) -> PathBuf {
        self.folder().join("outputs")
    }

    /// Its state file.
    pub(crate) fn state_file(&self) -> PathBuf {
        self.folder().join("state").join("state.json")
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.running.as_ref().expect("a running service").process.id()
    }

    /// Sends it a signal, such as the one that stops it for a while.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("send a signal");
    }

    /// Its home; a test may leave files there.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until it has said so: what it writes before it answers may be read after the answer.
    pub(crate) async fn says(&self, words: &str) {
        eventually(words, async || self.log().contains(words).then_some(())).await;
    }

    /// What it has said so far, on both its streams; all of it once it was killed or has stopped.
    pub(crate) fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Bytes of memory that it has (`VmRSS`), or had at most (`VmHWM`).
    ///
    /// # Panics
    /// If it does not run.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let id = self.running.as_ref().expect("a running service").process.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the status of a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a number of KiB") << 10
    }

    /// What the system says about its process now.
    pub(crate) fn vitals(&self) -> Vitals {
        let process =
            Path::new("/proc").join(self.running.as_ref().expect("a running service").process.id().to_string());
        let status = fs::read_to_string(process.join("status")).expect("the status of a process");
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of the status");
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number in the status")
        };
        Vitals {
            descriptors: fs::read_dir(process.join("fd")).expect("the descriptors of a process").count(),
            threads: number("Threads:"),
            rss_kib: number("VmRSS:"),
        }
    }

    /// Kills it at once (`SIGKILL`), as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.process.kill();
            let _ = running.process.wait();
            running.read_to_the_end();
        }
    }

    /// Asks it to stop (`SIGTERM`) and waits until it has.
    ///
    /// # Panics
    /// If it has not stopped after `patience`.
    pub(crate) fn terminate(&mut self, patience: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut running = self.running.take().expect("a running service");
        let look = || running.process.try_wait().expect("the service's exit status");
        let status = wait_until("the service to stop", patience, look);
        running.read_to_the_end();
        status
    }

    /// Lets it stand still (`SIGSTOP`), as on a laptop that sleeps.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Changes settings in its configuration file; the next start reads them.
    pub(crate) fn configure(&self, settings: &[(&str, Value)]) {
        let path = self.folder().join("config.toml");
        let mut table: Table = fs::read_to_string(&path)
            .map_or_else(|_| self.test_settings(), |text| text.parse().expect("the configuration written before"));
        for (name, value) in settings {
            set(&mut table, name, value.clone());
        }
        fs::write(path, table.to_string()).expect("write the configuration");
    }

    /// Starts it again, after [`Service::kill`] or [`Service::terminate`], on the same state file.
    ///
    /// # Panics
    /// As [`Service::start`].
    pub(crate) fn launch(&mut self) {
        self.launch_with(&[]);
    }

    /// As [`Service::launch`], with environment variables.
    pub(crate) fn launch_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.running.is_none(), "the service is running already");
        let mut command = self.command();
        let mut process = command.envs(environment.iter().copied()).spawn().expect("start the built binary");
        let seen = self.log.lines().len();
        let readers = [
            self.log.collect(process.stdout.take().expect("a piped stdout")),
            self.log.collect(process.stderr.take().expect("a piped stderr")),
        ];

        let url = wait_until("the service to say where it listens, or to end", SOON, || {
            let url = self.log.lines().iter().skip(seen).find_map(|line| address(line));
            let ended = !matches!(process.try_wait(), Ok(None));
            if url.is_some() { Some(url) } else { ended.then_some(None) }
        });
        match url {
            Some(url) => self.running = Some(Running { process, url, readers }),
            None => panic!("the service ended instead of listening:\n{}", self.log()),
        }
    }

    /// Starts it under a tracer that kills it before its call number `kill_at` that changes something among its state.
    /// There is a client once it listens, unless it has died before.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn launch_traced(&self, kill_at: usize) -> (Traced, Option<ApiClient>) {
        assert!(self.running.is_none(), "the service is running already");
        let (seen, log) = (self.log.lines().len(), self.log.clone());
        let folder = self.state_file().parent().expect("a folder").to_owned();
        let traced = Traced::start(self.command(), &folder, kill_at, move |process| {
            log.collect(process.stdout.take().expect("a piped stdout"));
            log.collect(process.stderr.take().expect("a piped stderr"));
        });
        let client = wait_until("the traced service to say where it listens, or to be killed", SOON, || {
            let url = self.log.lines().iter().skip(seen).find_map(|line| address(line));
            url.map(|url| Some(ApiClient::new(url))).or_else(|| traced.was_killed().then_some(None))
        });
        (traced, client)
    }

    /// The command that starts it, for tests of a start that fails.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-remote"));
        command
            .arg("--config")
            .arg(self.folder().join("config.toml"))
            .current_dir(self.folder())
            .env("HOME", self.folder())
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COMFY_REMOTE_")) {
            command.env_remove(name);
        }
        command
    }

    fn test_settings(&self) -> Table {
        let path = |path: PathBuf| Value::from(path.to_str().expect("a temporary folder named in UTF-8"));
        let mut table = Table::new();
        set(&mut table, "server.bind", "127.0.0.1:0".into());
        set(&mut table, "state.file", path(self.state_file()));
        set(&mut table, "ssh.known_hosts", path(self.folder().join("known_hosts")));
        set(&mut table, "ssh.use_agent", false.into());
        set(&mut table, "defaults.output_dir", path(self.output_dir()));
        set(&mut table, "limits.comfyui_start_s", 15.into());
        set(&mut table, "log.level", "debug".into());
        fs::create_dir_all(self.folder().join("state")).expect("make the folder of the state file");
        table
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- log of the service\n{}\n---", self.log());
        }
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a stream to its end, in a thread that ends with the process.
    fn collect(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                log.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })
    }
}

/// The address in a line of the log, if it is the line that has it.
fn address(line: &str) -> Option<String> {
    let rest = line.split_once(LISTENING)?.1;
    let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
    Some(rest[..end].trim_end_matches('/').to_owned())
}

/// Sets `section.name` in a table.
fn set(table: &mut Table, name: &str, value: Value) {
    let (section, key) = name.split_once('.').expect("a name of the form section.key");
    let section = table.entry(section).or_insert_with(|| Table::new().into());
    section.as_table_mut().expect("a section").insert(key.to_owned(), value);
}
