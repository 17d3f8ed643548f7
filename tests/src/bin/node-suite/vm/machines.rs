//! Machines of all shapes boot, and can be stopped, continued and moved.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::{
    Balloon, BalloonConfig, Block, BlockConfig, BlockSerial, Rng, RngConfig,
};
use podvisor_devices::vsock::{Vsock, VsockConfig};
use podvisor_vmm::confine::{ThreadKind, on_start, spawn_io_loop};
use podvisor_vmm::{DeviceSlot, EndReason, OrderError};

use super::case;
use super::guest::Guest;
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "vm_guests_see_their_processors_and_memory",
            processors_and_memory,
        ),
        case("vm_boots_a_bzimage", bzimage),
        case("vm_devices_work_under_their_filters", devices),
        case("vm_power_button_interrupts_the_guest", power_button),
        case("vm_paused_guest_stands_still", pause),
        case("vm_goes_on_from_a_saved_state", save_and_restore),
        case("vm_leaves_no_thread_file_or_memory", leftovers),
    ]
}

const REPORT: &str =
    "echo report: processors $(nproc) memory $(awk '/MemTotal/{print $2}' /proc/meminfo)
poweroff -f";
const TICKS: &str = "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.1; done";

fn processors_and_memory() -> Result<()> {
    for (vcpus, memory_mib) in [(1, 128), (2, 256), (8, 8192)] {
        let guest = Guest::new(REPORT)?.size(vcpus, memory_mib)?.start()?;
        let line = guest.line("report: processors ")?;
        guest.shutdown()?;
        let (processors, kib) = line.split_once(" memory ").context("no report")?;
        ensure!(
            processors == vcpus.to_string(),
            "{processors} processors of {vcpus}"
        );
        let seen_mib = kib.parse::<u64>()? / 1024;
        ensure!(
            (memory_mib * 9 / 10 - 32..memory_mib).contains(&seen_mib),
            "{seen_mib} MiB of {memory_mib}"
        );
    }
    Ok(())
}

fn bzimage() -> Result<()> {
    let path = std::env::var_os("PODVISOR_BZIMAGE").context("PODVISOR_BZIMAGE names no kernel")?;
    let guest = Guest::new(REPORT)?.kernel(PathBuf::from(path)).start()?;
    guest.line("report: processors 1")?;
    guest.shutdown()
}

/// The devices that need nothing of the host.
pub(super) fn some_devices(disk: &std::path::Path) -> Result<Vec<DeviceSlot>> {
    let io = spawn_io_loop()?;
    let rng = Rng::new(
        RngConfig {
            bytes_per_second: None,
        },
        io.clone(),
    )?;
    let (balloon, _) = Balloon::new(BalloonConfig { reporting: true }, io.clone());
    let (vsock, _) = Vsock::new(
        VsockConfig {
            guest_cid: 3,
            ready_port: 1024,
        },
        io,
    )?;
    let thread = EventLoop::spawn("disk0", Box::new(on_start(ThreadKind::Disk)))?;
    let source = ImageSource {
        file: File::options().read(true).write(true).open(disk)?,
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    let backend = image::open(source, ImageOptions::default())?;
    let serial = BlockSerial::try_from("disk0")?;
    let block = Block::new(
        BlockConfig {
            read_only: false,
            serial,
            ..BlockConfig::default()
        },
        backend,
        thread,
    )?;
    Ok(vec![
        DeviceSlot {
            name: "rng".to_owned(),
            address: None,
            device: Box::new(rng),
        },
        DeviceSlot {
            name: "balloon".to_owned(),
            address: None,
            device: Box::new(balloon),
        },
        DeviceSlot {
            name: "vsock".to_owned(),
            address: None,
            device: Box::new(vsock),
        },
        DeviceSlot {
            name: "disk".to_owned(),
            address: None,
            device: Box::new(block),
        },
    ])
}

fn devices() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, [b"from the host".as_slice(), &[0; 8 << 20]].concat())?;
    let script = "head -c 32 /dev/hwrng | wc -c | sed 's/^/random /'
