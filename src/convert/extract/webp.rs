//! The texts in a WebP picture: ComfyUI writes them into EXIF fields, as `prompt:{…}` and `workflow:{…}`.

use std::io;

use exif::{In, Reader, Value};

use super::{ExtractError, Texts};

pub(super) fn is_webp(content: &[u8]) -> bool {
    content.starts_with(b"RIFF") && content.get(8..12) == Some(b"WEBP")
}

/// Reads the texts that have the name of a workflow.
pub(super) fn texts(content: &[u8]) -> Result<Texts, ExtractError> {
    let Some(exif) = exif_chunk(content) else { return Ok(Texts::default()) };
    // Pillow writes the block with the prefix that JPEG has, others without.
    let block = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif).to_vec();
    let exif = Reader::new().read_raw(block).map_err(|error| match error {
        exif::Error::Io(error) => ExtractError::Damaged(error),
        other => ExtractError::Damaged(io::Error::new(io::ErrorKind::InvalidData, other)),
    })?;
    let mut texts = Texts::default();
    for field in exif.fields().filter(|field| field.ifd_num == In::PRIMARY) {
        let Value::Ascii(lines) = &field.value else { continue };
        for line in lines {
            let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = String::from_utf8_lossy(&line[..at.min(16)]).to_ascii_lowercase();
            texts.take(&name, || Ok(line[at + 1..].to_vec()))?;
        }
    }
    Ok(texts)
}

/// The content of the `EXIF` chunk. Chunks begin at even places.
fn exif_chunk(content: &[u8]) -> Option<&[u8]> {
    let mut rest = content.get(12..)?;
    loop {
        let length = usize::try_from(u32::from_le_bytes(*rest.get(4..)?.first_chunk()?)).ok()?;
        let body = rest.get(8..)?;
        if rest.starts_with(b"EXIF") {
            return Some(body.get(..length).unwrap_or(body));
        }
        rest = body.get(length.checked_add(length % 2)?..)?;
    }
}
