//! Runs ComfyUI workflows on rented GPU machines over SSH, and never loses one.
//!
//! # The map
//!
//! ```text
//!  main, app, demo        flags, configuration, assemble, serve, stop
//!        │
//!  http                   routes, views, errors -> status
//!        │
//!  runner                 one task per active workflow; runner/execution.rs tells the story of a run
//!    │      │      │
//!  ssh    comfy  store    ports: reaching a box, speaking ComfyUI's protocol, keeping the state
//!    └──────┴──────┘
//!  workflow               the domain: no I/O, no clock, no logging
//!  convert                workflows as ComfyUI saves them -> prompts: no I/O, no clock
//!  preflight              what a box would refuse of a prompt: no I/O, no clock
//!  files                  local files by paths that others choose
//!  json, text, home       small things that several parts need
//!  fuzz                   what a fuzzer feeds; in tests and for the fuzzer only
//!
//!  sandbox                both far ends in miniature; shares no code with the rest
//! ```
//!
//! To know the code, read [`workflow::state`], then `runner/execution.rs`, then [`http`].
//!
//! What is deliberately absent: `ssh`, `comfy` and `store` do not know one another; `workflow` knows none of them;
//! `runner` knows no HTTP server; `sandbox` imports nothing of the above. A test reads the imports and checks this.

pub mod app;
pub mod comfy;
pub mod config;
pub mod convert;
#[cfg(feature = "sandbox")]
pub mod demo;
pub mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod home;
pub mod http;
mod json;
pub mod preflight;
pub mod runner;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod ssh;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod workflow;
