//! Where to connect: the `ssh_connection` string of a request, taken apart without any I/O.
//!
//! [`Target`] holds exactly what the string says; what it leaves open is added at connect time by `route`. Whoever has
//! a `Target` needs no further checks: ports, host and user names and option values are valid. The words of the string
//! come from `words`, the options from `command` and `settings`.

use std::{fmt, net::Ipv6Addr};

use thiserror::Error;

use super::{command, settings::Settings};

/// A box as the user names it: host or `Host` alias, and whatever else the connection string says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub(super) host: String,
    pub(super) settings: Settings,
    warnings: Vec<String>,
}

impl Target {
    /// Takes a connection string apart: an `ssh` command as people paste it, `ssh://user@host:port`, `user@host:port`,
    /// a host or a `Host` alias of `~/.ssh/config`. Never panics and does no I/O.
    ///
    /// # Errors
    /// [`TargetError`] names the part that is wrong, not understood, or refused.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let (destination, mut settings, mut warnings) = command::parse(text)?;
        if let Some(user) = destination.user
            && !settings.set_user(user)
        {
            warnings.push("the user is given twice; the first one is used".to_owned());
        }
        if let Some(port) = destination.port
            && !settings.set_port(port)
        {
            warnings.push("the port is given twice; the first one is used".to_owned());
        }
        Ok(Self { host: destination.host, settings, warnings })
    }

    /// The host as written: a name, an address (IPv6 without brackets) or an alias.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The user name, if the string has one.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.settings.user.as_deref()
    }

    /// The port, if the string has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.settings.port
    }

    /// As [`Display`](fmt::Display), but with the host of `-o HostName`, if the string has that.
    pub(super) fn named(&self) -> String {
        let host = self.settings.host_name.as_ref().unwrap_or(&self.host);
        named(self.user(), host, self.port())
    }

    /// What was left out of account, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// `user@host:port`, without the parts the string leaves open.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&named(self.user(), &self.host, self.port()))
    }
}

fn named(user: Option<&str>, host: &str, port: Option<u16>) -> String {
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let host = port.map_or_else(|| host.to_owned(), |port| address(host, port));
    format!("{user}{host}")
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Why a connection string was not understood. The texts quote the part that is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TargetError {
    /// Nothing but space.
    #[error("the SSH connection is empty; write it like `ssh -p 40738 root@198.53.64.194`")]
    Empty,
    /// Longer than any command somebody would paste.
    #[error("the SSH connection is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Bytes that no keyboard makes.
    #[error("the SSH connection has a control character in it")]
    ControlCharacter,
    /// A quote without its partner.
    #[error("a {quote} quote is never closed")]
    UnclosedQuote {
        /// The quote.
        quote: char,
    },
    /// Something only a shell could carry out.
    #[error(
        "`{token}` is shell syntax; give one plain ssh command, without variables, pipes, redirections or comments"
    )]
    ShellSyntax {
        /// The word it is in.
        token: String,
    },
    /// A dash as word processors make it.
    #[error("`{token}` begins with a typographic dash; write options with a plain `-`")]
    TypographicDash {
        /// The word.
        token: String,
    },
    /// Another program's command line.
    #[error("`{token}` is another program; give the ssh command")]
    OtherProgram {
        /// The program.
        token: String,
    },
    /// Options only.
    #[error("the SSH connection names no host")]
    NoHost,
    /// An option at the end whose value is missing.
    #[error("`{option}` needs a value")]
    MissingValue {
        /// The option.
        option: String,
    },
    /// Not a number from 1 to 65535.
    #[error("`{token}` is no port; a port is a number from 1 to 65535")]
    BadPort {
        /// What stands there.
        token: String,
    },
    /// Not a host name, address or alias.
    #[error("`{token}` is no host: {why}")]
    BadHost {
        /// What stands there.
        token: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a user name.
    #[error("`{token}` is no user name: {why}")]
    BadUser {
        /// What stands there.
        token: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An option with a value it cannot have.
    #[error("`{option}` cannot be `{value}`; expected {expected}")]
    BadValue {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// An option that this program does not carry out, and that changes too much to be ignored.
    #[error("`{option}` is not allowed here: {why}; {instead}")]
    Refused {
        /// The option.
        option: String,
        /// Why not.
        why: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// An option that ssh does not have either.
    #[error("`{token}` is no option of ssh")]
    UnknownOption {
        /// The option.
        token: String,
    },
    /// Words behind the host.
    #[error("`{token}` behind the host looks like a remote command; only the connection itself can be given")]
    RemoteCommand {
        /// The first word of it.
        token: String,
    },
    /// Two destinations.
    #[error("`{token}` is a second host; only one can be given (for a jump host use -J)")]
    SecondHost {
        /// The second one.
        token: String,
    },
    /// More of something than anybody needs.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// A word cut to a length that fits into a message.
pub(super) fn shown(word: &str) -> String {
    const LONGEST: usize = 60;
    if word.chars().count() <= LONGEST {
        return word.to_owned();
    }
    word.chars().take(LONGEST).chain(['…']).collect()
}

/// `user@host:port` in any of its spellings, of the box itself or of a jump host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    pub(super) user: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&named(self.user.as_deref(), &self.host, self.port))
    }
}

impl Destination {
    pub(super) fn parse(word: &str) -> Result<Self, TargetError> {
        if let Some(rest) = strip_scheme(word) {
            return Self::parse_uri(word, rest);
        }
        if word.contains("://") {
            return Err(bad_host(word, "only ssh:// addresses are understood"));
        }
        let (user, host) = match word.rsplit_once('@') {
            Some((user, host)) => (Some(check_user(user)?), host),
            None => (None, word),
        };
        let (host, port) = split_port(word, host)?;
        Ok(Self { user, host, port })
    }

    fn parse_uri(word: &str, rest: &str) -> Result<Self, TargetError> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let user = match user {
            Some(user) if user.contains(':') => {
                return Err(TargetError::BadUser {
                    token: shown(user.split(':').next().unwrap_or_default()),
                    why: "a password in an address is not supported, use keys",
                });
            }
            Some(user) => Some(check_user(user)?),
            None => None,
        };
        let (host, port) = split_port(word, host)?;
        Ok(Self { user, host, port })
    }
}

fn strip_scheme(word: &str) -> Option<&str> {
    const SCHEME: &str = "ssh://";
    let head = word.get(..SCHEME.len())?;
    head.eq_ignore_ascii_case(SCHEME).then(|| &word[SCHEME.len()..])
}

fn split_port(word: &str, text: &str) -> Result<(String, Option<u16>), TargetError> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Err(bad_host(word, "the bracket is never closed"));
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if rest.is_empty() => None,
            None => return Err(bad_host(word, "only `:port` can follow the bracket")),
        };
        return Ok((check_host(word, host)?, port));
    }
    match text.split_once(':') {
        None => Ok((check_host(word, text)?, None)),
        Some((host, rest)) if !rest.contains(':') => {
            if rest.is_empty() || rest.starts_with('/') {
                return Err(bad_host(word, "a port must follow the colon"));
            }
            Ok((check_host(word, host)?, Some(parse_port(rest)?)))
        }
        Some(_) => Ok((check_host(word, text)?, None)),
    }
}

