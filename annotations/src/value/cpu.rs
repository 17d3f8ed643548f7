//! Processors: how many, how the guest sees them, and where they run.

use std::fmt;
use std::str::FromStr;

use super::whole_number;
use crate::{Kind, ValueError};

number! {
    /// A number of vCPUs. An APIC ID of 255 is the broadcast, and larger ones need interrupt remapping.
    Vcpus(u8) in 1..=254, "a number of vCPUs"
}

choice! {
    /// What CPUID tells the guest.
    CpuModel {
        Host = "host": "what the node's processor has",
        V2 = "x86-64-v2": "the psABI's level 2 (SSE4.2, POPCNT), the same on every node",
        V3 = "x86-64-v3": "the psABI's level 3 (AVX2, BMI), the same on every node",
        V4 = "x86-64-v4": "the psABI's level 4 (AVX-512), the same on every node",
    }
}

choice! {
    /// Whether vCPU threads are bound to processors.
    CpuPinning {
        None = "none": "they run on any processor that the pod may use",
        Auto = "auto": "one to one on the pod's exclusive processors; the pod fails when it has too few",
    }
}

choice! {
    /// Whether the guest has NUMA nodes.
    Numa {
        None = "none": "one node",
        Auto = "auto": "the nodes of the host's processors that the pod may use, with their share of memory",
    }
}

/// How the guest's processors are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    sockets: u8,
    cores: u8,
    threads: u8,
}

impl CpuTopology {
    const WHAT: &'static str = "sockets:cores:threads with a product from 1 to 254, such as 1:4:2";
    /// The form of it.
    pub const KIND: Kind = Kind::Text {
        pattern: "^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$",
        max_len: 11,
        what: Self::WHAT,
    };

    /// Sockets.
    #[must_use]
    pub fn sockets(self) -> u8 {
        self.sockets
    }

    /// Cores of each socket.
    #[must_use]
    pub fn cores(self) -> u8 {
        self.cores
    }

    /// Threads of each core.
    #[must_use]
    pub fn threads(self) -> u8 {
        self.threads
    }

    /// All threads together: as many vCPUs as the guest can have at most.
    #[must_use]
    pub fn vcpus(self) -> Vcpus {
        // The product was checked when this was made.
        Vcpus(
            self.sockets
                .saturating_mul(self.cores)
                .saturating_mul(self.threads),
        )
    }
}

impl FromStr for CpuTopology {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let part = |text: Option<&str>| {
            let number = u8::try_from(whole_number(text?)?).ok()?;
            (number > 0).then_some(number)
        };
        let mut parts = text.split(':');
        let topology = (|| {
            let (sockets, cores, threads) = (
                part(parts.next())?,
                part(parts.next())?,
                part(parts.next())?,
            );
            let product = sockets.checked_mul(cores)?.checked_mul(threads)?;
            let fits = parts.next().is_none() && product <= Vcpus::MAX.get();
            fits.then_some(Self {
                sockets,
                cores,
                threads,
            })
        })();
        topology.ok_or_else(|| ValueError::new(text, Self::WHAT))
    }
}

impl fmt::Display for CpuTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.sockets, self.cores, self.threads)
    }
}
