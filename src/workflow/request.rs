//! What was asked for, after every check that needs no box.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An accepted request: every default filled in, every path absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The connection string as it was given.
    pub ssh_connection: String,
    /// The workflow file as it was given; the graph itself is kept apart.
    pub workflow_file: String,
    /// For people.
    pub workflow_name: String,
    /// Pictures (or other files) to bring to the box.
    pub input_images: Vec<PathBuf>,
    /// Where outputs land here.
    pub output_dir: PathBuf,
    /// ComfyUI's port on the box's loopback.
    pub comfyui_port: u16,
    /// ComfyUI's input folder on the box.
    pub comfyui_input_dir: String,
    /// ComfyUI's output folder on the box.
    pub comfyui_output_dir: String,
}

/// A request that must not be carried out twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The caller's name for it.
    pub key: String,
    /// SHA-256 of what was asked for, in hex digits: the same name with another request is a mistake.
    pub fingerprint: String,
    /// Why the tunnel failed while the caller waited: the answer was an error then.
    pub tunnel_error: Option<String>,
}
