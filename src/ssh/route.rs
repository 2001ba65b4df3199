//! From a [`Target`] to a route: every host on the way with everything that is needed to connect to it.
//!
//! The order of precedence is OpenSSH's: the connection string, then `~/.ssh/config`, then [`Options`], then the usual
//! defaults (the local user, port 22). Reads files, so it runs once per connect and off the async threads. Two targets
//! with the same route share their connections.

use std::{env, fs, path::Path, time::Duration};

use super::{
    HostKeyPolicy, Options, SshError, Target, config_file, known_hosts,
    named_file::NamedFile,
    settings::{HostKeyChoice, MAX_JUMPS, Settings},
    target::{self, Destination},
};
use crate::home::expand_home;

/// The hosts on the way, the box itself last. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) hops: Vec<Endpoint>,
}

/// One host on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    /// The name in known_hosts, if it is not the host's.
    pub(super) host_key_alias: Option<String>,
    /// Keys named by the connection string, `~/.ssh/config` or the options, in this order.
    pub(super) identity_files: Vec<NamedFile>,
    pub(super) identities_only: bool,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Duration,
    pub(super) keepalive_max: u32,
    pub(super) host_keys: HostKeyPolicy,
    /// The first one receives new keys. Empty: nothing is on record, and nothing gets there.
    pub(super) known_hosts: Vec<NamedFile>,
}

impl Endpoint {
    /// `host:port`.
    pub(super) fn address(&self) -> String {
        target::address(&self.host, self.port)
    }

    fn check_files(&self) -> Result<(), SshError> {
        let keys = self.identity_files.iter().map(|file| (file, "read_roots"));
        let records = self.known_hosts.iter().map(|file| (file, known_hosts::ROOTS));
        match keys.chain(records).find(|(file, _)| file.is_outside()) {
            Some((file, keys)) => Err(SshError::FileRefused { path: file.name(), keys }),
            None => Ok(()),
        }
    }
}

impl Route {
    /// Whether every file that the connection string names may be used. Blocks for the file system only.
    ///
    /// # Errors
    /// [`SshError::FileRefused`] names the first that may not.
    pub(super) fn check_files(&self) -> Result<(), SshError> {
        self.hops.iter().try_for_each(Endpoint::check_files)
    }

    /// Resolves a target. Blocking: reads `~/.ssh/config`.
    ///
    /// # Errors
    /// [`SshError::HostRefused`] if one of the hosts on the way is not allowed.
    pub(super) fn resolve(target: &Target, options: &Options) -> Result<(Self, Vec<String>), SshError> {
        let mut resolver = Resolver {
            options,
            given: &target.settings,
            hops: Vec::new(),
            names: Vec::new(),
            name: target.named(),
            warnings: Vec::new(),
        };
        let settings = resolver.complete(&target.host, target.settings.clone());
        let jumps = settings.jumps.clone().unwrap_or_default();
        resolver.through(&target.host, &settings, &jumps, &target.settings.identity_files, 0)?;
        resolver.name = target.named();
        resolver.add(&target.host, settings);
        if let Some(allowed) = &options.allowed_hosts {
            let refused = |hop: &Endpoint| !allowed.allow(&hop.user, &hop.host, hop.port);
            let mut hops = resolver.hops.iter().zip(&resolver.names);
            if let Some((hop, name)) = hops.find(|(hop, _)| refused(hop)) {
                tracing::info!(host = %hop.address(), user = hop.user, "not among the hosts that [ssh] allowed_hosts allows");
                return Err(SshError::HostRefused { destination: name.clone() });
            }
        }
        Ok((Self { hops: resolver.hops }, resolver.warnings))
    }
}

