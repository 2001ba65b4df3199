//! The nodes of rgthree-comfy that live in the browser only.

use super::Virtual;

/// Switchboards for the modes of other nodes, which the file already has, and things to read or to click.
const DECORATIONS: [&str; 10] = [
    "Fast Muter (rgthree)",
    "Fast Bypasser (rgthree)",
    "Fast Groups Muter (rgthree)",
    "Fast Groups Bypasser (rgthree)",
    "Mute / Bypass Relay (rgthree)",
    "Mute / Bypass Repeater (rgthree)",
    "Node Collector (rgthree)",
    "Fast Actions Button (rgthree)",
    "Bookmark (rgthree)",
    "Label (rgthree)",
];

/// What a node of such a class does.
pub(super) fn of(class: &str) -> Option<Virtual> {
    match class {
        "Reroute (rgthree)" => Some(Virtual::Reroute),
        // It chooses anew which nodes run, each time the prompt is sent.
        "Random Unmuter (rgthree)" => Some(Virtual::Unsupported),
        class => DECORATIONS.contains(&class).then_some(Virtual::Decoration),
    }
}
