//! The one integration binary: the built service against real far ends.
//!
//! `stories` are told on every far end: the sandbox, a real OpenSSH server in front of the sandbox's engine, and a real
//! OpenSSH server in front of a real ComfyUI. The other files look at one part each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod check;
mod clients;
mod comfy_client;
mod crashes;
mod docs;
mod downloads;
mod far_end;
mod faults;
mod graphs;
mod layers;
mod line;
mod long_life;
mod loopback;
mod memory;
mod odd_boxes;
mod once;
mod openssh;
mod phases;
mod preflight;
mod preflight_table;
mod repeats;
mod sandbox_stage;
mod security;
mod start;
mod state_disk;
mod state_fixtures;
mod state_touched;
mod stories;
mod stuck;
mod support;
mod ui_files;
