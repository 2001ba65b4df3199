//! Nodes that live in the browser only: they carry links and values, or nothing at all, and are never in a prompt.
//!
//! Those of ComfyUI's front end stand here; those of packs in files of their own.

mod kjnodes;
mod rgthree;
pub(super) mod use_everywhere;

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
    /// Hands on what comes into its first input, here and to all that take it by this name.
    Set(String),
    /// Takes what another node hands on by this name.
    Get(String),
    /// Does its work when the prompt is sent, in a way that is not rebuilt here.
    Unsupported,
}

impl Virtual {
    /// What a node does that no definition tells of, if its class is known for it.
    pub(super) fn of(node: &Node) -> Option<Self> {
        Some(match node.class.as_str() {
            "Note" | "MarkdownNote" => Self::Decoration,
            "Reroute" => Self::Reroute,
            "PrimitiveNode" => Self::Primitive,
            class => {
                let of_pack = kjnodes::of(node).or_else(|| rgthree::of(class));
                of_pack.or_else(|| use_everywhere::is_sink(class).then_some(Self::Decoration))?
            }
        })
    }
}
