//! Machines that outlive their pods: their disk is a volume.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_tests::{Console, ContainerBuilder, Cri, LoopDevice, Pod, PodBuilder, wait};

use super::{
    BUSYBOX, BUSYBOX_BOOT, BUSYBOX_RAW, logged_in, machine, machine_pod, transcript, wait_for_log,
};
use crate::case::{Case, gate, long};
use crate::volumes::NodeMount;

/// A little longer than the image's disk, which has 96 MiB.
const VOLUME_LEN: u64 = 128 << 20;
const GRACE: Duration = Duration::from_secs(60);
/// All that makes a machine the same one.
const WHO: &str = "cat /etc/machine-id /sys/class/dmi/id/product_uuid \
    /sys/class/dmi/id/product_serial /sys/class/net/eth0/address";

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_block_volume_is_a_machine_for_good", block),
        gate("a_folder_holds_a_machines_disk_for_good", folder),
        long("a_fill_that_was_broken_off_is_done_again", broken_off),
        long("volumes_that_cannot_be_filled_say_why", refused),
        long("a_full_volume_is_told_and_loses_nothing", full),
    ]
}

fn pet<'c>(cri: &'c Cri, name: &str) -> PodBuilder<'c> {
    machine_pod(cri, name).called(&format!("{name}-0"))
}

/// Boots the machine of a pod, asks who it is, and has it end.
fn visit(pod: &Pod<'_>, machine: ContainerBuilder<'_, '_>, boots: u32) -> Result<(String, String)> {
    let machine = machine.start()?;
    let (who, counted) = (|| {
        let mut console = logged_in(&machine)?;
        let counted = console.run("cat /var/boots")?;
        anyhow::Ok((console.run(WHO)?, counted))
    })()
    .with_context(|| transcript(&machine))?;
    ensure!(
        counted == boots.to_string(),
        "boot {counted} instead of {boots} of {}",
        pod.id
    );
    machine.stop(GRACE)?;
    Ok((who, machine.log()?.stdout))
}

fn block(cri: &Cri) -> Result<()> {
    let disk = LoopDevice::new(VOLUME_LEN)?;
    let on_disk = |pod: &Pod<'_>, image: &str, boots| {
        let machine = machine(pod, image).device(disk.path(), "/", "mrw");
        visit(pod, machine, boots)
    };
    let pod = pet(cri, "block").run()?;
    let (first, _) = on_disk(&pod, BUSYBOX, 1)?;
    pod.remove()?;
    drop(pod);
    // Another image has another disk, which is told and not applied.
    let pod = pet(cri, "block").run()?;
    let (second, log) = on_disk(&pod, BUSYBOX_RAW, 2)?;
    ensure!(first == second, "another machine: {first}, then {second}");
    let told = log.lines().find(|line| line.starts_with("podvisor: "));
    ensure!(
        told.is_some_and(|line| line.contains("busybox.raw") && line.contains("busybox.qcow2")),
        "a changed image is not told: {log}"
    );
    drop(pod);
    // The disk alone does not make it the same machine: another name, another identity.
    let pod = pet(cri, "other").run()?;
    let (third, _) = on_disk(&pod, BUSYBOX, 3)?;
    let [first, third] = [first, third].map(|who| {
        let lines: Vec<String> = who.lines().map(str::to_owned).collect();
        lines
    });
    ensure!(first.first() == third.first(), "another disk");
    for (before, now) in first.iter().zip(&third).skip(1) {
        ensure!(before != now, "{before} is of both pods");
    }
    Ok(())
}

fn folder(cri: &Cri) -> Result<()> {
    let volume = tempfile::tempdir_in("/var/tmp")?;
    let in_folder = |pod: &Pod<'_>, boots| visit(pod, machine_in(pod, volume.path()), boots);
    let pod = pet(cri, "folder").run()?;
    let (first, _) = in_folder(&pod, 1)?;
    drop(pod);
    let file = volume.path().join("disk.img");
    ensure!(file.exists(), "no disk.img: {:?}", entries(volume.path())?);
    let pod = pet(cri, "folder").run()?;
    let (second, _) = in_folder(&pod, 2)?;
    ensure!(first == second, "another machine: {first}, then {second}");
    Ok(())
}

