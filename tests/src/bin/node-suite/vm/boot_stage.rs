//! The boot stage of a machine, without a pod: it finds what a disk boots, starts that kernel, and
//! says why another disk does not boot.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::fs::{
    CachePolicy, ExportOptions, Exports, FsConfig, FsTag, VirtioFs, Writes,
};
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::{Block, BlockConfig, BlockSerial};
use podvisor_devices::vsock::{Vsock, VsockConfig, VsockHost};
use podvisor_proto::agent::v1::boot_source::Kind;
use podvisor_proto::agent::v1::{
    AgentClient, BootMachineRequest, BootMachineResponse, BootSource, GuestKind,
    StartMachineRequest,
};
use podvisor_proto::agent::{FS_TAG, READY_PORT};
use podvisor_proto::ttrpc::Code;
use podvisor_tests::{node, vsock};
use podvisor_vmm::DeviceSlot;
use podvisor_vmm::confine::{ThreadKind, on_start, spawn_io_loop};
use tokio::runtime::Runtime;

use super::boot_disk::{self, Layout, UUID};
use super::guest::{Guest, Running};
use super::{case, long};
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        case("vm_machine_boots_what_extlinux_names", extlinux),
        long("vm_machine_boots_what_grub_names", grub),
        long("vm_machine_boots_a_unified_image", unified),
        case("vm_machine_boots_a_tree", tree),
        case("vm_machine_that_cannot_boot_says_why", bad_disks),
    ]
}

const EXTLINUX: &[u8] = b"DEFAULT second
LABEL first
  LINUX /boot/vmlinuz-6
  APPEND root=/dev/vda1 layout=first
LABEL second
  MENU LABEL The second
  LINUX ../vmlinuz-6
  FDTDIR /dtbs
  APPEND root=/dev/vda1 layout=extlinux
";

/// As grub-mkconfig writes it, shortened.
const GRUB: &str = "
if [ -s $prefix/grubenv ]; then load_env; fi
set default=\"${saved_entry}\"
function load_video { if [ x$feature_all_video_module = xy ]; then insmod all_video; fi; }
menuentry 'Default' --class os $menuentry_id_option 'simple' {
	load_video
	search --no-floppy --fs-uuid --set=root UUID
	linux	/boot/vmlinuz-6 root=/dev/vda1 layout=wrong
}
submenu 'Advanced' --id 'advanced' {
	menuentry 'Saved' --id 'saved' {
		search --no-floppy --fs-uuid --set=root UUID
		linux	/vmlinuz root=/dev/vda1 layout=grub quoted=\"a b\"
	}
}
";
/// It finds what an initial image leaves mounted.
const TREE_INIT: &str = "#!/bin/busybox sh
echo 'by the machine' > /etc/written
exec > /dev/kmsg 2>&1
echo \"machine: $(/bin/busybox cat /proc/cmdline)\"
/bin/busybox poweroff -f
";
const GRUB_ENV: &[u8] = b"# GRUB Environment Block\nsaved_entry=advanced>saved\n#######";

/// A guest in its boot stage, and the way to its agent.
pub struct BootStage {
    pub guest: Running,
    pub host: VsockHost,
    pub runtime: Runtime,
}

impl BootStage {
    /// A machine with these disks, by their serial numbers.
    pub fn start(disks: &[(&str, &Path)]) -> Result<Self> {
        let disks = disks.iter().map(|(serial, path)| disk(serial, path));
        Self::with(disks.collect::<Result<_>>()?)
    }

    /// A machine with these devices.
    fn with(more: Vec<DeviceSlot>) -> Result<Self> {
        let io = spawn_io_loop()?;
        let config = VsockConfig {
            guest_cid: 3,
            ready_port: READY_PORT,
        };
        let (device, host) = Vsock::new(config, io)?;
        let mut devices = vec![DeviceSlot {
            name: "vsock".to_owned(),
            address: None,
            device: Box::new(device),
        }];
        devices.extend(more);
        let initrd = node::release()?.join("machine-initrd.cpio");
        let guest = Guest::new("")?
            .size(1, 256)?
            .with(|config| config.initrd = Some(initrd))
            .devices(devices)
            .start()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            guest,
            host,
            runtime,
        })
    }

    /// Waits for the agent of this kind, and connects to it.
    pub fn agent(&self, kind: GuestKind) -> Result<AgentClient> {
        let connect = async {
            let ready = vsock::ready(&self.host).await?;
            ensure!(ready.kind() == kind, "{ready:?}");
            vsock::agent(&self.host).await
        };
        let connected = self.runtime.block_on(connect);
        connected.with_context(|| format!("console:\n{}", self.guest.console()))
    }

    /// Has a kernel loaded from there.
    pub fn boot(&self, agent: &AgentClient, source: Kind) -> Result<BootMachineResponse> {
        let request = BootMachineRequest {
            sources: vec![BootSource { kind: Some(source) }],
            kernel_args: vec!["more=1".to_owned()],
            preferred_entry: String::new(),
        };
        let booted = self.runtime.block_on(agent.boot_machine(request));
        booted.with_context(|| format!("console:\n{}", self.guest.console()))
    }

    /// Starts the loaded kernel.
    pub fn jump(&self, agent: &AgentClient) {
        // The answer may be lost with the devices.
        let _ = self
            .runtime
            .block_on(agent.start_machine(StartMachineRequest {}));
    }

    /// Starts the loaded kernel and returns what the machine's own init says of its command line.
    fn run(&self, agent: &AgentClient) -> Result<String> {
        self.jump(agent);
        let line = self.guest.line("machine: ")?;
        self.guest.shutdown()?;
        Ok(line)
    }
}

