//! Workflows in UI format, and what ComfyUI's own front end makes of them.

mod cases;
mod rates;
