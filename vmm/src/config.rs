//! What a machine is made of, in types that cannot hold a wrong value.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use podvisor_devices::console::{ConsoleTap, Terminal};
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::VirtioDevice;
use thiserror::Error;

use crate::arch;
use crate::memory::MemoryBacking;
use crate::numa::Numa;
use crate::processors::{Processors, Topology};
use crate::smbios::SmbiosConfig;

/// Everything a machine is built from.
pub struct VmConfig {
    /// The processors; `vcpus.into()` for a number of them without particular wishes.
    pub processors: Processors,
    /// Size of guest memory.
    pub memory: MemorySize,
    /// What the host keeps guest memory in.
    pub memory_backing: MemoryBacking,
    /// Memory that the guest gets and gives back while it runs, if there is to be any.
    pub hot_memory: Option<HotMemory>,
    /// Which of processors and memory are close to each other, for the guest and on the host.
    /// Without, all are for the guest, and the host keeps memory where it likes.
    pub numa: Option<Numa>,
    /// Tells a guest that goes on from a copy of a machine or its disks, by having changed. Without,
    /// the guest has no device for it.
    pub generation_id: Option<u128>,
    /// What the machine says it is. Without it has no SMBIOS tables.
    pub smbios: Option<SmbiosConfig>,
    /// The kernel: an ELF `vmlinux` or a `bzImage`, told apart by content.
    pub kernel: PathBuf,
    /// The initial root image, if any.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub kernel_args: KernelArgs,
    /// The guest's serial console.
    pub console: Console,
    /// What the serial port shows its output on and takes its input from; one of the machine's
    /// own without. Readers made before the start miss nothing.
    pub terminal: Option<Terminal>,
    /// Gets the console's output as it comes, beside the kept tail.
    pub console_output: Option<ConsoleOutput>,
    /// Whether the guest has a power button. Without one the guest can be stopped but not asked
    /// to shut down; without a button and a [`Console::Terminal`] no device has an interrupt
    /// line, and the guest is spared the setup of an IOAPIC.
    pub power_button: bool,
    /// What a reset of the guest leads to.
    pub on_reset: ResetPolicy,
    /// What it leads to when the guest switches itself off.
    pub on_poweroff: ResetPolicy,
    /// Resets the machine when its guest has started the watchdog and does not come back to it.
    pub watchdog: Option<WatchdogConfig>,
    /// PCI devices. Those without an address get the lowest free ones, in order.
    pub devices: Vec<DeviceSlot>,
}

/// A watchdog for the guest (Intel 6300ESB).
pub struct WatchdogConfig {
    /// How long the guest may stay away at most, whatever it asks for.
    pub limit: Duration,
    /// Where it is on the bus, if that matters.
    pub address: Option<PciSlot>,
    /// Its clock runs here.
    pub io: EventLoop,
}

/// Memory that a guest gets and gives back while it runs (virtio-mem).
pub struct HotMemory {
    /// The most it can have, what it begins with included.
    pub max: MemorySize,
    /// Serves the device.
    pub io: EventLoop,
}

/// Takes console output, byte by byte. Called on the thread of the processor that writes, which waits.
pub type ConsoleOutput = ConsoleTap;

/// One PCI device of a machine.
pub struct DeviceSlot {
    /// What errors and logs call it.
    pub name: String,
    /// Where it is on the bus, if that matters.
    pub address: Option<PciSlot>,
    /// The device behind the transport.
    pub device: Box<dyn VirtioDevice>,
}

impl DeviceSlot {
    /// `device` wherever there is room.
    pub fn new(name: impl Into<String>, device: impl VirtioDevice + 'static) -> Self {
        Self {
            name: name.into(),
            address: None,
            device: Box::new(device),
        }
    }
}

/// A place on PCI bus 0: a device number. Number 0 is the host bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciSlot(u8);

impl PciSlot {
    /// The largest device number.
    pub const MAX: u8 = 31;

    /// The device number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for PciSlot {
    type Error = ConfigError;

    fn try_from(number: u32) -> Result<Self, ConfigError> {
        match u8::try_from(number) {
            Ok(small @ 1..=Self::MAX) => Ok(Self(small)),
            _ => Err(ConfigError::PciSlot(number)),
        }
    }
}

const _: () = assert!(PciSlot::MAX as usize == arch::layout::PCI_MAX_DEVICES);

/// Where the guest's first serial port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// No serial port.
    Off,
    /// A port for the kernel's messages only; its last output is kept. It has no interrupt line,
    /// so that a guest's programs can not use it.
    Log,
    /// A port with its line, for the kernel's messages and a login; its last output is kept.
    Terminal,
}

/// What becomes of a machine whose guest resets it. A kernel that panicked before ends the machine
/// in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetPolicy {
    /// The machine ends.
    #[default]
    End,
    /// The machine starts over in place: devices as at power-on, kernel and initial image read
    /// again from their files.
    Restart,
}

