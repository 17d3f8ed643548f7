//! A guest to try machines on: our kernel, and busybox with a script as its init. What the script
//! prints goes to the kernel's log and so to the console.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podvisor_tests::{InitialImage, node, wait};
use podvisor_vmm::{
    Console, DeviceSlot, EndReason, EventSink, KernelArgs, MemoryBacking, MemorySize, ResetPolicy,
    Vcpus, Vm, VmConfig, VmEvent, VmHandle,
};
use tempfile::TempDir;

/// An emulated processor boots a guest in some ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

const BUSYBOX: &str = "/bin/busybox";
const ARGS: &str = "console=ttyS0 panic=-1 printk.devkmsg=on";
const MIB: u64 = 1 << 20;

/// What the script begins with.
const PROLOGUE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec > /dev/kmsg 2>&1
";

/// A machine to be.
pub struct Guest {
    folder: TempDir,
    config: VmConfig,
}

/// A machine that runs.
pub struct Running {
    pub vm: VmHandle,
    events: Receiver<VmEvent>,
    _folder: TempDir,
}

impl Guest {
    /// One processor, 128 MiB, no devices; `script` is the init.
    pub fn new(script: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let initrd = folder.path().join("initrd");
        fs::write(&initrd, initial_image(script)?)?;
        let config = VmConfig {
            processors: Vcpus::try_from(1)?.into(),
            memory: MemorySize::from_bytes(128 * MIB)?,
            memory_backing: MemoryBacking::TransparentHugePages,
            hot_memory: None,
            numa: None,
            generation_id: None,
            smbios: None,
            kernel: node::release()?.join("vmlinux"),
            initrd: Some(initrd),
            kernel_args: KernelArgs::new(ARGS)?,
            console: Console::Log,
            terminal: None,
            console_output: None,
            power_button: false,
            on_reset: ResetPolicy::End,
            on_poweroff: ResetPolicy::End,
            watchdog: None,
            devices: Vec::new(),
        };
        Ok(Self { folder, config })
    }

    pub fn kernel(mut self, path: PathBuf) -> Self {
        self.config.kernel = path;
        self
    }

    pub fn size(mut self, vcpus: u32, memory_mib: u64) -> Result<Self> {
        self.config.processors = Vcpus::try_from(vcpus)?.into();
        self.config.memory = MemorySize::from_bytes(memory_mib * MIB)?;
        Ok(self)
    }

    pub fn args(mut self, more: &str) -> Result<Self> {
        self.config.kernel_args = KernelArgs::new(&format!("{ARGS} {more}"))?;
        Ok(self)
    }

    pub fn with_power_button(mut self) -> Self {
        self.config.power_button = true;
        self.config.console = Console::Terminal;
        self
    }

    /// Changes whatever else there is to change.
    pub fn with(mut self, change: impl FnOnce(&mut VmConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn restarting(mut self) -> Self {
        self.config.on_reset = ResetPolicy::Restart;
        self
    }

    pub fn devices(mut self, devices: Vec<DeviceSlot>) -> Self {
        self.config.devices = devices;
        self
    }

    pub fn start(self) -> Result<Running> {
        let (sink, events) = events();
        let vm = Vm::start(self.config, sink)?;
        Ok(Running {
            vm,
            events,
            _folder: self.folder,
        })
    }

    /// Goes on from another machine's state, on its memory. The new machine is paused.
    pub fn restore(self, before: Running, state: &[u8]) -> Result<Running> {
        let (sink, events) = events();
        let ram = before.vm.guest_ram().clone();
        drop(before);
        let vm = Vm::restore(self.config, ram, state, sink)?;
        Ok(Running {
            vm,
            events,
            _folder: self.folder,
        })
    }
}

impl Running {
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.vm.console_tail()).into_owned()
    }

    /// Waits until the console has `text`, and returns the rest of that line.
    pub fn line(&self, text: &str) -> Result<String> {
        let found = wait::until(text, PATIENCE, || {
            let console = self.console();
            let rest = console
                .split_once(text)
                .and_then(|(_, rest)| rest.split_once('\n'));
            Ok(rest.map(|(line, _)| line.trim().to_owned()))
        });
        found.with_context(|| format!("console:\n{}", self.console()))
    }

    /// Waits for the machine's end.
    pub fn end(&self) -> Result<EndReason> {
        match self.event()? {
            VmEvent::Ended(reason) => Ok(reason),
            other => bail!("{other:?}; console:\n{}", self.console()),
        }
    }

    /// Waits for the machine's next event.
    pub fn event(&self) -> Result<VmEvent> {
        let event = self.events.recv_timeout(PATIENCE);
        event.with_context(|| format!("console:\n{}", self.console()))
    }

    /// Waits for the machine's end and makes sure that it ended by itself.
    pub fn shutdown(&self) -> Result<()> {
        match self.end()? {
            EndReason::Shutdown => Ok(()),
            other => bail!("{other}; console:\n{}", self.console()),
        }
    }
}

fn events() -> (EventSink, Receiver<VmEvent>) {
    let (sender, events) = mpsc::channel();
    // The test may have stopped listening.
    let sink = Box::new(move |event| sender.send(event).unwrap_or_default());
    (sink, events)
}

fn initial_image(script: &str) -> Result<Vec<u8>> {
    let busybox = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?;
    let init = format!("{PROLOGUE}{script}\n");
    let image = ["bin", "dev", "proc", "sys"]
        .into_iter()
        .fold(InitialImage::new(), InitialImage::folder);
    Ok(image
        .program("bin/busybox", &busybox)
        .program("init", init.as_bytes())
        .finish())
}