struct Resolver<'a> {
    options: &'a Options,
    /// What the connection string itself says.
    given: &'a Settings,
    hops: Vec<Endpoint>,
    /// For each hop what in the connection string has led to it.
    names: Vec<String>,
    /// That of the next one.
    name: String,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    /// Adds the hops in front of `host`. As in OpenSSH, only the first of them can have jump hosts of its own. A host
    /// that would jump over itself (`Host *` with a ProxyJump) does not.
    fn through(
        &mut self,
        host: &str,
        own: &Settings,
        jumps: &[Destination],
        identity_files: &[String],
        depth: usize,
    ) -> Result<(), SshError> {
        if let [only] = jumps
            && only.host == host
        {
            // The same address may lead to several boxes, by their ports.
            let place = |settings: &Settings| (settings.user.clone(), settings.port.unwrap_or(22));
            let jump = self.complete(&only.host, given(only));
            if place(&jump) == place(own) {
                return Ok(());
            }
        }
        if depth > MAX_JUMPS || self.hops.len() + jumps.len() > MAX_JUMPS {
            let message = format!("more than {MAX_JUMPS} jump hosts on the way; does ProxyJump go in circles?");
            return Err(SshError::Config { message });
        }
        for (at, jump) in jumps.iter().enumerate() {
            if depth == 0 && self.given.jumps.is_some() {
                self.name = jump.to_string();
            }
            let mut settings = self.complete(&jump.host, given(jump));
            if at == 0
                && let Some(earlier) = settings.jumps.take()
            {
                self.through(&jump.host, &settings, &earlier, identity_files, depth + 1)?;
            }
            // OpenSSH would not use the -i of the destination here, but who writes `-i key -J hop` means both.
            settings.identity_files.extend_from_slice(identity_files);
            self.add(&jump.host, settings);
        }
        Ok(())
    }

    fn add(&mut self, alias: &str, settings: Settings) {
        let hop = self.endpoint(alias, settings);
        self.hops.push(hop);
        self.names.push(self.name.clone());
    }

    /// What was given, completed by the configuration file.
    fn complete(&mut self, host: &str, given: Settings) -> Settings {
        let (file, required) = match &self.options.config_file {
            Some(file) => (Some(file.clone()), true),
            None => (env::home_dir().map(|home| home.join(".ssh/config")), false),
        };
        let Some(file) = file else { return given };
        let (from_file, warnings) = config_file::lookup(&file, required, host);
        for warning in warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        given.or(from_file)
    }

    fn endpoint(&mut self, alias: &str, settings: Settings) -> Endpoint {
        let options = self.options;
        let host = match &settings.host_name {
            Some(name) => replace_tokens(name, |token| (token == 'h').then(|| alias.to_owned())),
            None => alias.to_owned(),
        };
        let port = settings.port.unwrap_or(22);
        let user = settings.user.unwrap_or_else(local_user);
        let path = |text: &String| {
            let text = replace_tokens(text, |token| match token {
                'd' => env::home_dir().map(|home| home.display().to_string()),
                'h' => Some(host.clone()),
                'n' => Some(alias.to_owned()),
                'p' => Some(port.to_string()),
                'r' => Some(user.clone()),
                'u' => Some(local_user()),
                _ => None,
            });
            expand_home(Path::new(&text))
        };
        let identity = |text: &String| {
            let path = path(text);
            // Naming a key that is tried anyway gives nobody more than it did before.
            if self.given.identity_files.contains(text) && !options.identity_files.contains(&path) {
                NamedFile::confined(text, path, options)
            } else {
                path.into()
            }
        };
        let mut identity_files: Vec<NamedFile> = Vec::new();
        let own = options.identity_files.iter().cloned().map(NamedFile::from);
        for file in settings.identity_files.iter().map(identity).chain(own) {
            if !identity_files.iter().any(|known| known.path == file.path) {
                identity_files.push(file);
            }
        }
        let known_hosts = match &settings.known_hosts {
            Some(files) if self.given.known_hosts.as_ref() == Some(files) => {
                files.iter().map(|file| NamedFile::confined_both_ways(file, path(file), options)).collect()
            }
            Some(files) => files.iter().map(|file| path(file).into()).collect(),
            None => vec![options.known_hosts.clone().into()],
        };
        let keepalive = match settings.alive_interval {
            Some(Duration::ZERO) => {
                let warning = "ServerAliveInterval 0 is not used: without it a box that is gone would not be noticed";
                self.warnings.push(warning.to_owned());
                options.keepalive
            }
            Some(interval) => interval,
            None => options.keepalive,
        };
        Endpoint {
            host_key_alias: settings.host_key_alias,
            identity_files,
            identities_only: settings.identities_only.unwrap_or(false),
            connect_timeout: settings.connect_timeout.unwrap_or(options.connect_timeout),
            keepalive,
            keepalive_max: settings.alive_count_max.unwrap_or(3),
            host_keys: match settings.host_keys {
                Some(HostKeyChoice::Policy(policy)) => policy,
                Some(HostKeyChoice::Ask) | None => options.host_keys,
            },
            known_hosts,
            host,
            port,
            user,
        }
    }
}

/// What is said of a jump host where it is named.
fn given(jump: &Destination) -> Settings {
    Settings { user: jump.user.clone(), port: jump.port, ..Settings::default() }
}

/// Replaces `%` tokens; those that have no value stay as they are.
fn replace_tokens(text: &str, value: impl Fn(char) -> Option<String>) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            replaced.push(c);
            continue;
        }
        match rest.next() {
            Some('%') => replaced.push('%'),
            Some(token) => match value(token) {
                Some(value) => replaced.push_str(&value),
                None => replaced.extend(['%', token]),
            },
            None => replaced.push('%'),
        }
    }
    replaced
}

