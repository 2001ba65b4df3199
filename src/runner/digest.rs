//! The content of a file in 32 bytes.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Reads to the end; returns the number of bytes and their SHA-256. Blocks.
pub(super) fn sha256_of(reader: &mut impl Read) -> io::Result<(u64, [u8; 32])> {
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((size, hasher.finalize().into())),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
