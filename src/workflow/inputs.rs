//! Input files: the names they get on the box, and the graph's references to them.

use serde_json::Value;

use super::graph::Graph;

/// The name for content that may not use its own name because other content has it:
/// `<stem>_<first 8 hex digits of the SHA-256>.<extension>`.
pub fn name_for_content(name: &str, sha256: &[u8; 32]) -> String {
    let digits = hex::encode(&sha256[..4]);
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!("{stem}_{digits}.{extension}"),
        _ => format!("{name}_{digits}"),
    }
}

impl Graph {
    /// Makes every reference to the input file `name` point to `new_name`, and says how many there were.
    ///
    /// A reference is an input's whole text, also with ` [input]` behind it, where `is_file(class, input)` says
    /// that this input takes a file. `None` from it means that the class is unknown; then classes named `Load…` count.
    pub fn rename_input(&mut self, name: &str, new_name: &str, is_file: impl Fn(&str, &str) -> Option<bool>) -> usize {
        let annotated = format!("{name} [input]");
        let mut renamed = 0;
        for node in self.nodes_mut() {
            let class = node.class_type().to_owned();
            for (input, value) in node.inputs_mut() {
                let Value::String(text) = value else { continue };
                if *text != name && *text != annotated {
                    continue;
                }
                if is_file(&class, input).unwrap_or_else(|| class.starts_with("Load")) {
                    *text = text.replacen(name, new_name, 1);
                    renamed += 1;
                }
            }
        }
        renamed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_stand_before_the_extension() {
        let sha = [0xde, 0xad, 0xbe, 0xef].repeat(8).try_into().unwrap();
        assert_eq!(name_for_content("photo.png", &sha), "photo_deadbeef.png");
        assert_eq!(name_for_content("a.b.tar.gz", &sha), "a.b.tar_deadbeef.gz");
        assert_eq!(name_for_content("photo", &sha), "photo_deadbeef");
        assert_eq!(name_for_content(".hidden", &sha), ".hidden_deadbeef");
    }

    #[test]
    fn references_follow_and_prompt_texts_do_not() {
        let mut graph = Graph::parse(
            br#"{
              "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
              "2": {"class_type": "LoadImageMask", "inputs": {"image": "photo.png [input]", "channel": "red"}},
              "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "photo.png"}},
              "4": {"class_type": "LoadImage", "inputs": {"image": "my photo.png"}},
              "5": {"class_type": "VHS_LoadVideo", "inputs": {"video": "photo.png", "note": "photo.png"}}
            }"#,
        )
        .unwrap();
        let is_file = |class: &str, input: &str| match class {
            "VHS_LoadVideo" => Some(input == "video"),
            "CLIPTextEncode" => Some(false),
            _ => None,
        };
        assert_eq!(graph.rename_input("photo.png", "photo_1.png", is_file), 3);
        let value = graph.to_value();
        assert_eq!(value["1"]["inputs"]["image"], "photo_1.png");
        assert_eq!(value["2"]["inputs"]["image"], "photo_1.png [input]");
        assert_eq!(value["3"]["inputs"]["text"], "photo.png");
        assert_eq!(value["4"]["inputs"]["image"], "my photo.png");
        assert_eq!(value["5"]["inputs"]["video"], "photo_1.png");
        assert_eq!(value["5"]["inputs"]["note"], "photo.png");
    }
}
