//! How a machine's processors look to its guest, and where on the host they run.

use std::fmt;
use std::str::FromStr;

use crate::config::{ConfigError, Vcpus};

/// The processors of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processors {
    booted: Vcpus,
    topology: Topology,
    /// What CPUID says.
    pub model: CpuModel,
    /// Host CPUs by processor: each runs on its own only. Processors beyond the list, or without any, run
    /// wherever this process may.
    pub pinning: Vec<Vec<usize>>,
}

impl Processors {
    /// A machine that starts with `booted` processors of those that `topology` has room for.
    ///
    /// # Errors
    /// [`ConfigError::Booted`] when there is no room for as many.
    pub fn new(booted: Vcpus, topology: Topology) -> Result<Self, ConfigError> {
        let possible = topology.possible();
        if booted > possible {
            return Err(ConfigError::Booted { booted, topology });
        }
        Ok(Self {
            booted,
            topology,
            model: CpuModel::Host,
            pinning: Vec::new(),
        })
    }

    /// How many there are when the guest starts.
    #[must_use]
    pub fn booted(&self) -> Vcpus {
        self.booted
    }

    /// How many there can be.
    #[must_use]
    pub fn possible(&self) -> Vcpus {
        self.topology.possible()
    }

    /// Their shape.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }
}

impl From<Vcpus> for Processors {
    /// As many cores of one socket, like the host's, free to run anywhere.
    fn from(vcpus: Vcpus) -> Self {
        Self {
            booted: vcpus,
            topology: Topology::of_cores(vcpus),
            model: CpuModel::Host,
            pinning: Vec::new(),
        }
    }
}

/// What CPUID says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuModel {
    /// All that KVM offers on this host.
    #[default]
    Host,
    /// A level of the x86-64 psABI, the same on every host that has it.
    Level(CpuLevel),
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Level(level) => level.fmt(f),
        }
    }
}

/// Levels of the x86-64 psABI (section 3.1.1, "Processor Architecture").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Up to SSE 4.2.
    V2,
    /// Up to AVX2.
    V3,
    /// With AVX-512.
    V4,
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        })
    }
}

impl FromStr for CpuModel {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "host" => Ok(Self::Host),
            "x86-64-v2" => Ok(Self::Level(CpuLevel::V2)),
            "x86-64-v3" => Ok(Self::Level(CpuLevel::V3)),
            "x86-64-v4" => Ok(Self::Level(CpuLevel::V4)),
            _ => Err(ConfigError::CpuModel(text.to_owned())),
        }
    }
}

/// Sockets, cores of each, threads of each core: room for a number of processors.
///
/// The number of a processor in its machine counts threads first, then cores, then sockets. Its
/// APIC ID has a field of bits for each, so that IDs have gaps when a count is no power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    sockets: u8,
    cores: u8,
    threads: u8,
}

impl Topology {
    /// The highest APIC ID that is no broadcast.
    const MAX_APIC_ID: u32 = 254;

    /// A topology of `sockets` with `cores` each, of `threads` each.
    ///
    /// # Errors
    /// [`ConfigError::Topology`] when one is zero, when they are more processors than a machine
    /// can have, or when their numbers do not fit into an APIC ID.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, ConfigError> {
        let refused = || ConfigError::Topology {
            sockets,
            cores,
            threads,
        };
        let count = |count: u32| u8::try_from(count).map_err(|_| refused());
        let topology = Self {
            sockets: count(sockets)?,
            cores: count(cores)?,
            threads: count(threads)?,
        };
        let possible = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if !(1..=u64::from(Vcpus::MAX)).contains(&possible) {
            return Err(refused());
        }
        let last = topology.wide_apic_id(topology.count() - 1);
        if last > Self::MAX_APIC_ID {
            return Err(refused());
        }
        Ok(topology)
    }

    /// One socket of `vcpus` cores of one thread.
    #[must_use]
    pub fn of_cores(vcpus: Vcpus) -> Self {
        Self {
            sockets: 1,
            cores: vcpus.get(),
            threads: 1,
        }
    }

    /// How many processors there is room for.
    #[must_use]
    pub fn possible(self) -> Vcpus {
        Vcpus::try_from(self.count()).unwrap_or(Vcpus::MIN)
    }

    fn count(self) -> u32 {
        u32::from(self.sockets) * self.socket_threads()
    }

    /// Number of sockets.
    #[must_use]
    pub fn sockets(self) -> u8 {
        self.sockets
    }

    /// Cores of a socket.
    #[must_use]
    pub fn cores(self) -> u8 {
        self.cores
    }

    /// Threads of a core.
    #[must_use]
    pub fn threads(self) -> u8 {
        self.threads
    }

    /// Processors of a socket.
    #[must_use]
    pub fn socket_threads(self) -> u32 {
        u32::from(self.cores) * u32::from(self.threads)
    }

    /// Bits of an APIC ID that number a thread within its core.
    #[must_use]
    pub fn thread_bits(self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC ID that number a thread within its socket.
    #[must_use]
    pub fn socket_bits(self) -> u32 {
        bits(self.threads) + bits(self.cores)
    }

    /// The APIC ID of the processor `index`, which is below [`Self::possible`].
    #[must_use]
    pub fn apic_id(self, index: u8) -> u8 {
        u8::try_from(self.wide_apic_id(u32::from(index))).unwrap_or(u8::MAX)
    }

    fn wide_apic_id(self, index: u32) -> u32 {
        let (threads, cores) = (u32::from(self.threads), u32::from(self.cores));
        let (core, socket) = (index / threads % cores, index / threads / cores);
        (index % threads) | (core << self.thread_bits()) | (socket << self.socket_bits())
    }
}