/// The name of the user this program runs as. As ssh does, the user database is asked before the environment.
fn local_user() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let database = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = database.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let listed = entry
        .filter(|fields| fields.get(2) == Some(&uid.as_str()))
        .find_map(|fields| fields.first().filter(|name| !name.is_empty()).map(|name| (*name).to_owned()));
    let named = || env::var("USER").or_else(|_| env::var("LOGNAME")).ok().filter(|name| !name.is_empty());
    listed.or_else(named).unwrap_or_else(|| "root".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Resolves `text` with this `~/.ssh/config`.
    fn resolve(text: &str, config: &str) -> Result<(Route, Vec<String>), SshError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, config).unwrap();
        let options = Options {
            known_hosts: "/known".into(),
            identity_files: vec!["/service".into()],
            config_file: Some(file),
            ..Options::default()
        };
        Route::resolve(&Target::parse(text).unwrap(), &options)
    }

    fn named(path: &str) -> NamedFile {
        PathBuf::from(path).into()
    }

    fn given(path: &str) -> NamedFile {
        NamedFile::confined(path, path.into(), &Options::default())
    }

    fn addresses(text: &str, config: &str) -> Vec<String> {
        let (route, _) = resolve(text, config).unwrap();
        route.hops.iter().map(|hop| format!("{}@{}", hop.user, hop.address())).collect()
    }

    #[test]
    fn the_string_wins_over_the_file_and_the_file_over_the_options() {
        let config = "Host gpu\nHostName 10.0.0.%h\nUser file\nPort 1\nIdentityFile /f/%r@%h:%p%%\n\
                      IdentitiesOnly yes\nStrictHostKeyChecking yes\nServerAliveInterval 0\n";
        let (route, warnings) = resolve("ssh -i /r -p 2 -o StrictHostKeyChecking=ask gpu", config).unwrap();
        assert_eq!(
            route.hops,
            [Endpoint {
                host: "10.0.0.gpu".into(),
                port: 2,
                user: "file".into(),
                host_key_alias: None,
                identity_files: vec![given("/r"), named("/f/file@10.0.0.gpu:2%"), named("/service")],
                identities_only: true,
                connect_timeout: Duration::from_secs(10),
                keepalive: Duration::from_secs(15),
                keepalive_max: 3,
                host_keys: HostKeyPolicy::AcceptNew,
                known_hosts: vec![named("/known")],
            }]
        );
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn without_anything_it_is_the_local_user_and_port_22() {
        assert_eq!(addresses("box", ""), [format!("{}@box:22", local_user())]);
        assert_eq!(addresses("u@[::1]:23", ""), ["u@[::1]:23"]);
    }

    #[test]
    fn jump_hosts_are_resolved_like_hosts() {
        let config = "Host a\nHostName a.net\nUser ua\nProxyJump z\nHost b\nProxyJump nowhere\nHost z\nUser uz\n";
        let expected = ["uz@z:22", "ua@a.net:22", "ub@b:23", "u@box:22"];
        assert_eq!(addresses("ssh -J a,ub@b:23 u@box", config), expected);
        assert_eq!(addresses("ssh u@box", "Host box\nProxyJump u@a,u@b\n"), ["u@a:22", "u@b:22", "u@box:22"]);
        assert_eq!(addresses("ssh -J none u@box", "Host box\nProxyJump a\n"), ["u@box:22"]);
        let (route, _) = resolve("ssh -i /mine -J a u@box", config).unwrap();
        assert!(route.hops.iter().all(|hop| hop.identity_files == [given("/mine"), named("/service")]));
    }

    #[test]
    fn boxes_behind_one_address_are_told_apart_by_port() {
        assert_eq!(addresses("ssh -J u@gate:22 -p 23 u@gate", ""), ["u@gate:22", "u@gate:23"]);
        assert_eq!(addresses("ssh -J gate -p 23 u@gate", "Host *\nUser u\n"), ["u@gate:22", "u@gate:23"]);
        assert_eq!(addresses("ssh -J u@gate:22 u@gate", ""), ["u@gate:22"]);
    }

    #[test]
    fn jump_hosts_that_go_in_circles_are_refused() {
        let everywhere = "Host *\nUser u\nProxyJump gate\n";
        assert_eq!(addresses("box", everywhere), ["u@gate:22", "u@box:22"], "the gate itself is reached directly");
        let circle = "Host a\nProxyJump b\nHost b\nProxyJump a\n";
        assert!(matches!(resolve("a", circle), Err(SshError::Config { .. })));
    }
}
