//! The built binary as a child process that is killed, stopped, put to sleep and started again, and what the system
//! says about it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// How the binary says where it is; the address follows.
const LISTENING: &str = "comfy-remote is listening on ";

/// The rest waits in the service's own line.
const RUNNING_PER_BOX: usize = 8;

/// Longest wait for a start or a stop, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The service, whichever process it is at the moment. Dropping it kills the process.
pub(crate) struct Service {
    binary: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
    condition: watch::Sender<Condition>,
}

/// Whether the service can answer. A request that began and ended in one condition, and an awake one, was not disturbed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Condition {
    /// Counts the changes.
    pub(crate) epoch: u64,
    /// Where it listens, while it does.
    pub(crate) url: Option<String>,
    pub(crate) asleep: bool,
    /// How often it was killed: what it had not written yet is forgotten then.
    pub(crate) kills: u64,
}

/// What the system says about a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Vitals {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) rss_kib: usize,
    pub(crate) peak_rss_kib: usize,
}

impl Service {
    /// A service that is not running yet. It keeps everything in `folder`.
    pub(crate) fn new(binary: PathBuf, folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder.join("state"))?;
        Ok(Self { binary, folder: folder.to_owned(), child: None, condition: watch::Sender::default() })
    }

    pub(crate) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    pub(crate) fn output_dir(&self) -> PathBuf {
        self.folder.join("outputs")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.folder.join("state").join("state.json")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.folder.join("service.log")
    }

    /// Starts it and waits until it listens. `resubmit_lost` is the setting of that name.
    pub(crate) async fn launch(&mut self, resubmit_lost: bool) -> io::Result<()> {
        let config = self.folder.join("config.toml");
        fs::write(&config, self.settings(resubmit_lost))?;
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let seen = usize::try_from(log.metadata()?.len()).map_err(io::Error::other)?;
        let mut child = Command::new(&self.binary)
            .arg("--config")
            .arg(&config)
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env_remove("SSH_AUTH_SOCK")
            // Else glibc keeps what is free in one heap per thread, and the memory in use can't be told from it.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let url = self.address(&mut child, seen).await?;
        self.child = Some(child);
        self.change(|condition| condition.url = Some(url));
        Ok(())
    }

    /// Kills it at once, as a crash would.
    pub(crate) async fn kill(&mut self) -> io::Result<()> {
        self.change(|condition| {
            condition.url = None;
            condition.kills += 1;
        });
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn terminate(&mut self) -> io::Result<()> {
        self.change(|condition| condition.url = None);
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = timeout(PATIENCE, child.wait()).await.map_err(|_| late("did not stop"))??;
        if status.success() { Ok(()) } else { Err(late(&format!("stopped with {status}"))) }
    }

    /// Lets it stand still for a while, as on a laptop that sleeps.
    pub(crate) async fn sleep(&self, time: Duration) -> io::Result<()> {
        self.change(|condition| condition.asleep = true);
        self.signal(Signal::STOP)?;
        sleep(time).await;
        self.signal(Signal::CONT)?;
        self.change(|condition| condition.asleep = false);
        Ok(())
    }

    pub(crate) fn vitals(&self) -> io::Result<Vitals> {
        let process = Path::new("/proc").join(self.pid()?.as_raw_nonzero().to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        Ok(Vitals {
            descriptors: fs::read_dir(process.join("fd"))?.count(),
            threads: number("Threads:"),
            rss_kib: number("VmRSS:"),
            peak_rss_kib: number("VmHWM:"),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_modify(|condition| {
            condition.epoch += 1;
            change(condition);
        });
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    fn pid(&self) -> io::Result<Pid> {
        let id = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw).ok_or_else(|| late("is not running"))
    }

    /// Waits for the line that says where it listens, in what the log has after `seen` bytes.
    async fn address(&self, child: &mut Child, seen: usize) -> io::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let log = fs::read(self.log_file())?;
            let new = String::from_utf8_lossy(log.get(seen..).unwrap_or_default()).into_owned();
            let line = new.lines().find_map(|line| Some(line.split_once(LISTENING)?.1.to_owned()));
            if let Some(url) = line.filter(|_| new.ends_with('\n')) {
                return Ok(url.trim().trim_end_matches('/').to_owned());
            }
            if let Some(status) = child.try_wait()? {
                return Err(late(&format!("ended instead of listening ({status}): {new}")));
            }
            sleep(LOOK_EVERY).await;
        }
        Err(late("did not say where it listens"))
    }

    fn settings(&self, resubmit_lost: bool) -> String {
        let path = |name: &str| self.folder.join(name).display().to_string();
        format!(
            "[server]\nbind = \"127.0.0.1:0\"\n\
             [state]\nfile = {state:?}\nkeep_finished = 50\n\
             [ssh]\nknown_hosts = {hosts:?}\nuse_agent = false\nkeepalive_s = 5\n\
             [defaults]\noutput_dir = {outputs:?}\n\
             [limits]\nmax_running_per_box = {RUNNING_PER_BOX}\nresubmit_lost = {resubmit_lost}\n\
             [log]\nlevel = \"info\"\n",
            state = self.state_file().display().to_string(),
            hosts = path("known_hosts"),
            outputs = path("outputs"),
        )
    }
}

fn late(what: &str) -> io::Error {
    io::Error::other(format!("the service {what}"))
}
