//! Attacks, and what must hold against them. docs/SECURITY.md says which test belongs to which threat.

mod browser;
mod clients;
mod crowd;
mod hostile_box;
mod hostile_names;
mod hostile_sftp;
mod hostile_socket;
mod hostile_ssh;
mod impostor;
mod network;
mod random_requests;
mod rogue;
mod siege;