/// A port number, without signs, spaces or leading zeros beyond its length.
pub(super) fn parse_port(text: &str) -> Result<u16, TargetError> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(TargetError::BadPort { token: shown(text) }),
    }
}

fn bad_host(token: &str, why: &'static str) -> TargetError {
    TargetError::BadHost { token: shown(token), why }
}

/// Characters that OpenSSH refuses in host names (ssh.c, `valid_hostname`, 9.6) and some that never occur in one.
const FORBIDDEN: &str = "'`\"$\\;&<>|(){}[]*?!#,/@=";

/// Checks a host, where an address with colons must be IPv6. `word` is what the message quotes.
pub(super) fn check_host(word: &str, host: &str) -> Result<String, TargetError> {
    let why = if host.is_empty() {
        "it is empty"
    } else if host.len() > 255 {
        "it is too long"
    } else if host.starts_with('-') {
        "it begins with a dash"
    } else if host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it has a space in it"
    } else if host.contains(|c| FORBIDDEN.contains(c)) {
        "it has a character in it that no host name has"
    } else if host.contains(':') && host.split('%').next().is_none_or(|ip| ip.parse::<Ipv6Addr>().is_err()) {
        "it has colons but is no IPv6 address"
    } else {
        return Ok(host.to_owned());
    };
    Err(bad_host(word, why))
}

/// Checks a user name the way OpenSSH does (ssh.c, `valid_ruser`, 9.6), and that it is no longer than any system allows.
pub(super) fn check_user(user: &str) -> Result<String, TargetError> {
    let why = if user.is_empty() {
        "it is empty"
    } else if user.len() > 255 {
        "it is too long"
    } else if user.starts_with('-') {
        "it begins with a dash"
    } else if user.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "it has a space in it"
    } else if user.contains(|c| "'`\";&<>|(){}\\".contains(c)) {
        "it has a character in it that no user name has"
    } else {
        return Ok(user.to_owned());
    };
    Err(TargetError::BadUser { token: shown(user), why })
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
