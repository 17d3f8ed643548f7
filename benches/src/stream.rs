//! Both ends of a measured transfer: so many bytes one way, and one back that tells of their arrival.

use std::io::{Read, Write};

use anyhow::{Result, ensure};

/// What is handed to the kernel, and asked of it, at once.
const CHUNK_LEN: usize = 128 << 10;

/// Sends `bytes` bytes and waits until the other end has them.
///
/// # Errors
/// When the stream breaks.
pub fn send(stream: &mut (impl Read + Write), bytes: u64) -> Result<()> {
    let chunk = vec![0x5a; CHUNK_LEN];
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        stream.write_all(chunk.get(..len).unwrap_or(&chunk))?;
        left -= u64::try_from(len)?;
    }
    Ok(stream.read_exact(&mut [0])?)
}

/// Takes `bytes` bytes and says so.
///
/// # Errors
/// When the stream breaks.
pub fn receive(stream: &mut (impl Read + Write), bytes: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    let mut received = 0;
    while received < bytes {
        let len = stream.read(&mut chunk)?;
        ensure!(len > 0, "{received} of {bytes} bytes came");
        received += u64::try_from(len)?;
    }
    Ok(stream.write_all(&[0])?)
}
