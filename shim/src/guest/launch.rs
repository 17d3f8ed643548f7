//! Starts real machines. Which devices a machine has depends on its kind and its cards only, so
//! that a booted one can serve any pod.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::fs::{
    ExportError, ExportOptions, Exports, FsConfig, FsTag, VirtioFs, Writes,
};
use podvisor_devices::net::{MacAddress, Mtu, Net, NetConfig};
use podvisor_devices::virtio::VirtioDevice;
use podvisor_devices::virtio::balloon::{Balloon, BalloonConfig};
use podvisor_devices::virtio::rng::{Rng, RngConfig};
use podvisor_devices::vsock::{Vsock, VsockConfig, VsockHost};
use podvisor_proto::agent::{FS_TAG, READY_PORT};
use podvisor_vmm::config::ConfigError;
use podvisor_vmm::{
    Console, DeviceSlot, EndReason, KernelArgs, MemoryBacking, Phase, ResetPolicy, ThreadKind,
    Vcpus, Vm, VmConfig, VmEvent, VmHandle, confine, spawn_io_loop,
};
use tokio::sync::watch;

use super::disk::{self, Disk, DiskError};
use super::vsock::GuestStream;
use super::{Connecting, LaunchError, Launched, Launcher, Machine, MachinePlan, Stream};
use crate::host::Nic;

/// The guest's context identifier. Nobody else sees it: the device is not the host's vsock.
const GUEST_CID: u64 = 3;
/// What every guest's kernel is told. A dead agent is a panic, and a panic a reset: the machine
/// ends and says why.
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 swiotlb=noforce";
/// What the kernel of a guest with one processor is told as well: it is not worth its time to
/// rewrite itself for that.
const ONE_CPU_ARGS: &str = "noreplace-smp";

/// Starts machines on KVM.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvmLauncher;

impl Launcher for KvmLauncher {
    fn launch(&self, plan: MachinePlan) -> Result<Launched, LaunchError> {
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
        let mut devices = vec![slot("vsock", vsock), slot("fs", file_system(&exports)?)];
        devices.extend(entropy_and_memory(&io)?);
        for nic in plan.nics {
            devices.push(DeviceSlot {
                name: nic.name.clone(),
                address: None,
                device: Box::new(card(nic, io.clone())?),
            });
        }
        let (end, ended) = watch::channel(None);
        let config = VmConfig {
            processors: plan.size.vcpus.into(),
            memory: plan.size.memory,
            memory_backing: if plan.transparent_huge_pages {
                MemoryBacking::TransparentHugePages
            } else {
                MemoryBacking::Normal
            },
            hot_memory: None,
            numa: None,
            generation_id: None,
            smbios: None,
            kernel: plan.kernel.clone(),
            initrd: Some(plan.initrd),
            kernel_args: kernel_args(plan.size.vcpus, &plan.kernel_args)?,
            console: Console::Log,
            terminal: None,
            console_output: None,
            power_button: false,
            on_reset: ResetPolicy::End,
            watchdog: None,
            devices,
        };
        let start = |source| LaunchError::Start {
            kernel: plan.kernel,
            source,
        };
        let vm = Vm::start(config, Box::new(move |event| report(&end, event))).map_err(start)?;
        Ok(Launched {
            machine: Arc::new(KvmMachine { vm, host, exports }),
            ended,
        })
    }
}

fn kernel_args(vcpus: Vcpus, more: &[String]) -> Result<KernelArgs, ConfigError> {
    let one_cpu = (vcpus == Vcpus::MIN).then_some(ONE_CPU_ARGS);
    let words = [KERNEL_ARGS].into_iter().chain(one_cpu);
    let words: Vec<&str> = words.chain(more.iter().map(String::as_str)).collect();
    KernelArgs::new(&words.join(" "))
}

fn report(end: &watch::Sender<Option<EndReason>>, event: VmEvent) {
    match event {
        VmEvent::Ended(reason) => drop(end.send_replace(Some(reason))),
        // No guest of this kind is restarted.
        VmEvent::Restarted { .. } => {}
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

fn device<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
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

fn entropy_and_memory(io: &EventLoop) -> Result<[DeviceSlot; 2], LaunchError> {
    let rng = Rng::new(
        RngConfig {
            bytes_per_second: None,
        },
        io.clone(),
    )
    .map_err(device("rng"))?;
    // Only free page reporting is used: nobody asks for a smaller guest yet.
    let (balloon, _) = Balloon::new(BalloonConfig { reporting: true }, io.clone());
    Ok([slot("rng", rng), slot("balloon", balloon)])
}

fn card(nic: Nic, io: EventLoop) -> Result<Net, LaunchError> {
    let mac = MacAddress::try_from(nic.mac).map_err(device("net"))?;
    let mtu = u16::try_from(nic.mtu)
        .ok()
        .and_then(|mtu| Mtu::try_from(mtu).ok());
    let card = Net::new(NetConfig { mac, mtu }, Arc::new(nic.tap), io);
    Ok(match nic.vhost {
        Some(vhost) => card.with_vhost(vhost),
        None => card,
    })
}

/// A machine on KVM.
struct KvmMachine {
    vm: VmHandle,
    host: VsockHost,
    exports: Exports,
}

impl Machine for KvmMachine {
    fn stop(&self) {
        self.vm.stop();
    }

    fn console_tail(&self) -> Vec<u8> {
        self.vm.console_tail()
    }

    fn timeline(&self) -> Vec<Phase> {
        self.vm.timeline()
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
