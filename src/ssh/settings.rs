//! The SSH settings this program understands, by the names OpenSSH gives them.
//!
//! The `-o` options of a connection string and the lines of `~/.ssh/config` both end up here, under OpenSSH's rule that
//! the first value of a setting wins; identity files add up. What is refused, and what is ignored aloud, is decided by
//! the callers: `command` for a connection string, `config_file` for the file.

use std::time::Duration;

use super::{
    HostKeyPolicy,
    target::{Destination, TargetError, check_host, check_user, parse_port},
};

/// Longer attempts to connect would hold a place in line for nothing.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// More hops than this is a loop or a mistake.
pub(super) const MAX_JUMPS: usize = 8;
/// More keys than this cannot be tried: OpenSSH servers hang up after six.
pub(super) const MAX_IDENTITIES: usize = 32;

/// Settings as far as they are given. Paths are as written, with `~/` and `%` tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    pub(super) host_name: Option<String>,
    pub(super) host_key_alias: Option<String>,
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) identity_files: Vec<String>,
    pub(super) identities_only: Option<bool>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) alive_interval: Option<Duration>,
    pub(super) alive_count_max: Option<u32>,
    pub(super) host_keys: Option<HostKeyChoice>,
    /// Empty: none at all.
    pub(super) known_hosts: Option<Vec<String>>,
    /// Empty: straight there.
    pub(super) jumps: Option<Vec<Destination>>,
}

/// `StrictHostKeyChecking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum HostKeyChoice {
    /// One of ours.
    Policy(HostKeyPolicy),
    /// `ask`: there is nobody to ask, so the policy of [`super::Options`] decides.
    Ask,
}

/// What became of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// It had another value already, and the first one wins.
    Shadowed,
    /// No setting of ours.
    Unknown,
}

/// What a value should have been.
pub(super) type Expected = &'static str;

impl Settings {
    /// Takes over `name value` if the setting is ours and still open. Names are compared without regard to case.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<Taken, Expected> {
        let value = unquote(value);
        Ok(match name.to_ascii_lowercase().as_str() {
            "hostname" => fill(&mut self.host_name, host_name(value)?),
            "hostkeyalias" => fill(&mut self.host_key_alias, host_name(value)?),
            "user" => fill(&mut self.user, check_user(value).map_err(|_| "a user name")?),
            "port" => fill(&mut self.port, parse_port(value).map_err(|_| "a number from 1 to 65535")?),
            "identityfile" => self.add_identity(value)?,
            "identitiesonly" => fill(&mut self.identities_only, yes_no(value)?),
            "connecttimeout" => fill(&mut self.connect_timeout, seconds(value, 1)?.min(MAX_CONNECT_TIMEOUT)),
            "serveraliveinterval" => fill(&mut self.alive_interval, seconds(value, 0)?),
            "serveralivecountmax" => fill(&mut self.alive_count_max, count(value)?),
            "stricthostkeychecking" => fill(&mut self.host_keys, host_keys(value)?),
            "userknownhostsfile" => fill(&mut self.known_hosts, known_hosts(value)?),
            "proxyjump" => fill(&mut self.jumps, jumps(value)?),
            _ => Taken::Unknown,
        })
    }

    /// Takes over the user behind the host; false if there is another one already.
    pub(super) fn set_user(&mut self, user: String) -> bool {
        fill(&mut self.user, user) == Taken::Yes
    }

    /// Takes over the port behind the host; false if there is another one already.
    pub(super) fn set_port(&mut self, port: u16) -> bool {
        fill(&mut self.port, port) == Taken::Yes
    }

    /// These settings, with `fallback` for everything they leave open.
    pub(super) fn or(mut self, fallback: Self) -> Self {
        self.identity_files.extend(fallback.identity_files);
        self.identity_files.truncate(MAX_IDENTITIES);
        Self {
            host_name: self.host_name.or(fallback.host_name),
            host_key_alias: self.host_key_alias.or(fallback.host_key_alias),
            user: self.user.or(fallback.user),
            port: self.port.or(fallback.port),
            identity_files: self.identity_files,
            identities_only: self.identities_only.or(fallback.identities_only),
            connect_timeout: self.connect_timeout.or(fallback.connect_timeout),
            alive_interval: self.alive_interval.or(fallback.alive_interval),
            alive_count_max: self.alive_count_max.or(fallback.alive_count_max),
            host_keys: self.host_keys.or(fallback.host_keys),
            known_hosts: self.known_hosts.or(fallback.known_hosts),
            jumps: self.jumps.or(fallback.jumps),
        }
    }

    fn add_identity(&mut self, value: &str) -> Result<Taken, Expected> {
        let path = path(value)?;
        if path.eq_ignore_ascii_case("none") || self.identity_files.iter().any(|known| known == path) {
            return Ok(Taken::Yes);
        }
        if self.identity_files.len() == MAX_IDENTITIES {
            return Err("no more than 32 identity files");
        }
        self.identity_files.push(path.to_owned());
        Ok(Taken::Yes)
    }
}

fn fill<T: PartialEq>(slot: &mut Option<T>, value: T) -> Taken {
    match slot {
        None => {
            *slot = Some(value);
            Taken::Yes
        }
        Some(first) if *first == value => Taken::Yes,
        Some(_) => Taken::Shadowed,
    }
}

fn unquote(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

/// A host name in which OpenSSH replaces `%h` (the name as given) and `%%`.
fn host_name(value: &str) -> Result<String, Expected> {
    const EXPECTED: Expected = "a host name or an address";
    check_host(value, &value.replace("%h", "h")).map_err(|_| EXPECTED)?;
    Ok(value.to_owned())
}

fn path(value: &str) -> Result<&str, Expected> {
    if value.is_empty() || value.len() > 1024 || value.contains('\0') { Err("the path of a file") } else { Ok(value) }
}

fn yes_no(value: &str) -> Result<bool, Expected> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("yes or no"),
    }
}

