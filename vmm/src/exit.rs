//! What a processor's exit leads to: a function of the exit and the buses, without KVM.

use kvm_ioctls::VcpuExit;
use podvisor_devices::bus::Bus;

use crate::event::{EndReason, RestartCause};

/// The two address spaces a guest reaches devices in.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

/// Why a processor left guest mode.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// It reads a port; the answer goes into `data`.
    PortRead {
        /// The port.
        port: u16,
        /// One or more units of the access's width.
        data: &'a mut [u8],
    },
    /// It writes to a port.
    PortWrite {
        /// The port.
        port: u16,
        /// What is written.
        data: &'a [u8],
    },
    /// It reads from an address that is not memory.
    MmioRead {
        /// The guest-physical address.
        address: u64,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// It writes to an address that is not memory.
    MmioWrite {
        /// The guest-physical address.
        address: u64,
        /// What is written.
        data: &'a [u8],
    },
    /// A triple fault.
    TripleFault,
    /// The processor refused the state it should enter with.
    EntryFailed {
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM met an instruction or a state that it cannot emulate.
    InternalError,
    /// An exit that this machine has no use for.
    Unexpected(String),
}

impl<'a> From<VcpuExit<'a>> for Exit<'a> {
    fn from(exit: VcpuExit<'a>) -> Self {
        match exit {
            VcpuExit::IoIn(port, data) => Self::PortRead { port, data },
            VcpuExit::IoOut(port, data) => Self::PortWrite { port, data },
            VcpuExit::MmioRead(address, data) => Self::MmioRead { address, data },
            VcpuExit::MmioWrite(address, data) => Self::MmioWrite { address, data },
            VcpuExit::Shutdown => Self::TripleFault,
            VcpuExit::FailEntry(reason, _) => Self::EntryFailed { reason },
            VcpuExit::InternalError => Self::InternalError,
            other => Self::Unexpected(format!("{other:?}")),
        }
    }
}

/// How a processor goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Back into the guest.
    Enter,
    /// At the machine's next start, if it has one.
    Reset(RestartCause),
    /// Not at all: the machine ends.
    End(EndReason),
}

/// Does what `exit` asks for.
pub fn dispatch(exit: Exit<'_>, buses: &Buses) -> Next {
    match exit {
        // An address that nobody answers is no error: reads yield all ones, writes vanish.
        Exit::PortRead { port, data } => {
            buses.ports.read(u64::from(port), data);
        }
        Exit::PortWrite { port, data } => {
            buses.ports.write(u64::from(port), data);
        }
        Exit::MmioRead { address, data } => {
            buses.mmio.read(address, data);
        }
        Exit::MmioWrite { address, data } => {
            buses.mmio.write(address, data);
        }
        Exit::TripleFault => return Next::Reset(RestartCause::TripleFault),
        Exit::EntryFailed { reason } => {
            return kvm_error(format!("entry failed with hardware reason {reason:#x}"));
        }
        Exit::InternalError => return kvm_error("internal error".to_owned()),
        Exit::Unexpected(exit) => return kvm_error(format!("unexpected exit {exit}")),
    }
    Next::Enter
}

fn kvm_error(cause: String) -> Next {
    Next::End(EndReason::KvmError { cause })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use podvisor_devices::bus::BusDevice;

    use super::*;

    #[derive(Default)]
    struct Register(Mutex<Vec<u8>>);

    impl BusDevice for Register {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&self.0.lock().unwrap()[..data.len()]);
        }
        fn write(&self, _offset: u64, data: &[u8]) {
            *self.0.lock().unwrap() = data.to_vec();
        }
    }

    fn buses() -> Buses {
        let buses = Buses::default();
        buses
            .ports
            .insert(0x3f8, 4, Arc::new(Register::default()))
            .unwrap();
        buses
            .mmio
            .insert(0xe000_0000, 4, Arc::new(Register::default()))
            .unwrap();
        buses
    }

    #[test]
    fn ports_and_addresses_are_different_spaces() {
        let buses = buses();
        assert_eq!(
            dispatch(
                Exit::PortWrite {
                    port: 0x3f8,
                    data: &[1, 2]
                },
                &buses
            ),
            Next::Enter
        );
        let write = Exit::MmioWrite {
            address: 0xe000_0000,
            data: &[3, 4],
        };
        assert_eq!(dispatch(write, &buses), Next::Enter);
        let mut data = [0; 2];
        assert_eq!(
            dispatch(
                Exit::PortRead {
                    port: 0x3f8,
                    data: &mut data
                },
                &buses
            ),
            Next::Enter
        );
        assert_eq!(data, [1, 2]);
        let read = Exit::MmioRead {
            address: 0xe000_0000,
            data: &mut data,
        };
        assert_eq!(dispatch(read, &buses), Next::Enter);
        assert_eq!(data, [3, 4]);
    }

    #[test]
    fn an_address_nobody_answers_reads_all_ones() {
        let mut data = [0; 4];
        let read = Exit::MmioRead {
            address: 0x1234_5678_9abc,
            data: &mut data,
        };
        assert_eq!(dispatch(read, &buses()), Next::Enter);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(
            dispatch(
                Exit::PortWrite {
                    port: 0xffff,
                    data: &[0]
                },
                &buses()
            ),
            Next::Enter
        );
    }

    #[test]
    fn fatal_exits_end_the_machine_with_their_reason() {
        let triple = dispatch(Exit::TripleFault, &buses());
        assert_eq!(triple, Next::Reset(RestartCause::TripleFault));
        let fatal = [
            Exit::EntryFailed {
                reason: 0x8000_0021,
            },
            Exit::InternalError,
            Exit::Unexpected("Nmi".to_owned()),
        ];
        for exit in fatal {
            let next = dispatch(exit, &buses());
            assert!(
                matches!(next, Next::End(EndReason::KvmError { .. })),
                "{next:?}"
            );
        }
    }
}
