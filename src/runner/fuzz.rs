//! For the fuzzer: names that a box gives to its files.

use std::path::{Component, Path};

use super::output_folder::Place;
use crate::workflow::{Folder, RemoteFile};

/// The first line is a subfolder, the rest a name. What is not refused lies below the output folder.
pub(crate) fn output_name(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (subfolder, filename) = text.split_once('\n').unwrap_or(("", &text));
    let file = RemoteFile {
        filename: filename.into(),
        subfolder: subfolder.into(),
        folder: Folder::Output,
        listed_as: "images".into(),
    };
    let home = Path::new("/srv/outputs");
    let Ok(place) = Place::of(home, &file) else { return };
    let path = place.folder().join(filename);
    let below =
        path.strip_prefix(home).map(|below| below.components().all(|part| matches!(part, Component::Normal(_))));
    assert_eq!(below, Ok(true), "{}", path.display());
    assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(filename));
    assert!(!path.to_string_lossy().contains(char::is_control));
}
