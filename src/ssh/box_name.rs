//! Which box a connection string leads to, however it is written: what limits per box count by.
//!
//! The name is made of what the string and `~/.ssh/config` come to, so that aliases, users and ways of writing an address
//! make no second box of one. Names are not looked up: two names that lead to one address are two boxes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Target, route::Route};

/// Where sshd listens unless somebody has moved it.
const SSH_PORT: u16 = 22;

/// Ends of names that each network has for itself.
const LOCAL_ENDS: [&str; 8] = ["local", "localhost", "localdomain", "lan", "home", "internal", "intranet", "home.arpa"];

/// SSH host and port of a box, and the host before it where the name says something only there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BoxName {
    host: String,
    port: u16,
    behind: Option<Box<BoxName>>,
}

impl BoxName {
    /// By the string alone, where nothing more can be found out. One that can't be understood, as only an edited state
    /// file has, counts as a box of its own.
    #[must_use]
    pub fn unresolved(ssh_connection: &str) -> Self {
        match Target::parse(ssh_connection) {
            Ok(target) => Self::given(&target),
            Err(_) => Self { host: ssh_connection.to_owned(), port: SSH_PORT, behind: None },
        }
    }

    pub(super) fn given(target: &Target) -> Self {
        Self::new(target.host(), target.port().unwrap_or(SSH_PORT))
    }

    pub(super) fn of(route: &Route) -> Self {
        let hops = route.hops.iter().map(|hop| Self::new(&hop.host, hop.port));
        // A route is never empty.
        hops.reduce(Self::onward).unwrap_or_else(|| Self::new("", SSH_PORT))
    }

    fn new(host: &str, port: u16) -> Self {
        Self { host: one_spelling(host), port, behind: None }
    }

    /// The next host, as seen from this one.
    fn onward(self, next: Self) -> Self {
        if means_the_same_everywhere(&next.host) {
            return next;
        }
        let itself = is_loopback(&next.host) && (next.port == SSH_PORT || next.port == self.port);
        if itself { self } else { Self { behind: Some(Box::new(self)), ..next } }
    }
}

/// Equal for equal names only.
impl fmt::Display for BoxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)?;
        match &self.behind {
            Some(behind) => write!(f, " behind {behind}"),
            None => Ok(()),
        }
    }
}

/// A host in the one way of writing that all its others come to.
fn one_spelling(host: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host).to_lowercase();
    let bare = host.split('%').next().unwrap_or_default();
    let address = bare.parse::<IpAddr>().ok().or_else(|| old_spelling(&host).map(IpAddr::V4));
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) => Ipv4Addr::LOCALHOST.to_string(),
        Some(address) => address.to_string(),
        None if host == "localhost" => Ipv4Addr::LOCALHOST.to_string(),
        None => host,
    }
}

/// What resolvers take for an IPv4 address besides the usual spelling (inet_aton(3)): one to four numbers, the last of
/// which fills what is left, in decimal, octal or hex.
fn old_spelling(host: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let mut numbers = host.split('.').map(number).collect::<Option<Vec<u32>>>()?;
    let rest = numbers.pop().filter(|_| numbers.len() < 4)?;
    let left = 32 - 8 * u32::try_from(numbers.len()).ok()?;
    if numbers.iter().any(|one| *one > 255) || u64::from(rest) >= 1 << left {
        return None;
    }
    let begin = numbers.iter().zip([24, 16, 8]).fold(0, |sum, (one, shift)| sum | (one << shift));
    Some(Ipv4Addr::from_bits(begin | rest))
}

fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Not so: private addresses, and names without a domain or with one that each network has for itself.
fn means_the_same_everywhere(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            let [first, second, ..] = address.octets();
            let of_a_provider = first == 100 && (64..128).contains(&second);
            let own = address.is_private() || address.is_loopback() || address.is_link_local();
            !(own || of_a_provider || address.is_unspecified())
        }
        Ok(IpAddr::V6(address)) => {
            let own = address.is_unique_local() || address.is_unicast_link_local();
            !(own || address.is_loopback() || address.is_unspecified())
        }
        Err(_) => {
            let local = |end: &&str| host.strip_suffix(*end).is_some_and(|rest| rest.ends_with('.'));
            host.contains('.') && !LOCAL_ENDS.iter().any(local)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ssh::Options;

    const CONFIG: &str = "Host one\nHostName gpu.example\nHost two\nHostName GPU.Example.\nPort 22\nHost three\n\
                          HostName %h.example\nHost gate\nHostName gate.example\nHost inner\nHostName 10.0.0.5\n\
                          ProxyJump gate\n";

    fn name(ssh_connection: &str) -> BoxName {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, CONFIG).unwrap();
        let options = Options { config_file: Some(file), ..Options::default() };
        BoxName::of(&Route::resolve(&Target::parse(ssh_connection).unwrap(), &options).unwrap().0)
    }

    #[test]
    fn aliases_and_spellings_make_no_second_box() {
        for (same, other) in [
            ("ssh -p 22 root@GPU.example -i key", "me@gpu.example"),
            ("one", "gpu.example"),
            ("two", "one"),
            ("ssh -o HostName=gpu.example whatever", "gpu.example"),
            ("ssh -o HostName=%h.example gpu", "gpu.example"),
            ("gpu.example.", "gpu.example"),
            ("u@[2001:db8:0:0:0:0:0:1]:22", "u@[2001:db8::1]:22"),
            ("u@[::ffff:203.0.113.7]:22", "203.0.113.7"),
            ("0xcb.0.0161.07", "203.0.113.7"),
            ("203.28935", "203.0.113.7"),
            ("3405803783", "203.0.113.7"),
            ("localhost", "127.0.0.1"),
            ("ssh -J gate root@gpu.example", "gpu.example"),
            ("ssh -J gate root@203.0.113.7", "203.0.113.7"),
            ("ssh -J one root@localhost", "gpu.example"),
            ("ssh -J u@gpu.example:40738,u@127.0.0.1 root@127.0.0.1", "gpu.example:40738"),
            ("inner", "ssh -J u@GATE.example 10.0.0.5"),
        ] {
            assert_eq!(name(same), name(other), "{same} and {other}");
            assert_eq!(name(same).to_string(), name(other).to_string());
        }
    }

    #[test]
    fn other_boxes_are_others() {
        for (one, other) in [
            ("ssh -p 23 root@gpu.example", "gpu.example"),
            ("three", "one"),
            ("inner", "10.0.0.5"),
            ("inner", "ssh -J elsewhere.example 10.0.0.5"),
            ("ssh -J gate node7", "ssh -J elsewhere.example node7"),
            ("ssh -J gate node7.lan", "ssh -J elsewhere.example node7.lan"),
            ("ssh -J gate -p 2201 localhost", "ssh -J gate -p 2202 localhost"),
            ("203.0.113.7", "203.0.113.8"),
            ("1.2.3.4.5", "1.2.3.4"),
            ("256.1.2.3", "0.1.2.3"),
        ] {
            assert_ne!(name(one), name(other), "{one} and {other}");
            assert_ne!(name(one).to_string(), name(other).to_string());
        }
    }

    #[test]
    fn what_cannot_be_resolved_goes_by_the_string() {
        assert_eq!(BoxName::unresolved("ssh -p 22 root@GPU.example"), name("gpu.example"));
        assert_ne!(BoxName::unresolved("`what`"), BoxName::unresolved("`else`"));
    }
}
