//! Settings: where they come from, and what each part of the program gets of them.
//!
//! The file `config.toml` at the top of the repository is both the documentation and the defaults: the program
//! carries it inside. On top come the user's file and environment variables `COMFY_REMOTE_<SECTION>__<KEY>`.
//! An unknown key or a bad value is an error in one sentence, before anything else happens.

mod mistakes;
mod tokens;

use std::{
    fs, io,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

use crate::{files::Roots, home::expand_home, http, runner, ssh, store};
use mistakes::sentence;

/// The defaults, which also document every key.
pub const DEFAULTS: &str = include_str!("../config.toml");

/// The file that is read when none is named.
const LOCAL_FILE: &str = "config.toml";

/// What the names of environment variables begin with.
const ENV_PREFIX: &str = "COMFY_REMOTE_";

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Config {
    pub server: Server,
    pub state: State,
    pub ssh: Ssh,
    pub files: Files,
    pub defaults: Defaults,
    pub limits: Limits,
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Server {
    #[serde(deserialize_with = "from_text")]
    pub bind: SocketAddr,
    pub host_names: Vec<http::HostName>,
    pub cors_origins: Vec<http::AllowedOrigin>,
    pub auth_token: Option<SecretString>,
    pub auth_token_file: Option<PathBuf>,
    pub allow_unauthenticated: bool,
    pub max_body_bytes: usize,
    pub header_timeout_s: u64,
    pub max_connections: usize,
}

impl Server {
    /// Whether no other machine can reach the service.
    fn is_only_local(&self) -> bool {
        self.bind.ip().to_canonical().is_loopback()
    }
}

/// `[state]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct State {
    pub file: PathBuf,
    pub write_interval_ms: u64,
    pub keep_finished: usize,
}

/// `[ssh]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Ssh {
    pub known_hosts: PathBuf,
    pub host_keys: HostKeys,
    pub identity_files: Vec<PathBuf>,
    pub use_agent: bool,
    pub passphrase_file: Option<PathBuf>,
    pub connect_timeout_s: u64,
    pub connect_attempts: u32,
    pub keepalive_s: u64,
    pub execute_wait_s: u64,
    pub allowed_hosts: Option<ssh::AllowedHosts>,
    /// Read in place of `~/.ssh/config`; only programs that embed the service set it.
    #[serde(skip)]
    pub config_file: Option<PathBuf>,
}

/// `[ssh] host_keys`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "config.toml documents the values")]
pub enum HostKeys {
    AcceptNew,
    Strict,
    Off,
}

/// `[files]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Files {
    pub read_roots: Option<Vec<PathBuf>>,
    pub write_roots: Option<Vec<PathBuf>>,
}

/// Where local files may lie, looked up on the disk.
#[derive(Debug, Clone)]
pub struct FileRoots {
    read: Roots,
    write: Roots,
}

/// `[defaults]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Defaults {
    pub comfyui_port: u16,
    pub comfyui_input_dir: String,
    pub comfyui_output_dir: String,
    pub output_dir: String,
}

/// `[limits]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Limits {
    pub max_running: usize,
    pub max_running_per_box: usize,
    pub max_waiting: usize,
    pub client_max_active: usize,
    pub client_execute_per_minute: u32,
    pub client_progress_per_second: u32,
    pub unreachable_limit_s: u64,
    pub unreachable_before_submit_s: u64,
    pub comfyui_start_s: u64,
    pub stalled_after_s: u64,
    pub resubmit_lost: bool,
    pub min_free_bytes: u64,
    pub workflow_file_bytes: u64,
    pub image_bytes: u64,
    pub download_bytes: u64,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config.toml documents the keys")]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub folder: Option<PathBuf>,
}

/// `[log] level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config.toml documents the values")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `[log] format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config.toml documents the values")]
pub enum LogFormat {
    Text,
    Json,
}