fn bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.sockets, self.cores, self.threads)
    }
}

impl FromStr for Topology {
    type Err = ConfigError;

    /// Reads `sockets:cores:threads`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::TopologyText(text.to_owned());
        let counts = text.split(':').map(str::parse::<u32>);
        let counts = counts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| malformed())?;
        match counts.as_slice() {
            &[sockets, cores, threads] => Self::new(sockets, cores, threads),
            _ => Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cores_of_one_socket_are_numbered_without_gaps() {
        let topology = Topology::of_cores(Vcpus::try_from(254).unwrap());
        assert!((0..254).all(|index| topology.apic_id(index) == index));
    }

    #[test]
    fn a_count_that_is_no_power_of_two_leaves_gaps() {
        let topology = Topology::new(2, 3, 2).unwrap();
        let ids: Vec<_> = (0..12).map(|index| topology.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn more_processors_than_a_machine_or_its_apic_ids_have_room_for_are_refused() {
        for (sockets, cores, threads) in [
            (0, 1, 1),
            (1, 0, 1),
            (1, 1, 0),
            (1, 255, 1),
            (2, 128, 1),
            (17, 3, 3),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            let refused = Topology::new(sockets, cores, threads);
            assert!(
                matches!(refused, Err(ConfigError::Topology { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn text_is_three_counts() {
        let topology: Topology = "2:4:2".parse().unwrap();
        assert_eq!(topology, Topology::new(2, 4, 2).unwrap());
        assert_eq!(topology.to_string(), "2:4:2");
        for text in ["", "2", "2:4", "2:4:2:1", "a:1:1", "1:-1:1"] {
            let refused = text.parse::<Topology>();
            assert_eq!(refused, Err(ConfigError::TopologyText(text.to_owned())));
        }
    }

    #[test]
    fn models_are_called_what_they_are_written_as() {
        for name in ["host", "x86-64-v2", "x86-64-v3", "x86-64-v4"] {
            assert_eq!(name.parse::<CpuModel>().unwrap().to_string(), name);
        }
        let refused = "x86-64-v1".parse::<CpuModel>();
        assert_eq!(refused, Err(ConfigError::CpuModel("x86-64-v1".to_owned())));
    }

    #[test]
    fn a_machine_does_not_start_with_more_processors_than_possible() {
        let vcpus = |count| Vcpus::try_from(count).unwrap();
        let topology = Topology::new(2, 2, 1).unwrap();
        assert!(Processors::new(vcpus(5), topology).is_err());
        let processors = Processors::new(vcpus(2), topology).unwrap();
        assert_eq!(processors.possible(), vcpus(4));
        assert_eq!(processors.booted(), vcpus(2));
    }

    proptest! {
        #[test]
        fn every_processor_has_an_id_of_its_own(
            sockets in 1_u32..20, cores in 1_u32..20, threads in 1_u32..5,
        ) {
            let Ok(topology) = Topology::new(sockets, cores, threads) else { return Ok(()) };
            let possible = topology.possible().get();
            let ids: BTreeSet<_> = (0..possible).map(|index| topology.apic_id(index)).collect();
            prop_assert_eq!(ids.len(), usize::from(possible));
            prop_assert!(ids.iter().all(|&id| id < u8::MAX));
        }
    }
}