head -c 13 /dev/vda | sed 's/$/ read/'
printf 'from the guest' | dd of=/dev/vda bs=512 seek=1 conv=notrunc,sync,fsync 2>/dev/null
dd if=/dev/vda of=/dev/null bs=1M 2>&1 | tail -1
ls /sys/bus/virtio/drivers/*/ | grep -c virtio | sed 's/^/bound /'
poweroff -f";
    let guest = Guest::new(script)?.devices(some_devices(&disk)?).start()?;
    guest.shutdown()?;
    let console = guest.console();
    for expected in ["random 32", "from the host read"] {
        ensure!(console.contains(expected), "no '{expected}' in:\n{console}");
    }
    let written = fs::read(&disk)?;
    ensure!(
        written.get(512..526) == Some(b"from the guest".as_slice()),
        "nothing written"
    );
    Ok(())
}

fn power_button() -> Result<()> {
    let script = "echo waiting; while ! grep -q '[1-9].*Ged' /proc/interrupts; do sleep 0.1; done
echo pressed; poweroff -f";
    let guest = Guest::new(script)?.with_power_button().start()?;
    guest.line("waiting")?;
    guest.vm.power_button()?;
    guest.line("pressed")?;
    guest.shutdown()?;
    let without = Guest::new(TICKS)?.start()?;
    let refused = without.vm.power_button();
    ensure!(
        matches!(refused, Err(OrderError::NoPowerButton)),
        "{refused:?}"
    );
    Ok(())
}

fn pause() -> Result<()> {
    let guest = Guest::new(TICKS)?.size(2, 128)?.start()?;
    guest.line("tick 3")?;
    for _ in 0..3 {
        guest.vm.pause()?;
        let before = guest.console();
        std::thread::sleep(Duration::from_secs(1));
        ensure!(guest.console() == before, "a paused guest went on");
        guest.vm.resume()?;
        let ticks = before.matches("tick ").count();
        guest.line(&format!("tick {}", ticks + 3))?;
    }
    guest.vm.stop();
    ensure!(guest.end()? == EndReason::Killed);
    ensure!(
        matches!(guest.vm.pause(), Err(OrderError::Ended)),
        "paused a dead guest"
    );
    Ok(())
}

fn save_and_restore() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20])?;
    let script = "i=0; while true; do i=$((i+1)); head -c 8 /dev/hwrng >/dev/null && echo tick $i
dd if=/dev/vda of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null || echo disk failed; sleep 0.1; done";
    let make = || {
        Guest::new(script)?
            .size(2, 256)?
            .devices(some_devices(&disk)?)
            .args("loglevel=5")
    };
    let mut guest = make()?.start()?;
    for round in 1..=3 {
        let target = round * 10;
        guest.line(&format!("tick {target}"))?;
        guest.vm.pause()?;
        let state = guest.vm.save()?;
        guest = make()?.restore(guest, &state)?;
        guest.vm.resume()?;
    }
    guest.line("tick 40")?;
    ensure!(
        !guest.console().contains("disk failed"),
        "{}",
        guest.console()
    );
    Ok(())
}

/// Threads, open files and mapped memory of this process, the last in MiB.
fn own_resources() -> Result<(usize, usize, u64)> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    let files = fs::read_dir("/proc/self/fd")?.count();
    let status = fs::read_to_string("/proc/self/statm")?;
    let pages = status
        .split(' ')
        .next()
        .context("no size")?
        .parse::<u64>()?;
    Ok((threads, files, pages >> 8))
}

fn leftovers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20])?;
    let run = || {
        let devices = some_devices(&disk)?;
        let guest = Guest::new(TICKS)?.size(2, 1024)?.devices(devices).start()?;
        guest.line("tick 1")?;
        Ok::<_, anyhow::Error>(())
    };
    run()?;
    let (threads, files, mib) = own_resources()?;
    run()?;
    let after = own_resources()?;
    ensure!(
        after.0 == threads && after.1 == files,
        "{threads} threads, {files} files before, {after:?} after"
    );
    ensure!(after.2 < mib + 512, "{mib} MiB before, {} after", after.2);
    Ok(())
}
