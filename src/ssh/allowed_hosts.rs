//! The hosts that keys of this machine may be used on, if the operator names them.

use std::net::IpAddr;

use serde::Deserialize;

use super::{pattern, target::parse_port};

/// Patterns `[user@]host[:port]`, with `*` and `?` as in OpenSSH's `Host` lines, `!` before one that excludes, and
/// brackets around an IPv6 address. What a pattern leaves out may be anything.
///
/// They are compared with the host that is connected to, so after `HostName` of `~/.ssh/config` and before its address
/// is looked up. A pattern of digits covers addresses only, and what a resolver would read as an address in another way of
/// writing is never allowed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct AllowedHosts(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    excludes: bool,
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl AllowedHosts {
    /// Whether one pattern covers the host and none excludes it.
    pub(super) fn allow(&self, user: &str, host: &str, port: u16) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_lowercase();
        let address = host.split('%').next().and_then(|bare| bare.parse::<IpAddr>().ok());
        if address.is_none() && is_number(&host) {
            return false;
        }
        let host = address.map_or(host, |address| address.to_canonical().to_string());
        let covers = |one: &&Pattern| {
            one.user.as_ref().is_none_or(|pattern| pattern::matches(pattern, user))
                && pattern::matches(&one.host, &host)
                && (address.is_some() || !one.is_about_addresses())
                && one.port.is_none_or(|wanted| wanted == port)
        };
        let mut covering = self.0.iter().filter(covers).peekable();
        covering.peek().is_some() && covering.all(|one| !one.excludes)
    }
}

/// Whether a resolver takes a name for an address, as it does with `127.0.0.0x42`: its last part is a number.
fn is_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

impl TryFrom<Vec<String>> for AllowedHosts {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        texts.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>().map(Self)
    }
}

impl Pattern {
    /// `10.0.*` is, and so covers no name that begins like that: anybody can have `10.0.evil.example`.
    fn is_about_addresses(&self) -> bool {
        let plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | '*' | '?');
        self.host.contains(|c: char| c.is_ascii_digit()) && self.host.chars().all(plain)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no pattern like *.example.net, root@10.0.0.?:22 or [::1]:22");
        let (excludes, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user.to_owned()), rest));
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            None => match rest.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (rest, None),
            },
        };
        let port = port.map(parse_port).transpose().map_err(|_| wrong())?;
        if host.is_empty() || host.contains(char::is_whitespace) || user.as_deref() == Some("") {
            return Err(wrong());
        }
        Ok(Self { excludes, user, host: host.to_lowercase(), port })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_allowed_by_a_pattern_and_excluded_by_another() {
        let allow = |patterns: &[&str], user: &str, host: &str, port| {
            let texts: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
            AllowedHosts::try_from(texts).unwrap().allow(user, host, port)
        };
        assert!(allow(&["*.vast.ai"], "root", "SSH4.vast.ai", 40738) && allow(&["a.b"], "root", "A.b.", 22));
        for other in ["127.0.0.66", "127.0.0.0x42", "127.0.0.0102", "127.66", "2130706498", "::ffff:127.0.0.66"] {
            assert!(!allow(&["127.0.0.*", "!127.0.0.66", "*"], "root", other, 22), "{other}");
        }
        assert!(allow(&["10.*"], "root", "10.1.2.3", 22) && !allow(&["10.*"], "root", "10.evil.example", 22));
        assert!(allow(&["[::1]"], "root", "0:0:0:0:0:0:0:1", 22) && allow(&["4*.example"], "root", "42.example", 22));
        assert!(!allow(&["*.vast.ai"], "root", "vast.ai.evil.net", 22));
        assert!(!allow(&["*.vast.ai", "!bad.*"], "root", "bad.vast.ai", 22));
        assert!(!allow(&["!bad"], "root", "good", 22), "an exclusion alone allows nothing");
        assert!(!allow(&[], "root", "box", 22));
        assert!(allow(&["root@10.0.0.?:22"], "root", "10.0.0.7", 22));
        assert!(!allow(&["root@10.0.0.?:22"], "root", "10.0.0.7", 23));
        assert!(!allow(&["root@10.0.0.?:22"], "other", "10.0.0.7", 22));
        assert!(allow(&["[fe80::*]:22", "::1"], "root", "fe80::1", 22) && allow(&["::1"], "root", "::1", 9));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "!", "@box", "box:", "box:0", "box:x", "a b", "[::1]x", "user@"] {
            assert!(AllowedHosts::try_from(vec![text.to_owned()]).is_err(), "{text:?}");
        }
    }
}