/// A volume that is full under a machine fails what has no room, says so in the transcript, and keeps all
/// that it had.
fn full(cri: &Cri) -> Result<()> {
    let volume = tempfile::tempdir_in("/var/tmp")?;
    let _tmpfs = NodeMount::tmpfs(volume.path(), "size=112m")?;
    {
        let pod = pet(cri, "full").run()?;
        let machine = machine_in(&pod, volume.path()).start()?;
        let mut console = logged_in(&machine).with_context(|| transcript(&machine))?;
        console.run("echo kept > /var/kept; sync")?;
        let filler = volume.path().join("filler");
        let mut file = File::create(&filler)?;
        while file.write_all(&[1; 64 << 10]).is_ok() {}
        let error = console.run("dd if=/dev/urandom of=/var/more bs=1M count=8 conv=fsync");
        ensure!(error.is_err(), "8 MiB are written to a full volume");
        let told = "podvisor: disk boot: No space left on device";
        wait_for_log(&machine, told, BUSYBOX_BOOT)?;
        ensure!(console.run("cat /var/kept")? == "kept", "it is gone");
        fs::remove_file(&filler)?;
        machine.stop(GRACE)?;
    }
    let pod = pet(cri, "full").run()?;
    let machine = machine_in(&pod, volume.path()).start()?;
    let mut console = logged_in(&machine).with_context(|| transcript(&machine))?;
    ensure!(console.run("cat /var/kept")? == "kept", "it is gone");
    console.run("dd if=/dev/urandom of=/var/more bs=1M count=8 conv=fsync")?;
    Ok(())
}

/// A machine whose disk is a file in a folder.
fn machine_in<'p, 'c>(pod: &'p Pod<'c>, folder: &Path) -> ContainerBuilder<'p, 'c> {
    machine(pod, BUSYBOX_RAW).mount(folder, "/disk")
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Whenever a fill is broken off, the next pod finds an empty volume or a whole disk.
fn broken_off(cri: &Cri) -> Result<()> {
    let disk = LoopDevice::new(VOLUME_LEN)?;
    let on_disk = |pod: &Pod<'_>| machine_on(pod, &disk).map(drop);
    for pause in [50, 400] {
        let pod = pet(cri, "broken").run()?;
        let shim = Pid::from_raw(pod.shim_pid()?);
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| on_disk(&pod));
            std::thread::sleep(Duration::from_millis(pause));
            kill(shim, Signal::SIGKILL)?;
            // Whatever containerd says of a shim that has gone.
            let _ = starting.join();
            anyhow::Ok(())
        })?;
    }
    let pod = pet(cri, "broken").run()?;
    let machine = machine(&pod, BUSYBOX).device(disk.path(), "/", "mrw");
    let machine = machine.start()?;
    let mut console = logged_in(&machine).with_context(|| transcript(&machine))?;
    whole(&mut console)
}

fn machine_on<'p, 'c>(
    pod: &'p Pod<'c>,
    disk: &LoopDevice,
) -> Result<podvisor_tests::Container<'p, 'c>> {
    machine(pod, BUSYBOX)
        .device(disk.path(), "/", "mrw")
        .start()
}

/// Every file of the tree can be read.
fn whole(console: &mut Console) -> Result<()> {
    let errors = console.run_within(
        "find /bin /boot /etc /lib -type f | xargs cat > /dev/null; dmesg | grep -i 'ext4.*error'; true",
        BUSYBOX_BOOT,
    )?;
    ensure!(errors.is_empty(), "{errors}");
    Ok(())
}

fn refused(cri: &Cri) -> Result<()> {
    let small = LoopDevice::new(32 << 20)?;
    let pod = machine_pod(cri, "small").run()?;
    let error = failure(machine(&pod, BUSYBOX).device(small.path(), "/", "mrw"))?;
    ensure!(
        error.contains("devicePath /") && error.contains("100663296"),
        "a volume that is too small: {error}"
    );
    let nothing = LoopDevice::new(VOLUME_LEN)?;
    let pod = machine_pod(cri, "nothing").run()?;
    let container = pod.container("machine").device(nothing.path(), "/", "mrw");
    let error = failure(container.stdin().terminal())?;
    ensure!(
        error.contains("is empty"),
        "nothing to fill it with: {error}"
    );
    Ok(())
}

/// Why a machine does not boot, as its pod's event or its transcript tells it.
pub(super) fn failure(machine: ContainerBuilder<'_, '_>) -> Result<String> {
    let machine = machine.create()?;
    if let Err(error) = machine.start() {
        return Ok(format!("{error:#}"));
    }
    let status = wait::until("end of a machine that cannot boot", BUSYBOX_BOOT, || {
        let status = machine.status()?;
        Ok((status.finished_at > 0).then_some(status))
    })
    .with_context(|| transcript(&machine))?;
    ensure!(status.exit_code != 0, "it ended well: {status:?}");
    let log = machine.log()?.stdout;
    let last = log.lines().rfind(|line| line.starts_with("podvisor: "));
    let told = last.with_context(|| format!("no reason: {log}"))?;
    Ok(format!("{}; {told}", status.message))
}