/// A value that no machine can have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a place on the bus.
    #[error("PCI slot {0}: there are 1 to {max}", max = PciSlot::MAX)]
    PciSlot(u32),
    /// Not a number of processors a machine can have.
    #[error("{0} vCPUs: a machine has 1 to {max}", max = Vcpus::MAX)]
    Vcpus(u32),
    /// More processors at the start than possible.
    #[error("{} vCPUs at the start: the topology {topology} has {}", booted.get(), topology.possible().get())]
    Booted {
        /// At the start.
        booted: Vcpus,
        /// What there is room for.
        topology: Topology,
    },
    /// Not a topology a machine can have.
    #[error(
        "a topology of {sockets} sockets of {cores} cores of {threads} threads: a machine has 1 to {max} vCPUs, \
         whose APIC IDs stay below 255 with each count rounded up to a power of two",
        max = Vcpus::MAX
    )]
    Topology {
        /// Sockets asked for.
        sockets: u32,
        /// Cores of each.
        cores: u32,
        /// Threads of each of those.
        threads: u32,
    },
    /// Not three counts.
    #[error("'{0}' is no topology: it is written sockets:cores:threads")]
    TopologyText(String),
    /// No processor model has that name.
    #[error("'{0}' is no CPU model: there are host, x86-64-v2, x86-64-v3 and x86-64-v4")]
    CpuModel(String),
    /// Guest memory is too small, too large or no multiple of the page size.
    #[error("{0} bytes of memory: a machine has {min} to {max}, in whole pages", min = MemorySize::MIN, max = MemorySize::MAX)]
    Memory(u64),
    /// The command line does not fit.
    #[error("kernel command line of {0} bytes: {max} fit", max = KernelArgs::MAX_LEN)]
    KernelArgsLen(usize),
    /// The command line has something else than printable ASCII.
    #[error("kernel command line has a byte {byte:#04x} at {position}")]
    KernelArgsByte {
        /// The offending byte.
        byte: u8,
        /// Where it stands.
        position: usize,
    },
}

/// A number of processors, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vcpus(u8);

impl Vcpus {
    /// An APIC ID of 255 is the broadcast, and larger ones need interrupt remapping.
    pub const MAX: u8 = 254;
    /// One processor.
    pub const MIN: Self = Self(1);

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u32> for Vcpus {
    type Error = ConfigError;

    fn try_from(count: u32) -> Result<Self, ConfigError> {
        match u8::try_from(count) {
            Ok(small @ 1..=Self::MAX) => Ok(Self(small)),
            _ => Err(ConfigError::Vcpus(count)),
        }
    }
}

/// A size of guest memory in bytes, in whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Below this no Linux of today starts.
    pub const MIN: u64 = 32 << 20;
    /// What the memory map has room for.
    pub const MAX: u64 = arch::layout::MAX_RAM;

    /// A size of `bytes`.
    ///
    /// # Errors
    /// [`ConfigError::Memory`] outside of [`Self::MIN`]..=[`Self::MAX`] or with a broken page.
    pub fn from_bytes(bytes: u64) -> Result<Self, ConfigError> {
        let whole = bytes.is_multiple_of(arch::layout::PAGE_SIZE);
        if whole && (Self::MIN..=Self::MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ConfigError::Memory(bytes))
        }
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// A kernel command line: printable ASCII that fits its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelArgs(String);

impl KernelArgs {
    /// Longest command line in bytes (x86's `COMMAND_LINE_SIZE` less the terminating zero).
    pub const MAX_LEN: usize = 2047;

    /// Takes `args` as they are.
    ///
    /// # Errors
    /// [`ConfigError`] when they are too long or not printable ASCII.
    pub fn new(args: &str) -> Result<Self, ConfigError> {
        if args.len() > Self::MAX_LEN {
            return Err(ConfigError::KernelArgsLen(args.len()));
        }
        match args
            .bytes()
            .enumerate()
            .find(|(_, byte)| !matches!(byte, b' '..=b'~'))
        {
            Some((position, byte)) => Err(ConfigError::KernelArgsByte { byte, position }),
            None => Ok(Self(args.to_owned())),
        }
    }

    /// The command line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const _: () = assert!((KernelArgs::MAX_LEN as u64) < arch::layout::COMMAND_LINE.len);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_and_too_many_vcpus_are_refused() {
        assert_eq!(Vcpus::try_from(0), Err(ConfigError::Vcpus(0)));
        assert_eq!(Vcpus::try_from(255), Err(ConfigError::Vcpus(255)));
        assert_eq!(Vcpus::try_from(254).unwrap().get(), 254);
    }

    #[test]
    fn memory_is_whole_pages_within_bounds() {
        for bytes in [
            0,
            MemorySize::MIN - 4096,
            MemorySize::MIN + 1,
            MemorySize::MAX + 4096,
        ] {
            assert_eq!(
                MemorySize::from_bytes(bytes),
                Err(ConfigError::Memory(bytes))
            );
        }
        assert_eq!(
            MemorySize::from_bytes(128 << 20).unwrap().bytes(),
            128 << 20
        );
    }

    proptest! {
        #[test]
        fn accepted_command_lines_are_printable_and_short(text in ".{0,100}") {
            match KernelArgs::new(&text) {
                Ok(args) => prop_assert!(args.as_str().bytes().all(|b| (b' '..=b'~').contains(&b))),
                Err(ConfigError::KernelArgsByte { position, .. }) => {
                    prop_assert!(!matches!(text.as_bytes()[position], b' '..=b'~'));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
