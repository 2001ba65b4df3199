//! What can go wrong on the way to a box, worded so that it reads well behind `Failed to create SSH tunnel: `.
//!
//! Callers look at [`SshError::kind`] to choose a code and at [`SshError::is_transient`] to decide whether another try
//! makes sense; the message is for people. Errors are cheap to clone because several callers that wait for the same
//! connection all receive the same one. Errors about files on the box are [`super::TransferError`].

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;

/// Why a box could not be reached, or why what was asked of it failed.
#[derive(Debug, Clone, Error)]
pub enum SshError {
    /// There is nobody at that address, at least not now.
    #[error("{}", unreachable_text(address, cause, source))]
    Unreachable {
        /// `host:port`.
        address: String,
        /// In which way it failed.
        cause: Unreachable,
        /// What the operating system said, where it said something.
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// Somebody answered, but the two sides have no protocol or algorithm in common.
    #[error("the SSH handshake with {address} failed: {source}")]
    Handshake {
        /// `host:port`.
        address: String,
        /// What the SSH library found.
        #[source]
        source: Arc<russh::Error>,
    },
    /// The box accepted none of our keys.
    #[error("{}", auth_text(user, address, tried, accepts, *cut_off))]
    AuthFailed {
        /// The user name we gave.
        user: String,
        /// `host:port`.
        address: String,
        /// One text per key: where it comes from, its fingerprint, and what happened if it was not simply refused.
        tried: Vec<String>,
        /// The methods the box would accept.
        accepts: Vec<String>,
        /// The box hung up before all keys were tried.
        cut_off: bool,
    },
    /// The box shows another key than the one on record.
    #[error(
        "the host key of {host} has changed: {} line {line} has {old}, the box shows {new}; \
         if the box was really replaced, run: ssh-keygen -R '{host}' -f '{}'", file.display(), file.display()
    )]
    HostKeyChanged {
        /// The name under which the key is on record, `host` or `[host]:port`.
        host: String,
        /// The file that has the old key.
        file: PathBuf,
        /// Its line there, counted from 1.
        line: usize,
        /// Type and SHA-256 fingerprint of the key on record.
        old: String,
        /// Type and SHA-256 fingerprint of the key shown.
        new: String,
    },
    /// The box shows another key than to the connections before, and none is on record.
    #[error(
        "the host key of {host} has changed: the connections before found {old}, the box shows {new}; if the box was really \
         replaced, start the workflow again once this run has been over for two minutes"
    )]
    HostKeyExchanged {
        /// The name under which the key would be on record, `host` or `[host]:port`.
        host: String,
        /// Type and SHA-256 fingerprint of the key shown first.
        old: String,
        /// Type and SHA-256 fingerprint of the key shown.
        new: String,
    },
    /// The box's key is not on record, and only known boxes are accepted.
    #[error(
        "the host key of {host} is not on record, and only known hosts are accepted; if {fingerprint} is the right one, \
         add this line to {}: {entry}", file.display()
    )]
    HostKeyUnknown {
        /// The name under which the key would be on record, `host` or `[host]:port`.
        host: String,
        /// Type and SHA-256 fingerprint of the key shown.
        fingerprint: String,
        /// The file that was searched first.
        file: PathBuf,
        /// The line that would accept this key.
        entry: String,
    },
    /// The box shows a key that is marked `@revoked`.
    #[error("the host key of {host} ({fingerprint}) is marked as revoked in {} line {line}", file.display())]
    HostKeyRevoked {
        /// The name that was looked up.
        host: String,
        /// Type and SHA-256 fingerprint of the key shown.
        fingerprint: String,
        /// The file that says so.
        file: PathBuf,
        /// Its line there, counted from 1.
        line: usize,
    },
    /// The record of host keys cannot be read, and only known boxes are accepted.
    #[error("the host keys on record in {} could not be read: {source}", file.display())]
    KnownHosts {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The operator allows other hosts only.
    #[error("{destination} does not lead to a host that [ssh] allowed_hosts allows")]
    HostRefused {
        /// The box or the jump host as the connection string has it, not what `~/.ssh/config` makes of it.
        destination: String,
    },
    /// The connection string names a file outside of the folders for such files.
    #[error("{} does not lie in a folder of [files] {keys}", path.display())]
    FileRefused {
        /// The file.
        path: PathBuf,
        /// The settings that name the folders.
        keys: &'static str,
    },
    /// The box allows logins but no port forwarding.
    #[error("{address} refuses to forward ports; set AllowTcpForwarding yes in its sshd_config")]
    ForwardingRefused {
        /// `host:port` of the SSH server.
        address: String,
    },
    /// Nothing listens on a port of the box. Only [`super::Tunnel::open`] says this.
    #[error("nothing listens on port {port} of {address}; is ComfyUI running?")]
    PortClosed {
        /// `host:port` of the SSH server.
        address: String,
        /// The port on the box's loopback.
        port: u16,
    },
    /// The box has no usable SFTP server.
    #[error("{address} offers no SFTP ({reason}); add this line to its sshd_config: Subsystem sftp internal-sftp")]
    SftpMissing {
        /// `host:port` of the SSH server.
        address: String,
        /// What happened when it was asked for.
        reason: String,
    },
    /// The box has an SFTP server that does not speak SFTP.
    #[error(
        "{address} begins SFTP with something else, or ends it at once; is the program there that `Subsystem sftp` in its \
         sshd_config names, and does no start-up file of the shell (such as .bashrc) print text?"
    )]
    SftpBroken {
        /// `host:port` of the SSH server.
        address: String,
    },
    /// A connection that stood is gone.
    #[error("the connection to {address} was lost: {reason}")]
    ConnectionLost {
        /// `host:port`.
        address: String,
        /// What is known about it.
        reason: String,
    },
    /// The box is there but did not do one thing in time.
    #[error("{address} did not answer within {} s: {what}", seconds(*after))]
    TimedOut {
        /// `host:port`.
        address: String,
        /// What we waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// One of the hosts on the way failed.
    #[error("on the way through the jump host {hop}: {source}")]
    Jump {
        /// `host:port` of that hop.
        hop: String,
        /// What failed there.
        #[source]
        source: Box<SshError>,
    },
    /// The configuration of this program, or of SSH, cannot be used.
    #[error("{message}")]
    Config {
        /// Which part of it, and why.
        message: String,
    },
    /// Something on this machine failed.
    #[error("{what}: {source}")]
    Local {
        /// What we tried to do.
        what: String,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The pool is closed because the program stops.
    #[error("the SSH connections are being closed because the service stops")]
    Closed,
}

/// In which way a box could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// The machine is there, the port is not.
    Refused,
    /// Nobody answered.
    TimedOut {
        /// The limit that was exceeded.
        after: Duration,
    },
    /// The name has no address.
    UnknownHost,
    /// The network has no way there.
    NoRoute,
    /// The connection was closed before the SSH handshake was through. OpenSSH does this when too many connect at once
    /// (`MaxStartups`).
    Dropped,
    /// Anything else the operating system reports.
    Other,
}

