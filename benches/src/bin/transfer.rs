//! The pod's end of a transfer (`bench net`): `transfer ADDRESS out|in BYTES` connects to the node's
//! end and sends it so many bytes, or takes them and answers with one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};

/// What is handed to the kernel, and asked of it, at once.
const CHUNK_LEN: usize = 128 << 10;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, direction, bytes] = words.as_slice() else {
        bail!("transfer ADDRESS out|in BYTES");
    };
    let bytes: u64 = bytes.parse().context("no number of bytes")?;
    let mut stream = TcpStream::connect(address).with_context(|| address.clone())?;
    match direction.as_str() {
        "out" => send(&mut stream, bytes),
        "in" => receive(&mut stream, bytes),
        other => bail!("{other}: neither out nor in"),
    }
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let chunk = vec![0x5a; CHUNK_LEN];
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
        stream.write_all(chunk.get(..len).unwrap_or(&chunk))?;
        left -= u64::try_from(len)?;
    }
    // The other end's word that all is there: until then the guest is at work.
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    let mut received = 0;
    while received < bytes {
        let len = stream.read(&mut chunk)?;
        ensure!(len > 0, "{received} of {bytes} bytes came");
        received += u64::try_from(len)?;
    }
    stream.write_all(&[0])?;
    Ok(())
}
