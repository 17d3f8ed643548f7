//! What is booted, and in which order.

use std::fmt;
use std::str::FromStr;

use super::disk::Disk;
use super::nic::{InterfaceName, Nic};
use super::path::VolumePath;
use crate::{Kind, ValueError};

choice! {
    /// Which kind of pod this is.
    BootKind {
        Auto = "auto": "told from the pod: a disk in its image or at `/`, or a kernel and init in its image, make it a machine",
        Container = "container": "the VM is the isolation around the pod's containers",
        Machine = "machine": "the pod's container is a machine that boots its own disk",
    }
}

/// What a machine can be booted from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BootDevice {
    /// The volume at this path.
    Disk(VolumePath),
    /// The network card of this interface.
    Nic(InterfaceName),
}

impl BootDevice {
    const WHAT: &'static str = "an absolute path of a volume or the name of an interface";
    const KIND: Kind = Kind::Text {
        pattern: "^(/.*|[^/:\\s]{1,15})$",
        max_len: VolumePath::MAX_LEN,
        what: Self::WHAT,
    };
    /// The form of a list of them.
    pub const LIST: Kind = Kind::List {
        of: &Self::KIND,
        max: Disk::MAX_COUNT + Nic::MAX_COUNT,
    };
}

impl FromStr for BootDevice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.starts_with('/') {
            text.parse().map(Self::Disk)
        } else {
            text.parse()
                .map(Self::Nic)
                .map_err(|_| ValueError::new(text, Self::WHAT))
        }
    }
}

impl fmt::Display for BootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => path.fmt(f),
            Self::Nic(name) => name.fmt(f),
        }
    }
}

deserialize_from_text!(BootDevice);
