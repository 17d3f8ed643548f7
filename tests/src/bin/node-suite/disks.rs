//! Raw block volumes: block devices of the node as disks of the guest.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Cri, Handler, LoopDevice, PodBuilder};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![gate("block_volumes_are_disks_of_the_guest", block_volumes)]
}

const DISK_LEN: u64 = 4 << 20;

fn block_volumes(cri: &Cri) -> Result<()> {
    let (data, fixed) = (LoopDevice::new(DISK_LEN)?, LoopDevice::new(DISK_LEN)?);
    fixed.file().write_all_at(b"fixed", 0)?;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "disks")
        .privileged()
        .run()?;
    let writer = pod
        .container("writer")
        .device(data.path(), "/dev/data", "mrw");
    let writer = writer.device(fixed.path(), "/dev/fixed", "mr").start()?;
    let kinds = writer.shell("stat -c %F /dev/data /dev/fixed")?;
    ensure!(
        kinds == "block special file\nblock special file",
        "what they are: {kinds}"
    );
    let len = writer.shell("wc -c < /dev/data")?;
    ensure!(len == DISK_LEN.to_string(), "length {len}");
    writer.shell("echo written | dd of=/dev/data bs=512 seek=3 conv=fsync")?;
    ensure!(data.content(3 * 512, 7)? == b"written", "on the node");
    ensure!(writer.shell("head -c 5 /dev/fixed")? == "fixed", "content");
    let write = writer.exec(&["dd", "if=/dev/zero", "of=/dev/fixed", "count=1"])?;
    ensure!(write.code != 0, "wrote to a read-only disk: {write:?}");
    let other = pod.container("other").start()?;
    other.shell("test ! -e /dev/data")?;
    writer.stop(Duration::ZERO)?;
    writer.remove()?;
    // The first one's disk is gone; a file system comes and goes on the next.
    let disks = other.shell("cd /sys/block; ls -d vd* 2>/dev/null | wc -l")?;
    ensure!(disks == "0", "{disks} disks are left in the guest");
    let again = pod.container("again").privileged();
    let again = again.device(data.path(), "/dev/again", "mrw").start()?;
    let seen = again.shell("dd if=/dev/again bs=512 skip=3 count=1 2>/dev/null | head -c 7")?;
    ensure!(seen == "written", "on the same device again: {seen:?}");
    let missing = pod.container("host");
    let error = missing.mount(data.path(), "/dev/host").start().err();
    let error = format!("{:#}", error.context("a device as hostPath")?);
    ensure!(error.contains("volumeDevices"), "{error}");
    Ok(())
}
