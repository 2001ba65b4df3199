//! Workflows in UI format, and what ComfyUI's own front end makes of them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cases;
mod command;
mod graphs;
mod groups;
mod hostile;
mod packs;
mod rates;
mod refusals;
