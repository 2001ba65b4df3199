//! Room on the disks, here and on the box.

use std::path::Path;

use indicatif::HumanBytes;

use super::{
    error::{StepError, transfer_lost},
    execution::Execution,
    link::Link,
};
use crate::{
    files::Folder,
    workflow::{ErrorCode, Failure, Request},
};

impl Execution {
    /// Looks, before money is spent, whether a result has room at both ends.
    pub(super) async fn check_room(&self, link: &Link) -> Result<(), StepError> {
        let full = |message| StepError::Fatal(Failure::new(ErrorCode::DiskFull, message));
        let request = self.request()?;
        let (output_dir, roots) = (request.output_dir.clone(), self.options.files.write_roots.clone());
        let least = self.options.min_free_bytes;
        let look = move || match Folder::open(&output_dir, &roots) {
            Ok(folder) => check_room_in(&folder, &output_dir, least),
            // It is made, or what is wrong with it told, when something comes.
            Err(_) => Ok(()),
        };
        let checked = tokio::task::spawn_blocking(look).await;
        checked.unwrap_or(Ok(())).map_err(full)?;
        check_room_on_box(link, &request, least).await?.map_or(Ok(()), |message| Err(full(message)))
    }
}

/// A sentence about a full disk on the box. What the box does not tell is no obstacle.
pub(super) async fn check_room_on_box(link: &Link, request: &Request, least: u64) -> Result<Option<String>, StepError> {
    if least == 0 {
        return Ok(None);
    }
    let Ok(transfer) = link.transfer().await? else { return Ok(None) };
    for folder in [&request.comfyui_input_dir, &request.comfyui_output_dir] {
        match transfer.free_bytes(folder).await {
            Ok(Some(free)) if free < least => {
                return Ok(Some(format!(
                    "the box has too little room: {} are free in its {folder}, and {} must be ([limits] \
                     min_free_bytes); remove what is not needed there",
                    HumanBytes(free),
                    HumanBytes(least)
                )));
            }
            Ok(_) => {}
            Err(error) => match transfer_lost(&error) {
                Some(lost) => return Err(lost),
                None => tracing::debug!(%error, "the room on the box is not known"),
            },
        }
    }
    Ok(None)
}

/// Whether `least` bytes are free in a folder here; if not, a sentence about that. 0 is always there. Blocks.
pub(super) fn check_room_in(folder: &Folder, path: &Path, least: u64) -> Result<(), String> {
    match folder.free_bytes() {
        Some(free) if free < least => Err(format!(
            "the disk has too little room: {} are free in {}, and {} must be ([limits] min_free_bytes); free some space",
            HumanBytes(free),
            path.display(),
            HumanBytes(least)
        )),
        _ => Ok(()),
    }
}
