//! Attacks, and what must hold against them. docs/SECURITY.md says which test belongs to which threat.

mod browser;
mod clients;
mod crowd;
mod network;
mod random_requests;
