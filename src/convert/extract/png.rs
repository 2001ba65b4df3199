//! The texts in a PNG picture: `tEXt`, `zTXt` and `iTXt` chunks, and the `comf` chunks of ComfyUI's animated pictures.
//!
//! The `png` crate reads texts only up to the picture's data and knows nothing of `comf`; ComfyUI writes that one behind.

use std::io::{self, Read};

use flate2::read::ZlibDecoder;

use super::{ExtractError, MAX_TEXT_BYTES, Texts};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// How many bytes a chunk takes besides its content: length, type, checksum.
const FRAME: usize = 12;

pub(super) fn is_png(content: &[u8]) -> bool {
    content.starts_with(SIGNATURE)
}

/// Reads the texts that have the name of a workflow.
pub(super) fn texts(content: &[u8]) -> Result<Texts, ExtractError> {
    let mut texts = Texts::default();
    let mut rest = content.strip_prefix(SIGNATURE).unwrap_or_default();
    while let Some((length, kind)) = rest.first_chunk::<4>().zip(rest.get(4..8)) {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if kind == b"IEND" {
            break;
        }
        let Some(body) = rest.get(8..).and_then(|body| body.get(..length)) else {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a chunk");
            return Err(ExtractError::Damaged(cut));
        };
        take(&mut texts, kind, body)?;
        rest = rest.get(length + FRAME..).unwrap_or_default();
    }
    Ok(texts)
}

fn take(texts: &mut Texts, kind: &[u8], body: &[u8]) -> Result<(), ExtractError> {
    let Some((name, value)) = split(body) else { return Ok(()) };
    let name = String::from_utf8_lossy(name);
    match kind {
        // Latin-1 by the standard, and plain ASCII as ComfyUI writes JSON; some write UTF-8.
        b"tEXt" | b"comf" => texts.take(&name, || Ok(as_utf8(value))),
        b"zTXt" => texts.take(&name, || unpacked(value.get(1..).unwrap_or_default()).map(|text| as_utf8(&text))),
        b"iTXt" => texts.take(&name, || international(value)),
        _ => Ok(()),
    }
}

/// What stands before the first zero, and what behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Whether it is packed, how, a language, the name in that language, the text.
fn international(value: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let text = value.get(2..).and_then(split).and_then(|(_, rest)| split(rest)).map_or(&[][..], |(_, text)| text);
    if value.first() == Some(&1) { unpacked(text) } else { Ok(text.to_vec()) }
}

fn unpacked(packed: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let mut text = Vec::new();
    let limit = MAX_TEXT_BYTES as u64 + 1;
    ZlibDecoder::new(packed).take(limit).read_to_end(&mut text).map_err(ExtractError::Damaged)?;
    if text.len() > MAX_TEXT_BYTES { Err(ExtractError::TooLong) } else { Ok(text) }
}

fn as_utf8(text: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(_) => text.to_vec(),
        Err(_) => text.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes(),
    }
}
