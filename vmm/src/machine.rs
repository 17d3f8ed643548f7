//! Builds a machine from its configuration and owns all of its parts.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{Kvm, VmFd};
use podvisor_devices::console::Terminal;
use podvisor_devices::interrupt::MsiSink;
use podvisor_devices::legacy::MachineEvent;
use podvisor_devices::watchdog::{OnExpiry, Watchdog};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::arch::acpi::AcpiError;
use crate::arch::cpuid::{CpuidError, Template};
use crate::arch::irqchip::KvmMsi;
use crate::arch::loader::LoadError;
use crate::arch::{entry, irqchip, msrs};
use crate::boot::{BootSource, acpi_config};
use crate::config::{VmConfig, WatchdogConfig};
use crate::event::{EndReason, EventSink, RestartCause};
use crate::exit::Buses;
use crate::host::{self, HostError};
use crate::memory::{GuestRam, MemoryError, RamPlan};
use crate::pci::{OnFailure, PciDevices, PciError, PlainSlot, Wiring};
use crate::platform::{Platform, PlatformConfig, PlatformError};
use crate::plugged_memory::{self, PluggedMemory};
use crate::plugged_vcpus::{self, VcpuPlug};
use crate::restart::{PowerOn, PowerOnError, RestartThread, Restarter};
use crate::smbios::SmbiosError;
use crate::timeline::Timeline;
use crate::vcpu::{
    Control, MakeError, PinError, Policies, VcpuCell, VcpuContext, VcpuMaker, VcpuThreads,
    prepare_signal,
};

