//! The containerd versions that the project is tested with.

use std::path::PathBuf;

use clap::ValueEnum;

use super::debian;
use crate::workspace;

/// A containerd version, which is a Debian suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Containerd {
    /// Debian 13's.
    #[value(name = "1.7")]
    V1_7,
    /// Debian unstable's.
    #[value(name = "2.1")]
    V2_1,
}

impl Containerd {
    /// Every version, oldest first.
    pub const ALL: [Self; 2] = [Self::V1_7, Self::V2_1];

    /// Its place in [`Self::ALL`].
    pub fn number(self) -> usize {
        self as usize
    }

    /// Major and minor number.
    pub fn version(self) -> &'static str {
        match self {
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
        }
    }

    /// The Debian suite that has it.
    pub fn suite(self) -> &'static str {
        match self {
            Self::V1_7 => debian::STABLE,
            Self::V2_1 => debian::UNSTABLE,
        }
    }

    /// Its configuration in the node, without our runtime.
    pub fn config(self) -> PathBuf {
        workspace::xtask_file(&format!("node/containerd-{}.toml", self.version()))
    }

    /// The handler of our runtime whose pods are sandboxes of the shim's, where containerd has that
    /// sandboxer.
    pub fn sandboxer_handler(self) -> Option<&'static str> {
        match self {
            Self::V1_7 => None,
            Self::V2_1 => Some("podvisor-sandbox"),
        }
    }

    /// The part that a node's admin adds for our runtime.
    pub fn drop_in(self) -> PathBuf {
        let name = match self {
            Self::V1_7 => "containerd-1.7.toml",
            Self::V2_1 => "containerd-2.x.toml",
        };
        workspace::root().join("runtimeclass").join(name)
    }
}
