//! Inputs that a front end gives to a few nodes; their definitions do not tell of them.

use serde_json::{Value, json};

use super::{
    definition::NodeDefinition,
    loaded::Node,
    widgets::{Form, Widget},
};

/// ComfyUI's classes that show a model in three dimensions: the picture is empty until somebody has looked.
const VIEWERS: [&str; 2] = ["SaveGLB", "Preview3D"];

/// ComfyUI's list whose entries the user writes: its place and its entries are saved behind the choice.
const OWN_LIST: &str = "CustomCombo";

/// rgthree's loader of any number of LoRAs: each is saved as an object, among others that are for the eye.
const POWER_LORAS: &str = "Power Lora Loader (rgthree)";

/// Adds them.
pub(super) fn add(node: &mut Node, definition: &NodeDefinition) {
    let added: Vec<(String, Value)> = match node.class.as_str() {
        class if definition.is_core && VIEWERS.contains(&class) => vec![("image".to_owned(), json!(""))],
        OWN_LIST if definition.is_core => {
            let name = |at| if at == 0 { "index".to_owned() } else { format!("option{at}") };
            node.values.iter().skip(1).enumerate().map(|(at, value)| (name(at), value.clone())).collect()
        }
        POWER_LORAS => {
            node.extra_values = 0;
            let loras = node.values.iter().filter(|value| value.get("lora").is_some());
            loras.enumerate().map(|(at, value)| (format!("lora_{}", at + 1), value.clone())).collect()
        }
        _ => return,
    };
    let widget = |(name, value)| Widget { name, value: Some(value), form: Form::default(), randomized: false };
    node.widgets.extend(added.into_iter().map(widget));
}