fn disk(serial: &str, path: &Path) -> Result<DeviceSlot> {
    let thread = EventLoop::spawn(serial, Box::new(on_start(ThreadKind::Disk)))?;
    let source = ImageSource {
        file: File::options().read(true).write(true).open(path)?,
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    let backend = image::open(source, ImageOptions::default())?;
    let config = BlockConfig {
        read_only: false,
        serial: BlockSerial::try_from(serial)?,
        ..BlockConfig::default()
    };
    Ok(DeviceSlot {
        name: serial.to_owned(),
        address: None,
        device: Box::new(Block::new(config, backend, thread)?),
    })
}

/// Boots a disk of one partition with these files.
fn boots(files: &[(&str, &[u8])], expected: &BootMachineResponse) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let layout = Layout {
        files,
        ..Layout::default()
    };
    let disk = boot_disk::write(folder.path(), "root", &layout)?;
    boots_disk(&disk, expected)
}

/// Boots a disk and compares what was told with what came.
pub fn boots_disk(disk: &Path, expected: &BootMachineResponse) -> Result<()> {
    let before = hash(disk)?;
    let stage = BootStage::start(&[("root", disk)])?;
    let agent = stage.agent(GuestKind::BootStage)?;
    let booted = stage.boot(&agent, Kind::DiskSerial("root".to_owned()))?;
    ensure!(booted.kernel_release.ends_with("-podvisor"), "{booted:?}");
    ensure!(before == hash(disk)?, "the boot stage wrote to the disk");
    let told = BootMachineResponse {
        kernel_release: String::new(),
        ..booted.clone()
    };
    ensure!(told == *expected, "{booted:?}");
    let line = stage.run(&agent)?;
    ensure!(line == booted.command_line, "{line}");
    Ok(())
}

/// Of a file's whole content, which may be longer than is good to have in memory.
fn hash(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            len => hasher.write(buffer.get(..len).unwrap_or_default()),
        }
    }
}

pub fn response(id: &str, title: &str, kernel: &str, args: &str) -> BootMachineResponse {
    BootMachineResponse {
        volume: "vda1 (root)".to_owned(),
        entry_id: id.to_owned(),
        entry_title: title.to_owned(),
        kernel: kernel.to_owned(),
        command_line: format!("{args} console=ttyS0 panic=-1 more=1"),
        ..BootMachineResponse::default()
    }
}

fn extlinux() -> Result<()> {
    let args = "root=/dev/vda1 layout=extlinux";
    boots(
        &[("boot/extlinux/extlinux.conf", EXTLINUX)],
        &response("second", "The second", "/boot/vmlinuz-6", args),
    )
}

fn grub() -> Result<()> {
    let config = GRUB.replace("UUID", UUID);
    boots(
        &[
            ("boot/grub/grub.cfg", config.as_bytes()),
            ("boot/grub/grubenv", GRUB_ENV),
        ],
        &response(
            "saved",
            "Saved",
            "/vmlinuz",
            "root=/dev/vda1 layout=grub \"quoted=a b\"",
        ),
    )
}

fn unified() -> Result<()> {
    let kernel = boot_disk::bzimage()?;
    let image = boot_disk::unified(&[
        (".osrel", b"ID=test\nPRETTY_NAME=\"A test\"\n"),
        (".cmdline", b"root=/dev/vda1 layout=uki\n"),
        (".linux", &kernel),
    ])?;
    boots(
        &[("EFI/Linux/test.efi", &image)],
        &response(
            "test",
            "A test",
            "/EFI/Linux/test.efi",
            "root=/dev/vda1 layout=uki",
        ),
    )
}

