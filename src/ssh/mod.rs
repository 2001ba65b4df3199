//! Everything about reaching a box over SSH, and nothing about what runs there.
//!
//! [`Target::parse`] understands what people paste (`ssh -p 40738 root@198.53.64.194`), purely and without I/O.
//! [`Pool::connect`] turns it into a [`Session`]: workflows that go to the same place share one SSH connection for
//! HTTP and websockets and a second one for files, however many workflows there are. From a session come a [`Tunnel`]
//! (ComfyUI's port behind a socket that only this user can reach) and a [`Transfer`] (files over SFTP).
//!
//! Guarantees: host keys are always judged before a key of ours is offered; every wait has a deadline; a connection
//! that died is noticed and replaced by the next call. Deliberately absent: agent forwarding, passwords, any knowledge of
//! ComfyUI, and commands on the box, but for a constant one that computes a checksum where the box allows it.
//!
//! Read in this order: `target`, `pool`, `session`, `tunnel`, `transfer`; below them `route` (what `~/.ssh/config` adds),
//! `box_name` (which box that is), `connection` (one SSH connection), `auth`, `known_hosts`, `pin`, `channel` and `checksum`.

mod allowed_hosts;
mod auth;
mod box_name;
mod channel;
mod checksum;
mod command;
mod config_file;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keys;
mod known_hosts;
mod named_file;
mod pattern;
mod peer;
mod pin;
mod pool;
mod quickack;
mod route;
mod session;
mod settings;
mod sftp;
mod socket_folder;
mod step;
mod target;
mod transfer;
mod transfer_error;
mod tunnel;
mod wire;
mod words;

use std::{path::PathBuf, time::Duration};

pub use allowed_hosts::AllowedHosts;
pub use box_name::BoxName;
pub use error::{SshError, SshErrorKind, Unreachable};
pub use pool::{Hold, Pool};
pub use session::Session;
pub use target::{Target, TargetError};
pub use transfer::{Stat, Transfer};
pub use transfer_error::TransferError;
pub use tunnel::{Tunnel, TunnelStream};

use crate::files::Roots;

/// How this program connects, for everything that the connection string and `~/.ssh/config` leave open.
///
/// A leading `~/` in a path means the home folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where host keys are remembered, in OpenSSH's format. Created on first use, readable by its owner only.
    pub known_hosts: PathBuf,
    /// What to do with a host key that is not on record.
    pub host_keys: HostKeyPolicy,
    /// Private keys to try for every box, after those of the connection string and of `~/.ssh/config`.
    pub identity_files: Vec<PathBuf>,
    /// Whether to ask the agent behind `SSH_AUTH_SOCK` for keys. The agent itself is never forwarded.
    pub use_agent: bool,
    /// A file whose first line unlocks encrypted private keys.
    pub passphrase_file: Option<PathBuf>,
    /// Limit for one attempt on one host: TCP, handshake and authentication together.
    pub connect_timeout: Duration,
    /// How often a box that refuses, stays silent or has no address is tried before that is final. At least 1.
    pub connect_attempts: u32,
    /// After this much silence the box is asked whether it is still there; after the third question without an answer
    /// the connection counts as lost.
    pub keepalive: Duration,
    /// The configuration file to read instead of `~/.ssh/config`.
    pub config_file: Option<PathBuf>,
    /// The hosts that may be connected to, jump hosts included; `None` allows all.
    pub allowed_hosts: Option<AllowedHosts>,
    /// Where files that a connection string names must lie.
    pub read_roots: Roots,
    /// Where a record of host keys that a connection string names must lie as well, since new keys are written there.
    pub write_roots: Roots,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            known_hosts: PathBuf::from("~/.ssh/known_hosts"),
            host_keys: HostKeyPolicy::AcceptNew,
            identity_files: Vec::new(),
            use_agent: true,
            passphrase_file: None,
            connect_timeout: Duration::from_secs(10),
            connect_attempts: 3,
            keepalive: Duration::from_secs(15),
            config_file: None,
            allowed_hosts: None,
            read_roots: Roots::anywhere(),
            write_roots: Roots::anywhere(),
        }
    }
}

/// What to do with a host key that is not on record. A key that *contradicts* the record is refused by the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostKeyPolicy {
    /// Remember the first key a host shows, and insist on it from then on.
    AcceptNew,
    /// Refuse hosts that are not on record.
    Strict,
    /// Accept anything and remember nothing: whoever sits between us and the box can read and change everything.
    Off,
}