/// A setting that can't be used, in one sentence.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads defaults, file and environment. `file` is the one that the user named, which must exist.
    ///
    /// # Errors
    /// Names the first unknown key or bad value and where it stands.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(LOCAL_FILE));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(_) if file.is_none() && !path.is_file() => String::new(),
            Err(error) => return Err(unreadable(path, &error)),
        };
        let environment = Env::prefixed(ENV_PREFIX).ignore(&[tokens::VARIABLE]).split("__");
        let figment = Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(&text)).merge(environment);
        tokens::from_environment(figment).extract().map_err(|error| ConfigError(sentence(error, path)))
    }

    /// The defaults alone.
    ///
    /// # Errors
    /// Never, as long as the shipped file is sound; a test sees to that.
    pub fn defaults() -> Result<Self, ConfigError> {
        Figment::from(Toml::string(DEFAULTS))
            .extract()
            .map_err(|error| ConfigError(sentence(error, Path::new(LOCAL_FILE))))
    }

    /// Whether the values go together. The start asks, after whatever the command line has changed.
    ///
    /// # Errors
    /// Names the first key whose value can't be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("server.max_body_bytes", self.server.max_body_bytes as u64),
            ("server.header_timeout_s", self.server.header_timeout_s),
            ("server.max_connections", self.server.max_connections as u64),
            ("ssh.connect_timeout_s", self.ssh.connect_timeout_s),
            ("ssh.connect_attempts", u64::from(self.ssh.connect_attempts)),
            ("ssh.keepalive_s", self.ssh.keepalive_s),
            ("limits.workflow_file_bytes", self.limits.workflow_file_bytes),
            ("limits.image_bytes", self.limits.image_bytes),
            ("limits.stalled_after_s", self.limits.stalled_after_s),
            ("defaults.comfyui_port", u64::from(self.defaults.comfyui_port)),
            ("limits.max_running", self.limits.max_running as u64),
            ("limits.max_running_per_box", self.limits.max_running_per_box as u64),
        ];
        let set = [
            ("state.file", self.state.file.file_name().is_some()),
            ("ssh.known_hosts", self.ssh.known_hosts.file_name().is_some()),
            ("defaults.output_dir", !self.defaults.output_dir.is_empty()),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError(format!("configuration key {key} must be above 0")));
        }
        if let Some((key, _)) = set.iter().find(|(_, is_set)| !is_set) {
            return Err(ConfigError(format!("configuration key {key} must not be empty")));
        }
        let on_the_box = [
            ("defaults.comfyui_input_dir", &self.defaults.comfyui_input_dir),
            ("defaults.comfyui_output_dir", &self.defaults.comfyui_output_dir),
        ];
        on_the_box.iter().try_for_each(|(key, folder)| {
            runner::check_box_folder(folder).map_err(|why| ConfigError(format!("configuration key {key} {why}")))
        })
    }

    /// For [`store::Store::open`].
    pub fn store(&self) -> store::Options {
        store::Options {
            file: expand_home(&self.state.file),
            write_interval: Duration::from_millis(self.state.write_interval_ms),
            keep_finished: self.state.keep_finished,
        }
    }

    /// Looks up the folders of `[files]`.
    ///
    /// # Errors
    /// When one is missing; and when they are not set although other machines can reach the service.
    pub fn file_roots(&self) -> Result<FileRoots, ConfigError> {
        let files = &self.files;
        let bind = self.server.bind;
        let is_confined = files.read_roots.is_some() && files.write_roots.is_some();
        if !is_confined && !self.server.is_only_local() {
            return Err(ConfigError(format!(
                "other machines can reach {bind}, so [files] read_roots and write_roots must name the folders that \
                 requests may read and write (or set [server] bind to 127.0.0.1)"
            )));
        }
        let roots = |key: &str, folders: &Option<Vec<PathBuf>>| match folders {
            None => Ok(Roots::anywhere()),
            Some(folders) => {
                let folders: Vec<PathBuf> = folders.iter().map(|folder| expand_home(folder)).collect();
                Roots::within(&folders).map_err(|error| ConfigError(format!("configuration key files.{key}: {error}")))
            }
        };
        Ok(FileRoots {
            read: roots("read_roots", &files.read_roots)?,
            write: roots("write_roots", &files.write_roots)?,
        })
    }

    /// For [`ssh::Pool::new`].
    pub fn ssh(&self, roots: &FileRoots) -> ssh::Options {
        let ssh = &self.ssh;
        ssh::Options {
            known_hosts: ssh.known_hosts.clone(),
            host_keys: match ssh.host_keys {
                HostKeys::AcceptNew => ssh::HostKeyPolicy::AcceptNew,
                HostKeys::Strict => ssh::HostKeyPolicy::Strict,
                HostKeys::Off => ssh::HostKeyPolicy::Off,
            },
            identity_files: ssh.identity_files.clone(),
            use_agent: ssh.use_agent,
            passphrase_file: ssh.passphrase_file.clone(),
            connect_timeout: Duration::from_secs(ssh.connect_timeout_s),
            connect_attempts: ssh.connect_attempts,
            keepalive: Duration::from_secs(ssh.keepalive_s),
            config_file: ssh.config_file.clone(),
            allowed_hosts: ssh.allowed_hosts.clone(),
            read_roots: roots.read.clone(),
            write_roots: roots.write.clone(),
        }
    }

    /// For [`runner::Runner::start`].
    pub fn runner(&self, roots: &FileRoots) -> runner::Options {
        runner::Options {
            execute_wait: Duration::from_secs(self.ssh.execute_wait_s),
            unreachable_limit: Duration::from_secs(self.limits.unreachable_limit_s),
            unreachable_before_submit: Duration::from_secs(self.limits.unreachable_before_submit_s),
            comfyui_start: Duration::from_secs(self.limits.comfyui_start_s),
            stalled_after: Duration::from_secs(self.limits.stalled_after_s),
            resubmit_lost: self.limits.resubmit_lost,
            limits: runner::Limits {
                max_running: self.limits.max_running,
                max_running_per_box: self.limits.max_running_per_box,
                max_waiting: self.limits.max_waiting,
                max_active_per_caller: NonZeroUsize::new(self.limits.client_max_active),
            },
            min_free_bytes: self.limits.min_free_bytes,
            files: runner::FileRules {
                read_roots: roots.read.clone(),
                write_roots: roots.write.clone(),
                workflow_file_bytes: self.limits.workflow_file_bytes,
                image_bytes: self.limits.image_bytes,
                download_bytes: self.limits.download_bytes,
            },
            defaults: runner::Defaults {
                comfyui_port: self.defaults.comfyui_port,
                comfyui_input_dir: self.defaults.comfyui_input_dir.clone(),
                comfyui_output_dir: self.defaults.comfyui_output_dir.clone(),
                output_dir: self.defaults.output_dir.clone(),
            },
        }
    }

    /// For [`http::router`].
    ///
    /// # Errors
    /// When the tokens can't be used, or anybody on the network could use the service although nobody said that they may.
    pub fn http(&self) -> Result<http::Options, ConfigError> {
        Ok(http::Options {
            host_names: self.server.host_names.clone(),
            cors_origins: self.server.cors_origins.clone(),
            tokens: tokens::of(&self.server)?,
            caller_rates: http::CallerRates {
                execute_per_minute: NonZeroU32::new(self.limits.client_execute_per_minute),
                progress_per_second: NonZeroU32::new(self.limits.client_progress_per_second),
            },
            max_body_bytes: self.server.max_body_bytes,
        })
    }

    /// For [`http::serve`].
    pub fn serve(&self) -> http::ServeOptions {
        http::ServeOptions {
            header_timeout: Duration::from_secs(self.server.header_timeout_s),
            max_connections: self.server.max_connections,
        }
    }
}

