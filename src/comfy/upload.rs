//! `POST /upload/image`: any input file, streamed. ComfyUI never overwrites here: it answers with the name under
//! which the content lies, which may be another one.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use serde_json::Value;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, Take},
};
use tokio_util::io::ReaderStream;

use super::{
    answer::SMALL_BYTES,
    client::{Client, text_of},
    error::ComfyError,
};

const WHAT: &str = "POST /upload/image";

/// How long nothing may move: bytes on the way, or ComfyUI comparing content at the end.
const STALL: Duration = Duration::from_secs(60);

/// Bytes per chunk of the body.
const CHUNK: usize = 64 << 10;

/// What the body's stream tells the call that waits for the answer.
#[derive(Debug, Default)]
struct Progress {
    sent: AtomicU64,
    local_error: Mutex<Option<io::Error>>,
}

impl Client {
    /// Uploads a whole file into ComfyUI's input folder under `name`, and returns how the graph must call it.
    ///
    /// # Errors
    /// [`ComfyError::TooBig`] beyond the server's limit, [`ComfyError::Local`] when the file can't be read,
    /// [`ComfyError::Timeout`] when nothing moves for a minute; else as for every call. Sent once.
    pub async fn upload_image(&self, mut file: File, name: &str) -> Result<String, ComfyError> {
        let unreadable = |source| ComfyError::Local { what: WHAT, source };
        file.rewind().await.map_err(unreadable)?;
        let size = file.metadata().await.map_err(unreadable)?.len();
        let progress = Arc::new(Progress::default());
        // No more is sent than was announced, should the file grow meanwhile; one that shrinks fails.
        let part =
            Part::stream_with_length(body(file.take(size), Arc::clone(&progress)), size).file_name(name.to_owned());
        let request = self.request(Method::POST, "/upload/image").multipart(Form::new().part("image", part));
        let exchange = async {
            let response = request.send().await.map_err(|error| ComfyError::from_reqwest(WHAT, error))?;
            self.read_whole(WHAT, response, SMALL_BYTES).await
        };
        let result = tokio::select! {
            result = exchange => result,
            () = progress.stalled() => Err(ComfyError::Timeout { what: WHAT, after: STALL }),
        };
        if let Some(source) = progress.local_error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(unreadable(source));
        }
        let answer = result?;
        if answer.status.as_u16() == 413 {
            return Err(ComfyError::TooBig { what: WHAT, limit: size.saturating_sub(1) });
        }
        let stored = answer.json().await?;
        name_for_graph(&stored).ok_or_else(|| answer.malformed("no name"))
    }
}

impl Progress {
    /// Resolves when nothing was sent for [`STALL`].
    async fn stalled(&self) {
        let mut seen = self.sent.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(STALL).await;
            let sent = self.sent.load(Ordering::Relaxed);
            if sent == seen {
                return;
            }
            seen = sent;
        }
    }
}

fn body(file: Take<File>, progress: Arc<Progress>) -> Body {
    let counted = Arc::clone(&progress);
    let stream = ReaderStream::with_capacity(file, CHUNK)
        .inspect_ok(move |chunk| {
            counted.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        })
        .inspect_err(move |error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            *progress.local_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
        });
    Body::wrap_stream(stream)
}

/// `subfolder/name`, with the folder behind it where it is not the input folder (folder_paths.py,
/// annotated_filepath).
fn name_for_graph(stored: &Value) -> Option<String> {
    let name = text_of(stored, "name").filter(|name| !name.is_empty())?;
    let subfolder = text_of(stored, "subfolder").unwrap_or_default().replace('\\', "/");
    let path = match subfolder.trim_matches('/') {
        "" => name,
        subfolder => format!("{subfolder}/{name}"),
    };
    match text_of(stored, "type").as_deref() {
        Some(folder @ ("temp" | "output")) => Some(format!("{path} [{folder}]")),
        _ => Some(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_graph_calls_a_file_by_folder_and_name() {
        for (stored, expected) in [
            (json!({"name": "x (1).png", "subfolder": "", "type": "input"}), Some("x (1).png")),
            (json!({"name": "x.png", "subfolder": "a\\b"}), Some("a/b/x.png")),
            (json!({"name": "x.png", "subfolder": null, "type": "temp"}), Some("x.png [temp]")),
            (json!({"name": ""}), None),
            (json!([]), None),
        ] {
            assert_eq!(name_for_graph(&stored).as_deref(), expected);
        }
    }
}
