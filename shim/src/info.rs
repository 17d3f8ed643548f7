//! `-info`: tells containerd (2.0 and later) what this runtime is.

use std::io::{self, Write};

use podvisor_proto::containerd::types::{RuntimeInfo, RuntimeVersion};
use prost::Message;

/// The runtime's name in containerd's configuration.
const NAME: &str = "io.containerd.podvisor.v2";

/// Writes the message to stdout.
///
/// # Errors
/// When containerd does not take it.
pub fn print() -> io::Result<()> {
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.encode_to_vec())
}
