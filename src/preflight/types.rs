//! Whether an output may be linked to an input.

use crate::workflow::{Editor, InputDefinition, InputKind, NodeDefinition};

/// Whether ComfyUI's own comparison of types refuses the link (`comfy_execution/validation.py`). Types that stand for
/// any, or for a list of choices, compare in ways that `/object_info` does not show.
pub(super) fn is_mismatch(received: &str, input: &InputDefinition) -> bool {
    if is_open(received) {
        return false;
    }
    if input.is_listed && matches!(input.kind, InputKind::Widget(Editor::Combo)) {
        // A list is compared with a text.
        return true;
    }
    let wanted = &input.type_name;
    if is_open(wanted) {
        return false;
    }
    let types = |text: &str| text.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>();
    let (received, wanted) = (types(received), types(wanted));
    !received.iter().any(|one| wanted.contains(one))
}

/// Takes or gives more than its name tells.
fn is_open(name: &str) -> bool {
    name.split(',')
        .map(str::trim)
        .any(|one| one.is_empty() || one == "*" || one == "COMBO" || one.starts_with("COMFY_"))
}

/// Classes of ComfyUI's own whose values are looked at by the node itself (v0.3.75 to the development version of autumn
/// 2026).
const VALIDATING: [&str; 12] = [
    "CustomCombo",
    "Load3D",
    "Load3DAdvanced",
    "Load3DAnimation",
    "LoadAudio",
    "LoadImage",
    "LoadImageMask",
    "LoadImageOutput",
    "LoadLatent",
    "LoadVideo",
    "RecordAudio",
    "SoftSwitchNode",
];

/// Whether the node may look at its values itself, and then allow more than its definition does. Nobody can tell of a
/// node that comes from a pack.
pub(super) fn may_validate(class: &str, definition: &NodeDefinition) -> bool {
    !definition.is_surely_core
        || definition.is_api_node
        || VALIDATING.contains(&class)
        || definition.inputs.iter().any(|input| input.is_upload)
}
