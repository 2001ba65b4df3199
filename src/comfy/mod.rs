//! The port to ComfyUI: everything about speaking its protocol, and nothing about how it is reached.
//!
//! [`Client`] makes the HTTP calls over a unix socket, [`Socket`] speaks the websocket over any stream. The runner
//! drives both: it submits, listens to the socket, and lets queue and history have the last word, since ComfyUI drops
//! messages that nobody is there to receive.
//!
//! What comes from the wire is untrusted: every answer is bounded, every wait has a deadline, shapes are picked apart
//! leniently, and what a proxy says in ComfyUI's place is recognised. The parsers ([`Decoder`], [`Queue`],
//! [`HistoryEntry`], the outputs) are pure and tested against recordings of real servers.
//!
//! What is deliberately absent: decisions. When to look, to retry, to interrupt is the runner's business.

mod answer;
mod cancel;
mod client;
mod definitions;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod history;
mod message;
mod node_failure;
mod outputs;
mod probe;
mod queue;
mod refusal;
mod room;
mod server_mark;
mod socket;
mod submit;
mod tolerant;
#[cfg(test)]
mod traces;
mod upload;

pub use client::Client;
pub use error::ComfyError;
pub use files::{Download, Viewed};
pub use history::{HistoryEntry, Outcome};
pub use message::{Binary, Decoded, Decoder};
pub use node_failure::NodeFailure;
pub use probe::ServerInfo;
pub use queue::{Entry, Marker, Place, Queue};
pub use refusal::{Finding, Findings, Refusal};
#[cfg(test)]
pub(crate) use socket::tests::told;
pub use socket::{Socket, SocketError, SocketMessage};
pub use submit::{SubmitError, Submitted};
