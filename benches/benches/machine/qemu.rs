//! The same disk in QEMU: SeaBIOS, GRUB and a q35 with virtio devices.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podvisor_seed::{Identity, Seed, UserData};
use podvisor_tests::registry;
use tempfile::TempDir;

use super::{BOOT_LIMIT, LAYOUT, MEMORY_MIB, PROMPT, USER_DATA};

/// What QEMU boots.
pub struct Machine {
    folder: TempDir,
    disk: PathBuf,
}

impl Machine {
    /// Takes the disk out of the image, and makes a seed like the one of a pod.
    ///
    /// # Errors
    /// When the node does not serve the image.
    pub fn prepare() -> Result<Self> {
        let folder = tempfile::tempdir_in("/var/tmp")?;
        let disk = registry::unpack_disk(LAYOUT, folder.path())?;
        let seed = Seed {
            identity: Identity {
                instance_id: "bench".into(),
                hostname: "bench".into(),
                ssh_keys: Vec::new(),
            },
            user: UserData::inline(USER_DATA)?,
            ..Seed::default()
        };
        let machine = Self { folder, disk };
        fs::write(machine.seed(), seed.to_disk()?)?;
        Ok(machine)
    }

    fn seed(&self) -> PathBuf {
        self.folder.path().join("seed.raw")
    }

    /// Boots it; yields the time from the exec to the login prompt.
    ///
    /// # Errors
    /// When there is no prompt.
    pub fn boot(&self) -> Result<Duration> {
        let begin = Instant::now();
        let mut emulator = self.command().spawn().context("qemu-system-x86_64")?;
        let shown = wait_for_prompt(&mut emulator, begin);
        let took = begin.elapsed();
        emulator.kill()?;
        emulator.wait()?;
        shown.map(|()| took)
    }

    fn command(&self) -> Command {
        let drive = |id: &str, format: &str, file: PathBuf| {
            format!(
                "if=none,id={id},format={format},snapshot=on,file={}",
                file.display()
            )
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1"])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(["-display", "none", "-vga", "none", "-monitor", "none"])
            .args(["-no-reboot", "-serial", "stdio"])
            .args(["-drive", &drive("disk", "qcow2", self.disk.clone())])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args(["-drive", &drive("seed", "raw", self.seed())])
            .args(["-device", "virtio-blk-pci,drive=seed"])
            .args(["-nic", "user,model=virtio-net-pci"])
            .args(["-device", "virtio-rng-pci"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }
}

/// Reads the console until it shows the prompt.
fn wait_for_prompt(emulator: &mut Child, begin: Instant) -> Result<()> {
    let mut console = emulator.stdout.take().context("no console")?;
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let len = console.read(&mut piece)?;
        let Some(new) = piece.get(..len).filter(|new| !new.is_empty()) else {
            bail!("QEMU ended: {}", String::from_utf8_lossy(&shown));
        };
        shown.extend_from_slice(new);
        if shown
            .windows(PROMPT.len())
            .any(|text| text == PROMPT.as_bytes())
        {
            return Ok(());
        }
        if begin.elapsed() > BOOT_LIMIT {
            bail!("no prompt: {}", String::from_utf8_lossy(&shown));
        }
    }
}
