//! Starts real machines. Which devices a machine has depends on its kind and its cards only, so
//! that a booted one can serve any pod.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use podvisor_annotations::value::guest::ConsoleKind;
use podvisor_devices::console::{ConsoleReader, ReaderConfig, Terminal, WhenFull};
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::fs::{
    ExportError, ExportOptions, Exports, FsConfig, FsTag, VirtioFs, Writes,
};
use podvisor_devices::virtio::{ConsolePort, VirtioDevice};
use podvisor_devices::vsock::{Vsock, VsockConfig, VsockHost};
use podvisor_proto::agent::{FS_TAG, READY_PORT};
use podvisor_vmm::config::ConfigError;
use podvisor_vmm::{
    Console, DeviceSlot, EndReason, HotMemory, KernelArgs, MemoryPlugError, MemorySize,
    MemoryState, OrderError, Phase, PinError, ThreadKind, VcpuPlugError, VcpuState, Vcpus, Vm,
    VmConfig, VmEvent, VmHandle, WatchdogConfig, confine, spawn_io_loop,
};
use tokio::sync::watch;

use super::balloon::Follower;
use super::console::ConsoleStream;
use super::disk::{self, Disk, DiskError};
use super::extras::ExtraDevices;
use super::pet_disk::DiskThreads;
use super::port::GuestPort;
use super::vsock::GuestStream;
use super::{
    Activity, Connecting, LaunchError, Launched, Launcher, Machine, MachinePlan, PetParts, Stream,
};
use crate::pod::room::Room;
use crate::sandbox::chain;

/// The guest's context identifier. Nobody else sees it: the device is not the host's vsock.
const GUEST_CID: u64 = 3;
/// What every guest's kernel is told. A dead agent is a panic, and a panic a reset: the machine
/// ends and says why.
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 swiotlb=noforce";
/// What the kernel of a guest with one processor is told as well: it is not worth its time to
/// rewrite itself for that.
const ONE_CPU_ARGS: &str = "noreplace-smp";

/// How much of a console's output waits for containerd before the guest does: nothing of a
/// transcript is lost.
const TRANSCRIPT: ReaderConfig = ReaderConfig {
    capacity: 256 << 10,
    when_full: WhenFull::Hold,
};

/// Starts machines on KVM.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvmLauncher;

impl Launcher for KvmLauncher {
    fn launch(&self, mut plan: MachinePlan) -> Result<Launched, LaunchError> {
        for file in [&plan.kernel, &plan.initrd] {
            readable(file)?;
        }
        let io = spawn_io_loop().map_err(device("io"))?;
        let exports = Exports::new().map_err(device("fs"))?;
        let (vsock, host) = Vsock::new(
            VsockConfig {
                guest_cid: GUEST_CID,
                ready_port: READY_PORT,
            },
            io.clone(),
        )
        .map_err(device("vsock"))?;
        let mut devices = vec![slot("vsock", vsock)];
        if plan.pet.is_none() {
            devices.push(slot("fs", file_system(&exports)?));
        }
        let terminal = Terminal::new();
        let extras = plan.extras.devices(&io, &terminal, plan.pet.is_some())?;
        let ExtraDevices {
            slots,
            balloon,
            qga,
        } = extras;
        devices.extend(slots);
        for card in plan.cards {
            devices.push(card.slot(io.clone())?);
        }
        let pet = plan.pet.take();
        let is_pet = pet.is_some();
        let on_reset = pet.as_ref().map(|pet| pet.on_reset).unwrap_or_default();
        let on_poweroff = pet.as_ref().map(|pet| pet.on_poweroff).unwrap_or_default();
        let generation_id = pet.as_ref().map(|pet| pet.generation);
        let limit = pet.as_ref().and_then(|pet| pet.watchdog);
        let watchdog = limit.map(|limit| WatchdogConfig {
            limit,
            address: None,
            io: io.clone(),
        });
        if let Some(pet) = pet {
            devices.extend(attach(pet, &exports)?);
        }
        let reader = is_pet.then(|| terminal.reader(TRANSCRIPT));
        let (end, ended) = watch::channel(None);
        let (restart, restarts) = watch::channel(0);
        let config = VmConfig {
            processors: plan.processors,
            memory: plan.room.booted.memory,
            memory_backing: plan.memory_backing,
            smbios: plan.smbios,
            hot_memory: hot_memory(plan.room, &io),
            numa: plan.binding.numa,
            generation_id,
            kernel: plan.kernel.clone(),
            initrd: Some(plan.initrd),
            kernel_args: kernel_args(plan.room, &plan.kernel_args)?,
            // A machine's own system has a login, and a button to switch it off. With another
            // console the serial port is for what our own kernel says before.
            console: if is_pet && plan.extras.console == ConsoleKind::Serial {
                Console::Terminal
            } else {
                Console::Log
            },
            console_output: None,
            terminal: Some(terminal.clone()),
            on_reset,
            on_poweroff,
            power_button: is_pet,
            watchdog,
            devices,
        };
        let start = |source| LaunchError::Start {
            kernel: plan.kernel,
            source,
        };
        let reporter = Reporter {
            end,
            restart,
            connections: host.clone(),
        };
        let vm = Vm::start(config, Box::new(move |event| reporter.report(event)));
        let vm = vm.map_err(start)?;
        let memory = plan.room.booted.memory.bytes();
        Ok(Launched {
            machine: Arc::new(KvmMachine {
                _balloon: balloon.map(|control| Follower::spawn(control, memory)),
                vm,
                host,
                exports,
                terminal,
                reader: Mutex::new(reader),
                qga: Mutex::new(qga),
            }),
            ended,
            restarts,
        })
    }
}