/// The part of the world an error belongs to; coarser than the variants, made for choosing a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshErrorKind {
    /// No key was accepted.
    Auth,
    /// The host key is unknown, changed, revoked or cannot be checked.
    HostKey,
    /// Nobody is there, or is there no longer.
    Unreachable,
    /// Port forwarding is forbidden on the box.
    ForwardingRefused,
    /// The forward stands, but nothing listens behind it.
    PortClosed,
    /// No SFTP on the box, or none that works.
    SftpMissing,
    /// The host is none of those that are allowed.
    HostRefused,
    /// A file that was named must not be used.
    FileRefused,
    /// Options or configuration files.
    Config,
    /// This machine: files, sockets, shutdown.
    Local,
}

impl SshError {
    /// The part of the world this belongs to. A failing jump host counts as what failed there.
    #[must_use]
    pub fn kind(&self) -> SshErrorKind {
        match self {
            Self::AuthFailed { .. } => SshErrorKind::Auth,
            Self::HostKeyChanged { .. }
            | Self::HostKeyExchanged { .. }
            | Self::HostKeyUnknown { .. }
            | Self::HostKeyRevoked { .. }
            | Self::KnownHosts { .. } => SshErrorKind::HostKey,
            Self::Unreachable { .. } | Self::Handshake { .. } | Self::ConnectionLost { .. } | Self::TimedOut { .. } => {
                SshErrorKind::Unreachable
            }
            Self::HostRefused { .. } => SshErrorKind::HostRefused,
            Self::FileRefused { .. } => SshErrorKind::FileRefused,
            Self::ForwardingRefused { .. } => SshErrorKind::ForwardingRefused,
            Self::PortClosed { .. } => SshErrorKind::PortClosed,
            Self::SftpMissing { .. } | Self::SftpBroken { .. } => SshErrorKind::SftpMissing,
            Self::Jump { source, .. } => source.kind(),
            Self::Config { .. } => SshErrorKind::Config,
            Self::Local { .. } | Self::Closed => SshErrorKind::Local,
        }
    }