/// The root is a folder of the host, which the machine writes to.
fn tree() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let layout = Layout {
        files: &[("etc/kernel/cmdline", b"layout=tree\n")],
        init: Some(TREE_INIT),
        ..Layout::default()
    };
    boot_disk::write_tree(folder.path(), &layout)?;
    let exports = Exports::new()?;
    let options = ExportOptions {
        writes: Writes::Everything,
        cache: CachePolicy::Always,
    };
    exports.add("root-1", File::open(folder.path())?.into(), options)?;
    let on_thread = Arc::new(on_start(ThreadKind::Fs));
    let config = FsConfig::new(FsTag::try_from(FS_TAG)?);
    let device = VirtioFs::new(config, &exports, &(on_thread as _))?;
    let stage = BootStage::with(vec![DeviceSlot::new("fs", device)])?;
    let agent = stage.agent(GuestKind::BootStage)?;
    let booted = stage.boot(&agent, Kind::Tree("root-1".to_owned()))?;
    ensure!(booted.kernel == "/boot/vmlinuz-6", "{booted:?}");
    ensure!(booted.volume == "root-1", "{booted:?}");
    let line = stage.run(&agent)?;
    ensure!(line == booted.command_line, "{line}");
    ensure!(
        line == "layout=tree rw console=ttyS0 panic=-1 more=1",
        "{line}"
    );
    let written = fs::read_to_string(folder.path().join("etc/written"))?;
    ensure!(written == "by the machine\n", "{written}");
    Ok(())
}

fn bad_disks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let blank = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        let mut disk = content.to_vec();
        disk.resize(1 << 20, 0);
        fs::write(&path, disk).map(|()| path)
    };
    let with = |name: &str, files: &[(&str, &[u8])]| {
        let layout = Layout {
            files,
            without_kernel: true,
            ..Layout::default()
        };
        boot_disk::write(folder.path(), name, &layout)
    };
    let windows = b"menuentry 'Windows' { chainloader +1\n }\n";
    let text = b"menuentry 'A' { linux /boot/vmlinuz-6.12\n }\n";
    let disks = [
        (
            "empty",
            blank("empty", b"")?,
            "no partition table and no file system: nothing at its beginning",
        ),
        (
            "unknown",
            blank("unknown", b"no format at all")?,
            "no partition table and no file system: nothing that is known",
        ),
        (
            "luks",
            blank("luks", b"LUKS\xba\xbe")?,
            "encrypted with LUKS",
        ),
        (
            "bare",
            with("bare", &[])?,
            "MBR partition table, vda1 is ext4, label \"root\", no boot configuration and no kernel",
        ),
        (
            "chain",
            with("chain", &[("boot/grub/grub.cfg", windows)])?,
            "a GRUB configuration without a Linux entry: entry \"Windows\" runs chainloader",
        ),
        (
            "text",
            with(
                "text",
                &[
                    ("boot/grub/grub.cfg", text),
                    ("boot/vmlinuz-6.12", b"#!/bin/sh\n"),
                ],
            )?,
            "kernel /boot/vmlinuz-6.12 is not a bzImage, but a script",
        ),
    ];
    let attached: Vec<(&str, &Path)> = disks
        .iter()
        .map(|(serial, path, _)| (*serial, path.as_path()))
        .collect();
    let stage = BootStage::start(&attached)?;
    let agent = stage.agent(GuestKind::BootStage)?;
    for (index, (serial, _, expected)) in disks.iter().enumerate() {
        let letter = char::from(b'a' + u8::try_from(index)?);
        let expected = expected.replace("vda", &format!("vd{letter}"));
        let why = refusal(&stage, &agent, serial)?;
        ensure!(why.contains(&expected), "{serial}: '{why}'");
    }
    let why = refusal(&stage, &agent, "nowhere")?;
    ensure!(why.contains("disk nowhere: it is not there"), "{why}");
    let started = stage
        .runtime
        .block_on(agent.start_machine(StartMachineRequest {}));
    match started {
        Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
        other => bail!("started without a kernel: {other:?}"),
    }
}

/// Why a disk cannot be booted.
fn refusal(stage: &BootStage, agent: &AgentClient, serial: &str) -> Result<String> {
    let request = BootMachineRequest {
        sources: vec![BootSource {
            kind: Some(Kind::DiskSerial(serial.to_owned())),
        }],
        ..BootMachineRequest::default()
    };
    match stage.runtime.block_on(agent.boot_machine(request)) {
        Err(status) if status.code() == Code::FailedPrecondition => Ok(status.message().to_owned()),
        other => bail!("{serial}: {other:?}"),
    }
}
