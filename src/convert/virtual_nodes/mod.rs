//! Nodes that live in the browser only: they carry links and values, or nothing at all, and are never in a prompt.

use super::ui::Node;

/// What a node of the browser does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Virtual {
    /// Nothing: a note, a label, a switchboard whose doings are already in the file.
    Decoration,
    /// Hands on what comes into its first input.
    Reroute,
    /// Puts its value into the widgets that it is linked to.
    Primitive,
}

impl Virtual {
    /// What a node of that class does, if it is one of these.
    pub(super) fn of(node: &Node) -> Option<Self> {
        Some(match node.class.as_str() {
            "Note" | "MarkdownNote" => Self::Decoration,
            "Reroute" => Self::Reroute,
            "PrimitiveNode" => Self::Primitive,
            _ => return None,
        })
    }
}
