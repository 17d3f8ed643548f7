//! How a volume is a disk of the machine.

use serde::Deserialize;

use super::address::PciSlot;
use super::path::VolumePath;
use crate::{Field, Kind};

number! {
    /// Queues of a device; more than vCPUs are of no use.
    QueueCount(u8) in 1..=16, "a number of queues"
}

number! {
    /// Which thread serves a disk: disks with the same number share one.
    IoThread(u8) in 1..=16, "a number of an I/O thread"
}

number! {
    /// Requests a second.
    IopsLimit(u64) in 1..=100000000, "a number of requests a second"
}

amount! {
    /// Bytes a second.
    ByteRateLimit in [4096, 1 << 40] by 1, "an amount of bytes a second"
}

choice! {
    /// How writes reach the disk.
    CacheMode {
        None = "none": "past the host's page cache (O_DIRECT); a flush reaches the medium",
        Writeback = "writeback": "through the host's page cache; a flush reaches the medium",
        Writethrough = "writethrough": "every write reaches the medium before it is answered",
        Unsafe = "unsafe": "through the host's page cache, and flushes are answered at once: for data that may be lost",
    }
}

text! {
    /// What the guest reads as the disk's serial number (`/dev/disk/by-id/virtio-SERIAL`).
    DiskSerial: "^[!-~]{1,20}$", at most 20,
    |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
    "a serial number: 1 to 20 printable ASCII characters without spaces"
}

/// A volume as a disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Which volume.
    pub path: VolumePath,
    /// Whether the guest can only read it.
    #[serde(default)]
    pub ro: bool,
    /// The serial number that the guest reads.
    pub serial: Option<DiskSerial>,
    /// Where on the PCI bus it is.
    pub pci: Option<PciSlot>,
    /// How many queues it has.
    pub queues: Option<QueueCount>,
    /// Which thread serves it; one of its own without.
    pub iothread: Option<IoThread>,
    /// How writes reach it.
    pub cache: Option<CacheMode>,
    /// Requests a second at most.
    pub iops: Option<IopsLimit>,
    /// Bytes a second at most.
    pub bps: Option<ByteRateLimit>,
}

impl Disk {
    /// Most disks of a machine: each takes a device of the PCI bus.
    pub const MAX_COUNT: usize = 24;

    const MAP: Kind = Kind::Map(&[
        Field::required(
            "path",
            VolumePath::KIND,
            "the volume's devicePath or mountPath; `/` is the machine's own disk; a ConfigMap, Secret, downward API or projected volume is a FAT disk of its files, read-only",
        ),
        Field::optional("ro", Kind::Switch, "the guest can only read it"),
        Field::optional(
            "serial",
            DiskSerial::KIND,
            "serial number: /dev/disk/by-id/virtio-SERIAL; default: `boot`, `disk0` and so on, or a mountPath's last word",
        ),
        Field::optional(
            "pci",
            PciSlot::KIND,
            "device on the PCI bus; default: the next free one",
        ),
        Field::optional(
            "queues",
            QueueCount::KIND,
            "request queues; default: one for each vCPU, at most 4",
        ),
        Field::optional(
            "iothread",
            IoThread::KIND,
            "disks with the same number share a thread; default: a thread of its own",
        ),
        Field::optional(
            "cache",
            CacheMode::KIND,
            "how writes reach the disk; default: `none` for devices, `writeback` for files",
        ),
        Field::optional(
            "iops",
            IopsLimit::KIND,
            "requests a second at most; default: no limit",
        ),
        Field::optional(
            "bps",
            ByteRateLimit::KIND,
            "bytes a second at most; default: no limit",
        ),
    ]);
    /// The form of a list of them.
    pub const LIST: Kind = Kind::List {
        of: &Self::MAP,
        max: Self::MAX_COUNT,
    };
}
