//! The same disk in QEMU: SeaBIOS, GRUB and a q35 with virtio devices.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podvisor_seed::{Identity, Seed, UserData};
use podvisor_tests::console::{LOGIN, PROMPT};
use podvisor_tests::registry;
use tempfile::TempDir;

use super::{BOOT_LIMIT, LAYOUT, MEMORY_MIB, USER_DATA};

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
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }
}

/// Waits until the console shows the prompt; asks for it where it is silent.
fn wait_for_prompt(emulator: &mut Child, begin: Instant) -> Result<()> {
    let output = emulator.stdout.take().context("no console")?;
    let mut input = emulator.stdin.take().context("no console")?;
    let (sender, pieces) = mpsc::channel();
    // It ends with the emulator, whose end of the pipe it reads.
    thread::spawn(move || send_pieces(output, &sender));
    let mut shown = Vec::new();
    loop {
        match pieces.recv_timeout(PROMPT) {
            Ok(piece) => shown.extend(piece),
            Err(RecvTimeoutError::Timeout) => input.write_all(b"\n")?,
            Err(RecvTimeoutError::Disconnected) => {
                bail!("QEMU ended: {}", String::from_utf8_lossy(&shown))
            }
        }
        let mut windows = shown.windows(LOGIN.len());
        if windows.any(|text| text == LOGIN.as_bytes()) {
            return Ok(());
        }
        if begin.elapsed() > BOOT_LIMIT {
            bail!("no prompt: {}", String::from_utf8_lossy(&shown));
        }
    }
}

/// Passes on what is written, until its end.
fn send_pieces(mut output: ChildStdout, pieces: &Sender<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = output.read(&mut piece) {
        let Some(new) = piece.get(..len) else { break };
        if pieces.send(new.to_vec()).is_err() {
            break;
        }
    }
}
