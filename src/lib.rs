//! Runs ComfyUI workflows on rented GPU machines over SSH, and never loses one.
pub mod json;
pub mod store;
pub mod workflow;