/// What it takes for more memory than at the start, where there is to be any.
fn hot_memory(room: Room, io: &EventLoop) -> Option<HotMemory> {
    let max = room.most.memory;
    let io = io.clone();
    (max > room.booted.memory).then_some(HotMemory { max, io })
}

fn kernel_args(room: Room, more: &[String]) -> Result<KernelArgs, ConfigError> {
    let one_cpu = (room.most.vcpus == Vcpus::MIN).then_some(ONE_CPU_ARGS);
    let words = [KERNEL_ARGS].into_iter().chain(one_cpu);
    let words: Vec<&str> = words.chain(more.iter().map(String::as_str)).collect();
    KernelArgs::new(&words.join(" "))
}

/// Gives a machine its own disks and, where there is something to share, its host's folders.
fn attach(pet: PetParts, exports: &Exports) -> Result<Vec<DeviceSlot>, LaunchError> {
    let mut threads = DiskThreads::default();
    let disks = pet.disks.into_iter();
    let disks = disks.map(|disk| threads.slot(disk).map_err(device("disk")));
    let mut devices = disks.collect::<Result<Vec<_>, _>>()?;
    if !pet.shares.is_empty() {
        // Last: other devices have the same places with it and without.
        devices.push(slot("fs", file_system(exports)?));
    }
    for share in pet.shares {
        let added = exports.add(&share.name, share.folder, share.options);
        added.map_err(device("fs"))?;
    }
    Ok(devices)
}

/// Tells what happens to a machine.
struct Reporter {
    end: watch::Sender<Option<EndReason>>,
    restart: watch::Sender<u64>,
    connections: VsockHost,
}

impl Reporter {
    fn report(&self, event: VmEvent) {
        match event {
            VmEvent::Ended(reason) => {
                self.end.send_replace(Some(reason));
                // Who waits for an answer would keep the machine, and its taps with it.
                self.connections.close();
            }
            VmEvent::Restarted { count, .. } => drop(self.restart.send_replace(count)),
        }
    }
}

fn readable(path: &Path) -> Result<(), LaunchError> {
    File::open(path)
        .map(drop)
        .map_err(|source| LaunchError::File {
            path: path.to_owned(),
            source,
        })
}

pub(super) fn device<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    device: &'static str,
) -> impl FnOnce(E) -> LaunchError {
    move |source| LaunchError::Device {
        device,
        source: source.into(),
    }
}

fn slot(name: &str, device: impl VirtioDevice + 'static) -> DeviceSlot {
    DeviceSlot {
        name: name.to_owned(),
        address: None,
        device: Box::new(device),
    }
}

