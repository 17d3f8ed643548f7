//! The pod's end of a transfer (`bench net`): `transfer ADDRESS out|in BYTES` connects to the node's
//! end and sends it so many bytes, or takes them.

use std::net::TcpStream;

use anyhow::{Context as _, Result, bail};
use podvisor_benches::{receive, send};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, direction, bytes] = words.as_slice() else {
        bail!("transfer ADDRESS out|in BYTES");
    };
    let bytes = bytes.parse().context("no number of bytes")?;
    let mut stream = TcpStream::connect(address).with_context(|| address.clone())?;
    match direction.as_str() {
        "out" => send(&mut stream, bytes),
        "in" => receive(&mut stream, bytes),
        other => bail!("{other}: neither out nor in"),
    }
}