/// An address to listen on, as in `127.0.0.1:5000`.
///
/// # Errors
/// Says how to write it.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let hint = "write an IP address and a port, such as 127.0.0.1:5000 or [::1]:5000";
    text.parse().map_err(|error| format!("{error}; {hint}"))
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    socket_address(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    let shown = path.display();
    ConfigError(match error.kind() {
        io::ErrorKind::NotFound => format!("configuration file not found: {shown}"),
        _ if path.is_dir() => format!("configuration file is a directory: {shown}"),
        _ => format!("configuration file cannot be read: {shown}: {error}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every `# key = value` line of the file, also those that are off by default.
    fn with_optional_keys() -> String {
        let optional = |line: &str| {
            let key = line.strip_prefix("# ")?.split_once(" = ")?.0;
            key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then(|| line[2..].to_owned())
        };
        DEFAULTS.lines().map(|line| optional(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
    }

    fn load(text: &str) -> Result<Config, String> {
        let figment = Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(text));
        figment.extract().map_err(|error| sentence(error, Path::new("my.toml")))
    }

    #[test]
    fn the_file_alone_gives_every_key_that_has_a_default() {
        let config: Config = Figment::from(Toml::string(DEFAULTS)).extract().unwrap();
        assert_eq!(config.server.bind.to_string(), "127.0.0.1:5000");
        assert_eq!(config.state.file, Path::new("/tmp/comfyui_workflow_state.json"));
        assert_eq!(config.defaults.comfyui_port, 18188);
        assert_eq!(config.ssh.host_keys, HostKeys::AcceptNew);
        assert_eq!((config.ssh.passphrase_file, config.log.folder), (None, None));
    }

    #[test]
    fn the_file_documents_the_optional_keys_too() {
        let config: Config = Figment::from(Toml::string(&with_optional_keys())).extract().unwrap();
        assert!(config.ssh.passphrase_file.is_some() && config.log.folder.is_some());
        assert!(config.ssh.allowed_hosts.is_some());
        assert!(config.files.read_roots.is_some() && config.files.write_roots.is_some());
    }

    #[test]
    fn every_key_is_explained() {
        let mut explained = false;
        for line in DEFAULTS.lines() {
            let is_key = line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ') || key.starts_with("# "));
            assert!(!is_key || explained || line.starts_with("comfyui_") || line.starts_with("output_dir"), "{line}");
            explained = line.starts_with('#');
        }
    }

    #[test]
    fn a_bad_key_or_value_is_named_in_one_sentence() {
        for (text, expected) in [
            ("[server]\nprot = 1", "configuration key server.prot: unknown field"),
            ("[serv]\nx = 1", "configuration key serv: unknown field"),
            (
                "[server]\nbind = \"nowhere\"",
                "configuration key server.bind: invalid socket address syntax; write an IP",
            ),
            ("[server\n", "configuration: TOML parse error at line 1, column 8: "),
            ("[server]\ncors_origins = [\"localhost\"]", "configuration key server.cors_origins.0: "),
            ("[ssh]\nhost_keys = \"maybe\"", "configuration key ssh.host_keys: unknown variant"),
            ("[ssh]\nconnect_timeout_s = \"soon\"", "configuration key ssh.connect_timeout_s: invalid type"),
            ("[defaults]\ncomfyui_port = 70000", "configuration key defaults.comfyui_port: invalid value"),
        ] {
            let message = load(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains(['\n', '|', '^']) && message.ends_with(" (in my.toml)"), "{message}");
        }
    }
}
