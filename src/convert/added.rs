//! Inputs that the front end itself gives to a few of ComfyUI's own nodes; their definitions do not tell of them.

use serde_json::json;

use super::{
    definition::NodeDefinition,
    loaded::Node,
    widgets::{Form, Widget},
};

/// The classes that show a model in three dimensions: the picture that the viewer takes is empty until somebody looks.
const VIEWERS: [&str; 2] = ["SaveGLB", "Preview3D"];

/// The list whose entries the user writes: its place and its entries are saved behind the choice.
const OWN_LIST: &str = "CustomCombo";

/// Adds them.
pub(super) fn to_core_node(node: &mut Node, class: &str, definition: &NodeDefinition) {
    if !definition.is_core {
        return;
    }
    let mut add = |name: String, value| node.widgets.push(Widget { name, value: Some(value), form: Form::default() });
    if VIEWERS.contains(&class) {
        add("image".to_owned(), json!(""));
    } else if class == OWN_LIST {
        for (at, value) in node.values.iter().enumerate().skip(1) {
            let name = if at == 1 { "index".to_owned() } else { format!("option{}", at - 1) };
            add(name, value.clone());
        }
    }
}