fn file_system(exports: &Exports) -> Result<VirtioFs, LaunchError> {
    let tag = FsTag::try_from(FS_TAG).map_err(device("fs"))?;
    let on_start = Arc::new(confine::on_start(ThreadKind::Fs));
    VirtioFs::new(FsConfig::new(tag), exports, &(on_start as _)).map_err(device("fs"))
}

/// A machine on KVM.
struct KvmMachine {
    /// Moves the balloon as long as there is a machine.
    _balloon: Option<Follower>,
    vm: VmHandle,
    host: VsockHost,
    exports: Exports,
    terminal: Terminal,
    /// All that the console prints, until somebody takes it.
    reader: Mutex<Option<ConsoleReader>>,
    /// The port for the machine's own agent, until somebody takes it.
    qga: Mutex<Option<ConsolePort>>,
}

impl Machine for KvmMachine {
    fn stop(&self) {
        self.vm.stop();
    }

    fn console_tail(&self) -> Vec<u8> {
        self.vm.console_tail()
    }

    fn console(&self) -> Stream {
        let first = self
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Box::new(ConsoleStream {
            reader: first.unwrap_or_else(|| self.terminal.reader(TRANSCRIPT)),
            terminal: self.terminal.clone(),
        })
    }

    fn guest_agent_port(&self) -> Option<Stream> {
        let mut qga = self.qga.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Box::new(GuestPort(qga.take()?)))
    }

    fn press_power_button(&self) {
        if let Err(error) = self.vm.power_button() {
            tracing::warn!(error = chain(&error), "the power button");
        }
    }

    fn pause(&self) -> Result<(), OrderError> {
        self.vm.pause()
    }

    fn resume(&self) -> Result<(), OrderError> {
        self.vm.resume()
    }

    fn set_vcpus(&self, wanted: Vcpus) -> Result<(), VcpuPlugError> {
        self.vm.set_vcpus(wanted)
    }

    fn vcpus(&self) -> VcpuState {
        self.vm.vcpus()
    }

    fn pin(&self, host_cpus: &[Vec<usize>]) -> Result<(), PinError> {
        self.vm.pin_vcpus(host_cpus)
    }

    fn set_memory(&self, wanted: MemorySize) -> Result<(), MemoryPlugError> {
        self.vm.set_memory(wanted)
    }

    fn memory(&self) -> Option<MemoryState> {
        self.vm.memory()
    }

    fn timeline(&self) -> Vec<Phase> {
        self.vm.timeline()
    }

    fn activity(&self) -> Activity {
        Activity {
            exits: self.vm.exits().ok().map(|exits| exits.total),
            packets: self.host.counters().packets_from_guest,
        }
    }

    fn connect(&self, port: u32) -> Connecting {
        let connect = self.host.connect(port);
        Box::pin(async move { Ok(Box::new(GuestStream(connect.await?)) as Stream) })
    }

    fn accept_ready(&self) -> Connecting {
        let accept = self.host.accept_ready();
        Box::pin(async move { Ok(Box::new(GuestStream(accept.await?)) as Stream) })
    }

    fn add_export(
        &self,
        name: &str,
        source: OwnedFd,
        options: ExportOptions,
    ) -> Result<(), ExportError> {
        self.exports.add(name, source, options)
    }

    fn allow_writes(&self, name: &str, writes: Writes) -> Result<(), ExportError> {
        self.exports.allow_writes(name, writes)
    }

    fn remove_export(&self, name: &str) -> Result<(), ExportError> {
        self.exports.remove(name)
    }

    fn add_disk(&self, disk: Disk) -> Result<(), DiskError> {
        let slot = disk::slot(disk)?;
        let name = slot.name.clone();
        self.vm
            .plug(slot)
            .map_err(|source| DiskError::Plug { name, source })
    }

    fn remove_disk(&self, name: &str) -> Result<(), DiskError> {
        self.vm.unplug(name).map_err(|source| DiskError::Plug {
            name: name.to_owned(),
            source,
        })
    }
}
