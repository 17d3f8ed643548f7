//! The emulated machine: QEMU's command line.
//!
//! On a machine without real virtualization QEMU emulates a processor with AMD's (TCG), which makes /dev/kvm in the
//! node complete, only slow.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::rundir::{RunDir, Share};

/// How the node's processors advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Clock {
    /// As fast as they can.
    #[default]
    Wall,
    /// One nanosecond an instruction: times of CPU-bound paths repeat whatever else this machine does.
    Instructions,
}

/// What a machine is made of.
pub struct Machine<'a> {
    /// Folder of `vmlinuz`, `initrd` and `modules.erofs`.
    pub kernel: &'a Path,
    /// The root file system's image.
    pub root: &'a Path,
    /// The shared folder and the data disk.
    pub run: &'a RunDir,
    /// More folders to share.
    pub shares: &'a [Share],
    /// How time passes.
    pub clock: Clock,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Names and sockets of the serial bus's ports; the sockets must stay open across exec.
    pub ports: &'a [(&'static str, RawFd)],
    /// The socket of QEMU's own command line; it, too, must stay open across exec.
    pub monitor: Option<RawFd>,
}

impl Machine<'_> {
    /// The command that runs the machine until it powers off.
    pub fn command(&self) -> Command {
        // A node does not outlive who started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        self.add_processor(&mut command);
        command
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-display", "none", "-vga", "none"])
            .args(["-nic", "none", "-no-reboot"])
            .arg("-serial")
            .arg(with_path("file:", &self.run.console_log()))
            .arg("-kernel")
            .arg(self.kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.kernel.join("initrd"))
            // The node trusts what runs in it; its mitigations would only slow the emulation down.
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off audit=0",
            ])
            .args(["-device", "virtio-rng-pci"]);
        add_disk(&mut command, "root", self.root, "readonly=on");
        add_disk(&mut command, "data", &self.run.data_disk(), "discard=unmap");
        add_disk(
            &mut command,
            "modules",
            &self.kernel.join("modules.erofs"),
            "readonly=on",
        );
        add_share(&mut command, "node", &self.run.shared());
        for (index, share) in self.shares.iter().enumerate() {
            add_share(&mut command, &RunDir::tag(index), &share.folder);
        }
        match self.monitor {
            Some(socket) => command
                .args(["-chardev", &format!("socket,id=monitor,fd={socket}")])
                .args(["-mon", "chardev=monitor,mode=readline"]),
            None => command.args(["-monitor", "none"]),
        };
        command.args(["-device", "virtio-serial-pci"]);
        for (name, socket) in self.ports {
            command
                .args(["-chardev", &format!("socket,id={name},fd={socket}")])
                .args([
                    "-device",
                    &format!("virtserialport,chardev={name},name=podvisor.{name}"),
                ]);
        }
        command
    }

    /// An emulated node has one processor. With several, each emulated by a thread of its own, kernels that patch their code
    /// while another processor runs it (the node's and the guests') now and then die: a thread can go on with what it had
    /// translated before.
    fn add_processor(&self, command: &mut Command) {
        if self.clock == Clock::Wall && has_virtualization() {
            command.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]);
            return;
        }
        // String moves byte by byte are how these two features are emulated: copying memory would look twice too dear.
        command
            .args(["-accel", "tcg", "-smp", "1"])
            .args(["-cpu", "max,-erms,-fsrm"]);
        if self.clock == Clock::Instructions {
            command.args(["-icount", "shift=0,sleep=on"]);
        }
    }
}

/// Whether this machine's processor virtualizes. A /dev/kvm alone says nothing: some exist that only emulate.
pub fn has_virtualization() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let supported = flags
        .split_whitespace()
        .any(|word| word == "svm" || word == "vmx");
    supported && Path::new("/dev/kvm").exists()
}

/// What the host cannot write is the node's to report: by default QEMU would stop it without a word when the host's disk is full.
fn add_disk(command: &mut Command, id: &str, file: &Path, option: &str) {
    let prefix = format!("if=none,id={id},format=raw,cache=unsafe,werror=report,{option},file=");
    command
        .arg("-drive")
        .arg(with_path(&prefix, file))
        .args(["-device", &format!("virtio-blk-pci,drive={id}")]);
}

fn add_share(command: &mut Command, tag: &str, folder: &Path) {
    let prefix = format!("local,mount_tag={tag},security_model=none,multidevs=remap,path=");
    command.arg("-virtfs").arg(with_path(&prefix, folder));
}

/// An option whose last value is a path; QEMU wants commas doubled.
fn with_path(prefix: &str, path: &Path) -> PathBuf {
    PathBuf::from(format!(
        "{prefix}{}",
        path.display().to_string().replace(',', ",,")
    ))
}
