//! Files and texts that a run leaves behind.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::id::NodeId;

/// The folder of ComfyUI in which a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Folder {
    /// Results.
    Output,
    /// Previews; wiped when ComfyUI starts.
    Temp,
    /// Uploaded files.
    Input,
}

impl Folder {
    /// The word that ComfyUI uses in `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Temp => "temp",
            Self::Input => "input",
        }
    }
}

/// A file as ComfyUI names it: untrusted text from the box.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Base name.
    pub filename: String,
    /// Folder below [`RemoteFile::folder`], with `/` between its parts; empty for none.
    pub subfolder: String,
    /// Which of ComfyUI's folders.
    pub folder: Folder,
    /// The key under which ComfyUI lists it (`images`, `gifs`, `audio`…): a hint at the kind.
    pub listed_as: String,
}

/// What one node reported: the files worth keeping and its texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeOutput {
    /// Files; previews only where the node has nothing else.
    pub files: Vec<RemoteFile>,
    /// Plain strings, such as captions.
    pub texts: Vec<String>,
    /// Whether texts were longer than is kept of them.
    pub texts_cut: bool,
}

/// What kind of content an output file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// Still or animated pictures.
    Image,
    /// Moving pictures.
    Video,
    /// Sound.
    Audio,
    /// Readable text.
    Text,
    /// Meshes and scenes.
    #[serde(rename = "3d")]
    ThreeD,
    /// Anything else.
    File,
}

impl FileType {
    /// By the MIME type of the name first, then by the key under which ComfyUI lists the file.
    pub fn of(filename: &str, listed_as: &str) -> Self {
        Self::by_name(filename).unwrap_or_else(|| Self::by_key(listed_as))
    }

    fn by_name(filename: &str) -> Option<Self> {
        let extension = filename.rsplit_once('.')?.1.to_ascii_lowercase();
        if matches!(extension.as_str(), "glb" | "gltf" | "obj" | "ply" | "stl" | "fbx" | "usdz" | "splat" | "spz") {
            return Some(Self::ThreeD);
        }
        let mime = mime_guess::from_ext(&extension).first()?;
        match (mime.type_().as_str(), mime.subtype().as_str()) {
            ("image", _) => Some(Self::Image),
            ("video", _) => Some(Self::Video),
            ("audio", _) => Some(Self::Audio),
            ("text", _) | ("application", "json") => Some(Self::Text),
            ("model", _) => Some(Self::ThreeD),
            _ => None,
        }
    }

    fn by_key(listed_as: &str) -> Self {
        match listed_as {
            "images" | "a_images" | "b_images" => Self::Image,
            "gifs" | "video" | "videos" => Self::Video,
            "audio" => Self::Audio,
            "3d" | "mesh" | "model_file" => Self::ThreeD,
            "text" | "texts" | "string" => Self::Text,
            _ => Self::File,
        }
    }
}

/// One output file of a workflow, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The node that reported it.
    pub node_id: NodeId,
    /// Where it is on the box.
    pub remote: RemoteFile,
    /// Where the request says that this folder lies on the box; not checked.
    pub remote_path: String,
    /// What kind of content.
    pub file_type: FileType,
    /// Where it is here; `None` until it is.
    pub local_path: Option<PathBuf>,
    /// Bytes; `None` until known.
    pub size: Option<u64>,
}

impl Output {
    /// Describes a reported file that has not been fetched yet. `output_dir` is ComfyUI's output folder on the box.
    pub fn reported(node_id: NodeId, remote: RemoteFile, output_dir: &str) -> Self {
        let file_type = FileType::of(&remote.filename, &remote.listed_as);
        let remote_path = remote_path(&remote, output_dir);
        Self { node_id, remote, remote_path, file_type, local_path: None, size: None }
    }

    /// The same without its local file.
    #[must_use]
    pub fn not_here(self) -> Self {
        Self { local_path: None, size: None, ..self }
    }

    /// Whether the file is on the local disk.
    pub fn downloaded(&self) -> bool {
        self.local_path.is_some()
    }
}

/// `<output_dir>/<subfolder>/<filename>`; files of other folders lie beside the output folder.
fn remote_path(file: &RemoteFile, output_dir: &str) -> String {
    let base = output_dir.trim_end_matches('/');
    let base = match file.folder {
        Folder::Output => base.to_owned(),
        other => match base.rsplit_once('/') {
            Some((parent, _)) => format!("{parent}/{}", other.as_str()),
            None => other.as_str().to_owned(),
        },
    };
    match file.subfolder.trim_matches('/') {
        "" => format!("{base}/{}", file.filename),
        subfolder => format!("{base}/{subfolder}/{}", file.filename),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(filename: &str, subfolder: &str, folder: Folder) -> RemoteFile {
        RemoteFile { filename: filename.into(), subfolder: subfolder.into(), folder, listed_as: "images".into() }
    }

    #[test]
    fn the_name_decides_before_the_key() {
        for (name, key, expected) in [
            ("a.png", "images", FileType::Image),
            ("a.mp4", "images", FileType::Video),
            ("a.webm", "gifs", FileType::Video),
            ("a.gif", "gifs", FileType::Image),
            ("a.flac", "audio", FileType::Audio),
            ("a.glb", "3d", FileType::ThreeD),
            ("a.txt", "text", FileType::Text),
            ("a.json", "files", FileType::Text),
            ("a.latent", "latents", FileType::File),
            ("noextension", "audio", FileType::Audio),
            ("a.weird", "gifs", FileType::Video),
        ] {
            assert_eq!(FileType::of(name, key), expected, "{name} under {key}");
        }
    }

    #[test]
    fn remote_paths_follow_the_folder() {
        let dir = "/workspace/ComfyUI/output/";
        let path = |file| remote_path(&file, dir);
        assert_eq!(path(file("a.png", "", Folder::Output)), "/workspace/ComfyUI/output/a.png");
        assert_eq!(path(file("a.png", "x/y", Folder::Output)), "/workspace/ComfyUI/output/x/y/a.png");
        assert_eq!(path(file("a.png", "", Folder::Temp)), "/workspace/ComfyUI/temp/a.png");
    }
}
