//! KJNodes' pair of a node that gives a link a name and nodes that take the link up by that name; Easy-Use has the same.

use serde_json::Value;

use super::Virtual;
use crate::convert::ui::Node;

const SETTERS: [&str; 2] = ["SetNode", "easy setNode"];
const GETTERS: [&str; 2] = ["GetNode", "easy getNode"];

/// What a node of these does.
pub(super) fn of(node: &Node) -> Option<Virtual> {
    // The name is the only value of either.
    let name = || node.listed_values().first().and_then(Value::as_str).unwrap_or_default().to_owned();
    if SETTERS.contains(&node.class.as_str()) {
        Some(Virtual::Set(name()))
    } else if GETTERS.contains(&node.class.as_str()) {
        Some(Virtual::Get(name()))
    } else {
        None
    }
}
