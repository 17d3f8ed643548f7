//! `-info`: tells containerd (2.0 and later) what this runtime is.

use std::io::{self, Write};

use podvisor_proto::containerd::types::{RuntimeInfo, RuntimeVersion};
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

/// The runtime's name in containerd's configuration.
const NAME: &str = "io.containerd.podvisor.v2";
/// What containerd calls the features of an OCI runtime.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Mount options that the agent understands (OCI runtime specification, config.md, "Linux mount
/// options"). By `rro` containerd knows that read-only mounts can be recursively so.
const MOUNT_OPTIONS: &[&str] = &[
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rw",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
];

/// Namespaces that a container or its pod can have in the guest.
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];

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
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features().to_string().into_bytes(),
        }),
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.encode_to_vec())
}

/// OCI runtime specification, features.md and features-linux.md. containerd 2.1 dies of features
/// with mount options and no word of Linux. To it, "user" and "idmap" together are user namespaces as
/// pods have them.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursive_read_only_mounts_are_announced() {
        let features = features();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&json!("rro")));
        assert!(features["linux"]["namespaces"].is_array());
    }

    #[test]
    fn user_namespaces_are_announced() {
        let linux = &features()["linux"];
        let namespaces = linux["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!("user")));
        assert_eq!(linux["mountExtensions"]["idmap"]["enabled"], true);
    }
}