/// Seconds, or a number with `s`, `m` or `h`; from `least` to a day.
fn seconds(value: &str, least: u64) -> Result<Duration, Expected> {
    const EXPECTED: Expected = "a number of seconds";
    let (digits, factor) = match value.char_indices().last() {
        Some((at, 's' | 'S')) => (&value[..at], 1),
        Some((at, 'm' | 'M')) => (&value[..at], 60),
        Some((at, 'h' | 'H')) => (&value[..at], 3600),
        _ => (value, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EXPECTED);
    }
    let seconds = digits.parse::<u32>().map_err(|_| EXPECTED)?;
    let seconds = u64::from(seconds) * factor;
    if (least..=86_400).contains(&seconds) { Ok(Duration::from_secs(seconds)) } else { Err(EXPECTED) }
}

fn count(value: &str) -> Result<u32, Expected> {
    match value.parse::<u32>() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err("a number from 1 to 1000"),
    }
}

/// `no` accepts changed keys too: it is what people write for boxes that are replaced daily.
fn host_keys(value: &str) -> Result<HostKeyChoice, Expected> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "yes" | "true" => HostKeyChoice::Policy(HostKeyPolicy::Strict),
        "no" | "false" | "off" => HostKeyChoice::Policy(HostKeyPolicy::Off),
        "accept-new" => HostKeyChoice::Policy(HostKeyPolicy::AcceptNew),
        "ask" => HostKeyChoice::Ask,
        _ => return Err("yes, no, accept-new, ask or off"),
    })
}

fn known_hosts(value: &str) -> Result<Vec<String>, Expected> {
    let files: Vec<&str> = value.split_whitespace().map(unquote).collect();
    if files.is_empty() || files.len() > 8 {
        return Err("the path of a file, /dev/null or none");
    }
    files
        .into_iter()
        .filter(|file| *file != "/dev/null" && !file.eq_ignore_ascii_case("none"))
        .map(|file| path(file).map(str::to_owned))
        .collect()
}

/// A comma list of jump hosts, first hop first, or `none`.
fn jumps(value: &str) -> Result<Vec<Destination>, Expected> {
    if value.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let hops: Result<Vec<_>, TargetError> = value.split(',').map(|hop| Destination::parse(hop.trim())).collect();
    match hops {
        Ok(hops) if hops.len() <= MAX_JUMPS => Ok(hops),
        _ => Err("up to 8 jump hosts like user@host:port, separated by commas"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_free_of_case_and_the_first_value_wins() {
        let mut settings = Settings::default();
        assert_eq!(settings.set("PORT", "22"), Ok(Taken::Yes));
        assert_eq!(settings.set("port", "22"), Ok(Taken::Yes));
        assert_eq!(settings.set("Port", "23"), Ok(Taken::Shadowed));
        assert_eq!(settings.set("Compression", "yes"), Ok(Taken::Unknown));
        assert_eq!(settings, Settings { port: Some(22), ..Settings::default() });
    }

    #[test]
    fn values_are_checked() {
        for (name, good, bad) in [
            ("Port", &["1", "65535"][..], &["0", "65536", "-1", "+22", "22x", ""][..]),
            ("User", &["root", "my-user", "a.b@corp"], &["", "-x", "a b", "a;b"]),
            ("HostName", &["10.0.0.1", "::1", "%h.example.com"], &["", "-x", "a b", "$(x)", "a:b"]),
            ("IdentitiesOnly", &["yes", "NO", "true"], &["maybe", ""]),
            ("ConnectTimeout", &["1", "10s", "2m", "1h"], &["0", "", "s", "-1", "1.5", "2d", "999999999999"]),
            ("ServerAliveInterval", &["0", "30"], &["x", "99h"]),
            ("ServerAliveCountMax", &["1", "1000"], &["0", "1001", "x"]),
            ("StrictHostKeyChecking", &["yes", "no", "accept-new", "ask", "off"], &["", "never"]),
            ("UserKnownHostsFile", &["/dev/null", "none", "~/a ~/b"], &["", "a b c d e f g h i"]),
            ("ProxyJump", &["none", "a", "u@a:22,[::1]:23,ssh://b"], &["", "a,,b", "a:0", "a,b,c,d,e,f,g,h,i"]),
        ] {
            for value in good {
                assert_eq!(Settings::default().set(name, value), Ok(Taken::Yes), "{name} {value}");
            }
            for value in bad {
                assert!(Settings::default().set(name, value).is_err(), "{name} {value}");
            }
        }
    }

    #[test]
    fn identity_files_add_up_without_repeats() {
        let mut settings = Settings::default();
        for value in ["a", "\"b c\"", "none", "a"] {
            assert_eq!(settings.set("IdentityFile", value), Ok(Taken::Yes));
        }
        let mut fallback = Settings::default();
        fallback.set("IdentityFile", "d").unwrap();
        assert_eq!(settings.or(fallback).identity_files, ["a", "b c", "d"]);
    }

    #[test]
    fn no_known_hosts_at_all_is_not_the_same_as_the_usual_ones() {
        let mut settings = Settings::default();
        settings.set("UserKnownHostsFile", "/dev/null").unwrap();
        assert_eq!(settings.known_hosts, Some(Vec::new()));
        settings.set("ProxyJump", "none").unwrap();
        assert_eq!(settings.jumps, Some(Vec::new()));
    }
}
