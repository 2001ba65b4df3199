//! The domain: what a workflow is and what can happen to it.
//!
//! No I/O, no clock, no logging, no async; but for fresh ids, everything is a function of its arguments. The
//! ports ([`ssh`](crate::ssh), [`comfy`](crate::comfy), [`store`](crate::store)) and the
//! [`runner`](crate::runner) build on it; it knows none of them.

pub mod caller;
pub mod connection;
pub mod definition;
pub mod edits;
pub mod event;
pub mod failure;
pub mod finding;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod graph;
pub mod id;
pub mod inputs;
pub mod node;
pub mod output;
mod own_classes;
pub mod request;
pub mod secrets;
pub mod source;
pub mod state;

pub use caller::Caller;
pub use connection::{Connection, ConnectionState};
pub use definition::{Editor, InputDefinition, InputKind, NodeDefinition, NodeDefinitions, OneClass};
pub use edits::Edits;
pub use event::{BoxEvent, Event, Stored};
pub use failure::{ErrorCode, ErrorDetail, Failure};
pub use finding::{Code as FindingCode, Finding, Severity};
pub use graph::{Graph, GraphError, Node};
pub use id::{ClientId, NodeId, PromptId, ServerMark, WorkflowId};
pub use node::{NodeState, NodeStatus};
pub use output::{FileType, Folder, NodeOutput, Output, RemoteFile};
pub use request::{Idempotency, Request};
pub use secrets::Secrets;
pub use source::{Document, Source, WorkflowFormat};
pub use state::{Lifecycle, Phase, Status, Submission, WorkflowState};