/// Why a machine could not start. Nothing of it is left.
#[derive(Debug, Error)]
pub enum StartError {
    /// This host cannot run machines.
    #[error("this host cannot run VMs")]
    Host(#[from] HostError),
    /// Guest memory could not be set up.
    #[error("cannot set up guest memory")]
    Memory(#[from] MemoryError),
    /// Kernel or initial image could not be loaded.
    #[error("cannot load the guest")]
    Load(#[from] LoadError),
    /// The platform devices could not be set up.
    #[error("cannot set up the platform")]
    Platform(#[from] PlatformError),
    /// The PCI devices could not be set up.
    #[error("cannot set up the PCI devices")]
    Pci(#[from] PciError),
    /// The ACPI tables could not be written.
    #[error("cannot describe the machine")]
    Acpi(#[from] AcpiError),
    /// The SMBIOS tables could not be written.
    #[error("cannot tell the machine's identity")]
    Smbios(#[from] SmbiosError),
    /// A processor could not be made.
    #[error("cannot make a vCPU")]
    Vcpu(#[from] MakeError),
    /// CPUID could not be made.
    #[error("cannot describe the processors")]
    Cpuid(#[from] CpuidError),
    /// A boot structure could not be written.
    #[error("cannot write boot structures")]
    BootStructures(#[source] GuestMemoryError),
    /// KVM refused a step.
    #[error("KVM refuses to {step}")]
    Kvm {
        /// Which step.
        step: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A processor's thread could not be bound.
    #[error("cannot pin the processors")]
    Pin(#[from] PinError),
    /// What a reset returns to cannot be told.
    #[error("cannot prepare resets")]
    PowerOn(#[from] PowerOnError),
    /// The host refused a thread, a signal or a file.
    #[error("cannot {step}")]
    Os {
        /// Which step.
        step: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
}

fn kvm_step(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StartError {
    move |source| StartError::Kvm { step, source }
}

fn os_step(step: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Os { step, source }
}

/// All parts of a machine. Fields drop in order: threads are joined first (see [`Drop`]),
/// devices and KVM's files follow, guest memory is last.
pub(crate) struct Machine {
    pub(crate) control: Arc<Control>,
    pub(crate) threads: Arc<VcpuThreads>,
    pub(crate) vcpus: VcpuPlug,
    /// One pause or resumption at a time.
    pausing: Mutex<()>,
    pub(crate) timeline: Arc<Timeline>,
    /// None in a machine that ends at a reset.
    restart: Option<RestartThread>,
    /// Resets so far.
    pub(crate) restarts: Arc<AtomicU64>,
    /// None in a machine whose memory cannot change.
    pub(crate) memory: Option<PluggedMemory>,
    pub(crate) pci: Arc<PciDevices>,
    pub(crate) platform: Arc<Platform>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) kvm: Kvm,
    pub(crate) ram: GuestRam,
}

impl Machine {
    /// Builds the machine and starts its threads; its processors are parked at the kernel's
    /// entry.
    pub(crate) fn boot(config: VmConfig, events: EventSink) -> Result<Self, StartError> {
        let timeline = Arc::new(Timeline::begin());
        let kvm = host::open_kvm()?;
        let ram = GuestRam::map(&ram_plan(&config)?)?;
        let template = Template::for_host(&kvm, &config.processors)?;
        let entry = BootSource::of(&config, &template).load(&ram, None)?;
        timeline.done("guest_loaded");
        let parts = Parts::build(config, template, events, &kvm, ram, timeline)?;
        set_entry(&parts.threads.cells(), entry)?;
        parts.start(kvm)
    }

    /// Builds the machine around memory that has a guest's content already. Kernel, initial
    /// image and arguments of `config` are for resets only.
    pub(crate) fn around(
        ram: GuestRam,
        config: VmConfig,
        events: EventSink,
    ) -> Result<Self, StartError> {
        let timeline = Arc::new(Timeline::begin());
        let kvm = host::open_kvm()?;
        let template = Template::for_host(&kvm, &config.processors)?;
        Parts::build(config, template, events, &kvm, ram, timeline)?.start(kvm)
    }

    /// Held while the machine is paused or resumed.
    pub(crate) fn pausing(&self) -> MutexGuard<'_, ()> {
        self.pausing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a reset starts the machine over.
    pub(crate) fn restarts_in_place(&self) -> bool {
        self.restart.is_some()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.order_end(EndReason::Killed);
        self.threads.kick();
        self.threads.join();
        if let Some(restart) = &self.restart {
            restart.join();
        }
    }
}

/// What `config` wants of memory.
fn ram_plan(config: &VmConfig) -> Result<RamPlan, MemoryError> {
    let plugged = config.hot_memory.as_ref();
    let range = |hot| plugged_memory::range(config.memory, hot);
    Ok(RamPlan {
        size: config.memory,
        backing: config.memory_backing,
        numa: config.numa.clone(),
        plugged: plugged.map(range).transpose()?,
    })
}

/// A machine before its threads exist.
struct Parts {
    control: Arc<Control>,
    threads: Arc<VcpuThreads>,
    maker: VcpuMaker,
    buses: Arc<Buses>,
    events: Arc<EventSink>,
    timeline: Arc<Timeline>,
    /// None in a machine that ends at a reset.
    reset: Option<(BootSource, PowerOn)>,
    memory: Option<PluggedMemory>,
    pci: Arc<PciDevices>,
    platform: Arc<Platform>,
    vm: Arc<VmFd>,
    ram: GuestRam,
    pinning: Vec<Vec<usize>>,
}

impl Parts {
    fn build(
        mut config: VmConfig,
        template: Template,
        events: EventSink,
        kvm: &Kvm,
        ram: GuestRam,
        timeline: Arc<Timeline>,
    ) -> Result<Self, StartError> {
        let vm = Arc::new(kvm.create_vm().map_err(kvm_step("create a VM"))?);
        irqchip::create(&vm).map_err(kvm_step("make interrupt controllers"))?;
        ram.register(&vm)?;
        timeline.done("vm_created");
        let policies = policies(&config);
        let restarts = policies.has_restart();
        let source = restarts.then(|| BootSource::of(&config, &template));
        let (maker, threads) = make_vcpus(kvm, &vm, template, &config)?;
        timeline.done("vcpus_created");
        let vcpus = usize::from(config.processors.booted().get());
        let control = Arc::new(Control::new(vcpus, policies));
        let with_state = |source| Ok::<_, StartError>((source, PowerOn::of(&vm)?));
        let reset = source.map(with_state).transpose()?;
        let buses = Arc::new(Buses::default());
        let platform = place_platform(&mut config, &vm, &buses, &control, &threads)?;
        let msi: Arc<dyn MsiSink> = Arc::new(KvmMsi::new(Arc::clone(&vm)));
        let on_failure = on_failure(&control, &threads);
        let wiring = Wiring {
            vm: Arc::clone(&vm),
            memory: Arc::clone(ram.guest_memory()),
            msi,
            buses: Arc::clone(&buses),
        };
        let hot = config.hot_memory.take();
        let memory = hot.map(|hot| PluggedMemory::new(config.memory, hot, &ram));
        let (memory, slot) = memory.transpose()?.unzip();
        config.devices.extend(slot);
        let watchdog = config.watchdog.map(|watchdog| {
            let on_expiry = on_expiry(&control, &threads, platform.terminal());
            watchdog_slot(watchdog, Box::new(on_expiry))
        });
        let plain = watchdog.into_iter().collect();
        let pci = PciDevices::place(config.devices, plain, wiring, &on_failure)?;
        timeline.done("devices_placed");
        let events = Arc::new(events);
        Ok(Self {
            control,
            threads,
            maker,
            buses,
            events,
            timeline,
            reset,
            memory,
            pci: Arc::new(pci),
            platform: Arc::new(platform),
            vm,
            ram,
            pinning: config.processors.pinning,
        })
    }

    fn start(self, kvm: Kvm) -> Result<Machine, StartError> {
        prepare_signal().map_err(os_step("install a signal handler"))?;
        let context = Arc::new(VcpuContext {
            control: Arc::clone(&self.control),
            buses: self.buses,
            threads: Arc::clone(&self.threads),
            events: Arc::clone(&self.events),
            timeline: Arc::clone(&self.timeline),
            terminal: self.platform.terminal().clone(),
        });
        let vcpus = VcpuPlug {
            maker: self.maker,
            context,
            changing: Mutex::default(),
        };
        let restarts = Arc::new(AtomicU64::new(0));
        let restarter = self.reset.map(|(source, power_on)| Restarter {
            control: Arc::clone(&self.control),
            threads: Arc::clone(&self.threads),
            events: self.events,
            pci: Arc::clone(&self.pci),
            platform: Arc::clone(&self.platform),
            source,
            power_on,
            count: Arc::clone(&restarts),
            vm: Arc::clone(&self.vm),
            ram: self.ram.clone(),
        });
        let restart = restarter.map(RestartThread::spawn).transpose();
        // From here on the machine's drop ends what has been started.
        let machine = Machine {
            control: self.control,
            threads: self.threads,
            vcpus,
            pausing: Mutex::default(),
            timeline: self.timeline,
            restart: restart.map_err(os_step("start a thread"))?,
            restarts,
            memory: self.memory,
            pci: self.pci,
            platform: self.platform,
            vm: self.vm,
            kvm,
            ram: self.ram,
        };
        for index in 0..machine.threads.cells().len() {
            let spawned = machine.threads.spawn(&machine.vcpus.context, index);
            spawned.map_err(os_step("start a thread"))?;
        }
        if !self.pinning.is_empty() {
            machine.threads.pin(&self.pinning)?;
        }
        machine.timeline.done("threads_started");
        Ok(machine)
    }
}

/// Puts the first processor at the kernel's entry. The others wait for its startup message.
pub(crate) fn set_entry(cells: &[&VcpuCell], kernel: GuestAddress) -> Result<(), StartError> {
    let Some(cell) = cells.first() else {
        return Ok(());
    };
    let vcpu = cell.lock();
    let reset = vcpu.get_sregs().map_err(kvm_step("read registers"))?;
    vcpu.set_sregs(&entry::sregs(reset))
        .map_err(kvm_step("set segments"))?;
    vcpu.set_regs(&entry::regs(kernel))
        .map_err(kvm_step("set registers"))
}

/// Ends or resets the machine when its guest asks for it. Holds the threads weakly: they hold the
/// devices that hold this.
fn on_request(
    control: &Arc<Control>,
    threads: &Arc<VcpuThreads>,
) -> impl Fn(MachineEvent) + Send + Sync + 'static {
    let (control, threads) = (Arc::clone(control), Arc::downgrade(threads));
    move |request| {
        match request {
            MachineEvent::PowerOff => {
                control.order_reset(RestartCause::PowerOff);
            }
            MachineEvent::AcpiReset | MachineEvent::KeyboardReset => {
                control.order_reset(RestartCause::Guest);
            }
        }
        if let Some(threads) = threads.upgrade() {
            threads.kick();
        }
    }
}

/// What the console says before a reset that the guest has not asked for.
const EXPIRED: &str = "\r\npodvisor: the guest did not come back to its watchdog, it is reset\r\n";

/// Resets the machine, or ends it, when its watchdog expires.
fn on_expiry(
    control: &Arc<Control>,
    threads: &Arc<VcpuThreads>,
    terminal: &Terminal,
) -> impl Fn() + Send + Sync + 'static {
    let (control, threads) = (Arc::clone(control), Arc::downgrade(threads));
    let terminal = terminal.clone();
    move || {
        terminal.force(EXPIRED.as_bytes());
        control.order_reset(RestartCause::Watchdog);
        if let Some(threads) = threads.upgrade() {
            threads.kick();
        }
    }
}

fn watchdog_slot(config: WatchdogConfig, on_expiry: OnExpiry) -> PlainSlot {
    let WatchdogConfig { limit, address, io } = config;
    PlainSlot {
        name: "watchdog",
        address,
        make: Box::new(move |bar| Ok(Arc::new(Watchdog::new(limit, io, bar, on_expiry)?))),
    }
}

/// Ends the machine when one of its devices cannot go on: a pod without its network, its files
/// or its agent is of no use.
fn on_failure(control: &Arc<Control>, threads: &Arc<VcpuThreads>) -> OnFailure {
    let (control, threads) = (Arc::clone(control), Arc::downgrade(threads));
    Arc::new(move |device, cause| {
        let (device, cause) = (device.to_owned(), cause.to_owned());
        control.order_end(EndReason::DeviceFailed { device, cause });
        if let Some(threads) = threads.upgrade() {
            threads.kick();
        }
    })
}

/// Places the devices that are not on PCI.
fn place_platform(
    config: &mut VmConfig,
    vm: &VmFd,
    buses: &Buses,
    control: &Arc<Control>,
    threads: &Arc<VcpuThreads>,
) -> Result<Platform, PlatformError> {
    let (booted, possible) = (config.processors.booted(), config.processors.possible());
    let cpus = (booted < possible).then(|| plugged_vcpus::slots(possible, booted, threads));
    let platform = PlatformConfig {
        console: config.console,
        terminal: config.terminal.take().unwrap_or_default(),
        output: config.console_output.take(),
        power_button: config.power_button,
        has_events: acpi_config(config).has_events(),
        cpus,
    };
    let requests = on_request(control, threads);
    Platform::place(platform, vm, &buses.ports, requests)
}

/// What becomes of the machine when its guest resets it or switches it off.
fn policies(config: &VmConfig) -> Policies {
    Policies {
        reset: config.on_reset,
        poweroff: config.on_poweroff,
    }
}

/// Makes the processors that the machine begins with, and what makes those that may come.
fn make_vcpus(
    kvm: &Kvm,
    vm: &Arc<VmFd>,
    template: Template,
    config: &VmConfig,
) -> Result<(VcpuMaker, Arc<VcpuThreads>), StartError> {
    let indices = || msrs::saved_indices(kvm).map_err(kvm_step("list its MSRs"));
    let power_on_msrs = policies(config).has_restart().then(indices).transpose()?;
    let maker = VcpuMaker {
        vm: Arc::clone(vm),
        template,
        topology: config.processors.topology(),
        model: config.processors.model,
        power_on_msrs,
    };
    let cells = (0..config.processors.booted().get()).map(|index| maker.make(index));
    let cells = cells.collect::<Result<Vec<_>, _>>()?;
    let threads = VcpuThreads::new(cells, config.processors.possible().get());
    Ok((maker, Arc::new(threads)))
}
