//! Workflows in UI format, and what ComfyUI's own front end makes of them.

mod cases;
mod graphs;
mod hostile;
mod packs;
mod rates;
mod refusals;
