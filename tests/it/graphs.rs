//! Graphs for stories. `tag` makes file names and cache keys of one story its own.

use serde_json::{Value, json};

/// Something that no other story has.
pub(crate) fn tag() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}

fn nonce(tag: &str) -> u32 {
    u32::from_str_radix(tag, 16).expect("a tag of hex digits")
}

/// Inverts the input picture `image`.
pub(crate) fn invert(tag: &str, image: &str) -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": image}, "_meta": {"title": "The photo"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": format!("{tag}_inverted")}},
    })
}

/// One green picture after `steps` steps of `step_ms` each.
pub(crate) fn slow(tag: &str, steps: u32, step_ms: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 65280}},
        "2": {
            "class_type": "RigSlowSteps",
            "inputs": {"image": ["1", 0], "steps": steps, "step_ms": step_ms, "nonce": nonce(tag)},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": format!("{tag}_slow")}},
    })
}

/// Saves one picture at once, and another after a minute.
pub(crate) fn early(tag: &str) -> Value {
    let mut graph = slow(tag, 600, 100);
    graph["4"] = json!({
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": format!("{tag}_early")},
    });
    graph
}

/// Saves one picture, then fails in the middle.
pub(crate) fn fail(tag: &str) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": nonce(tag) % 0xff_ffff}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": format!("{tag}_before")}},
        "3": {"class_type": "RigFail", "inputs": {"image": ["1", 0], "message": "boom: the wires are crossed"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": format!("{tag}_never")}},
    })
}

/// Runs out of memory, as torch says it.
pub(crate) fn out_of_memory(tag: &str) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        "2": {"class_type": "RigOOM", "inputs": {"image": ["1", 0], "kind": "torch"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": format!("{tag}_never")}},
    })
}

/// `count` pictures in one go, under `prefix`.
pub(crate) fn batch(tag: &str, count: u32, prefix: &str) -> Value {
    json!({
        "1": {"class_type": "RigManyImages", "inputs": {"count": count, "size": 16, "seed": nonce(tag)}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    })
}

/// Two previews and nothing else.
pub(crate) fn preview(tag: &str) -> Value {
    json!({
        "1": {"class_type": "RigManyImages", "inputs": {"count": 2, "size": 16, "seed": nonce(tag)}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })
}

/// A preview, a saved picture and a text from one graph, and a node that no output needs.
pub(crate) fn mixed(tag: &str) -> Value {
    json!({
        "1": {"class_type": "RigManyImages", "inputs": {"count": 1, "size": 16, "seed": nonce(tag)}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": format!("{tag}_mixed")}},
        "4": {"class_type": "RigText", "inputs": {"text": format!("a caption, ünï {tag}")}},
        "5": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    })
}

/// An animation, two kinds of sound and two of video.
pub(crate) fn media(tag: &str) -> Value {
    let prefix = format!("{tag}/media");
    json!({
        "1": {"class_type": "RigManyImages", "inputs": {"count": 6, "size": 64, "seed": nonce(tag)}},
        "2": {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix, "fps": 6.0, "lossless": true, "quality": 80, "method": "default"},
        },
        "3": {"class_type": "EmptyAudio", "inputs": {"duration": 0.2, "sample_rate": 44100, "channels": 2}},
        "4": {"class_type": "SaveAudio", "inputs": {"audio": ["3", 0], "filename_prefix": prefix}},
        "5": {"class_type": "SaveAudioMP3", "inputs": {"audio": ["3", 0], "filename_prefix": prefix, "quality": "128k"}},
        "6": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
        "7": {"class_type": "SaveVideo", "inputs": {"video": ["6", 0], "filename_prefix": prefix, "format": "mp4", "codec": "h264"}},
        "8": {
            "class_type": "SaveWEBM",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix, "codec": "vp9", "fps": 8.0, "crf": 32.0},
        },
    })
}

/// Each kind of graph that ComfyUI certainly refuses, with what the message must say.
pub(crate) fn refused() -> Vec<(Value, &'static str)> {
    let empty = json!({"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}});
    let save = |inputs: Value| json!({"class_type": "SaveImage", "inputs": inputs});
    let saved = save(json!({"images": ["1", 0], "filename_prefix": "x"}));
    vec![
        (json!({"1": empty, "2": save(json!({"filename_prefix": "x"}))}), "2 (SaveImage)"),
        (json!({"1": {"class_type": "NoSuchNodeAnywhere", "inputs": {}}, "2": saved}), "NoSuchNodeAnywhere"),
        (json!({"1": empty}), "no node that saves or shows a result"),
        (json!({"1": {"class_type": "LoadImage", "inputs": {"image": "not_there.png"}}, "2": saved}), "not_there.png"),
        (
            json!({"1": {"class_type": "EmptyImage", "inputs": {"width": -5, "height": 16, "batch_size": 1, "color": 0}}, "2": saved}),
            "1 (EmptyImage)",
        ),
        (
            json!({"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}, "2": saved}),
            "2 (SaveImage)",
        ),
        (json!({"2": save(json!({"images": ["99", 0], "filename_prefix": "x"}))}), "99"),
        (json!({"1": empty, "2": saved, "3": save(json!({"filename_prefix": "x"}))}), "3 (SaveImage)"),
    ]
}

/// One result that ComfyUI would make, and one that it refuses for a reason that only it can tell.
pub(crate) fn refused_in_part() -> Value {
    let mut graph = slow(&tag(), 1, 1);
    graph["4"] = json!({"class_type": "RigSlowSteps", "inputs": {"image": ["1", 0], "steps": 0, "step_ms": 1}});
    graph["5"] = json!({"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}});
    graph
}

/// Graphs with a fault that only ComfyUI itself can tell, and what the warnings say of it.
pub(crate) fn refused_by_the_box_alone() -> Vec<(Value, &'static str)> {
    vec![(slow(&tag(), 0, 1), "steps must be at least 1"), (refused_in_part(), "steps must be at least 1")]
}