    /// Whether the same attempt may succeed later without anybody changing anything but the box's being up.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::TimedOut { .. }
            | Self::PortClosed { .. } => true,
            Self::Jump { source, .. } => source.is_transient(),
            Self::Handshake { .. }
            | Self::AuthFailed { .. }
            | Self::HostKeyChanged { .. }
            | Self::HostKeyExchanged { .. }
            | Self::HostKeyUnknown { .. }
            | Self::HostKeyRevoked { .. }
            | Self::KnownHosts { .. }
            | Self::HostRefused { .. }
            | Self::FileRefused { .. }
            | Self::ForwardingRefused { .. }
            | Self::SftpMissing { .. }
            | Self::SftpBroken { .. }
            | Self::Config { .. }
            | Self::Local { .. }
            | Self::Closed => false,
        }
    }

    /// Whether the tunnel works and merely nothing listens at its far end.
    #[must_use]
    pub fn is_port_closed(&self) -> bool {
        matches!(self, Self::PortClosed { .. })
    }
}

/// Whole seconds, rounded up.
fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().ceil()
}

fn unreachable_text(address: &str, cause: &Unreachable, source: &Option<Arc<io::Error>>) -> String {
    let detail = source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
    match cause {
        Unreachable::Refused => format!("connection refused by {address}; is the instance running?"),
        Unreachable::TimedOut { after } => format!(
            "no answer from {address} within {} s; is the instance running, and is the port right?",
            seconds(*after)
        ),
        Unreachable::UnknownHost => format!("no address found for {address}{detail}; is the host name right?"),
        Unreachable::NoRoute => format!("no way to {address}{detail}"),
        Unreachable::Dropped => format!(
            "{address} closed the connection before the SSH handshake was through; is that the port of an SSH server?"
        ),
        Unreachable::Other => format!("could not connect to {address}{detail}"),
    }
}

fn auth_text(user: &str, address: &str, tried: &[String], accepts: &[String], cut_off: bool) -> String {
    let mut text = format!("{user}@{address} refused to let us in");
    if tried.is_empty() {
        text.push_str("; there was no key to try: name one with -i, in identity_files, or add it to the SSH agent");
    } else {
        text.push_str("; tried: ");
        text.push_str(&tried.join(", "));
        text.push_str("; add the public key of one of them to the instance");
    }
    if cut_off {
        text.push_str("; the box hung up before all keys were tried: name the right one with -i");
    }
    if !accepts.is_empty() {
        text.push_str("; it accepts: ");
        text.push_str(&accepts.join(", "));
    }
    text
}
