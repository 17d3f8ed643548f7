//! The volumes of a machine's pod, as a kubelet makes them, looked at from inside the machine: at
//! their places, followed, and there again after a reboot.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Pod, wait};

use super::{BUSYBOX, BUSYBOX_BOOT, machine, machine_pod, transcript, wait_for_log};
use crate::case::{Case, long};
use crate::pods::publish;
use crate::volumes::{NodeMount, sub_path};

/// For a change on the host to be seen: what may be kept of a shared folder is kept for a second.
const SEEN: Duration = Duration::from_secs(30);

pub fn cases() -> Vec<Case> {
    vec![long("a_machines_volumes_are_at_their_places", volumes)]
}

fn volumes(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "volumes")
        .annotation("podvisor.io/disks", "[{path: /etc/static}]")
        .run()?;
    let [config, fixed] = ["config", "static"].map(|name| {
        let folder = pod.volume(&format!("kubernetes.io~configmap/{name}"))?;
        publish(&folder, 1, "one")?;
        anyhow::Ok(folder)
    });
    let (config, fixed) = (config?, fixed?);
    let cache = pod.volume("kubernetes.io~empty-dir/cache")?;
    fs::create_dir(cache.join("part"))?;
    let (part, _bound) = sub_path(&pod, &cache.join("part"))?;
    let scratch = pod.volume("kubernetes.io~empty-dir/scratch")?;
    let _tmpfs = NodeMount::tmpfs(&scratch, "size=2m,mode=0777")?;
    let shm = pod.volume("kubernetes.io~empty-dir/shm")?;
    let _shm = NodeMount::tmpfs(&shm, "size=3m,mode=1777")?;
    let host = pod.volume("host")?;
    fs::write(host.join("one.conf"), "single\n")?;
    fs::write(host.join("hosts"), "the kubelet's\n")?;
    let machine = machine(&pod, BUSYBOX)
        .mount_read_only(&config, "/etc/app")
        .mount_read_only(&config, "/var/run/secrets/kubernetes.io/serviceaccount")
        .mount_read_only(&fixed, "/etc/static")
        .mount(&cache, "/cache")
        .mount(&part, "/part")
        .mount(&scratch, "/scratch")
        .mount(&shm, "/dev/shm")
        .mount(&host, "/srv/host")
        .mount_read_only(&host.join("one.conf"), "/etc/one.conf")
        .mount(&host.join("hosts"), "/etc/hosts")
        .start()?;
    (|| {
        places(&machine)?;
        writes(&machine, &cache, &host)?;
        follows(&machine, &config, 2, "two")?;
        disk(&machine)?;
        confined(&pod)?;
        // The same machine starts over: its system finds all of it again.
        // Its answer may be lost with the system that would have given it.
        let _ = machine.exec(&["reboot"]);
        wait_for_log(&machine, ": boot 2\n", BUSYBOX_BOOT)?;
        places(&machine)?;
        let kept = machine.shell("cat /cache/file /part/file /srv/host/file; ls /scratch")?;
        ensure!(kept == "inside\nof the part\ninside", "{kept}");
        follows(&machine, &config, 3, "three")?;
        by_hand(&machine)
    })()
    .with_context(|| transcript(&machine))
}

/// All volumes are where the container would have them, and read-only ones are that.
fn places(machine: &Container<'_, '_>) -> Result<()> {
    wait::until("the agent", BUSYBOX_BOOT, || {
        Ok(machine.exec(&["true"]).ok().map(drop))
    })?;
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/key";
    let same = machine.shell(&format!("cmp /etc/app/key {token} && cat /etc/one.conf"))?;
    ensure!(same == "single", "{same}");
    for path in ["/etc/app/new", "/etc/one.conf"] {
        let write = machine.exec(&["sh", "-c", &format!("echo > {path}")])?;
        ensure!(write.stderr.contains("Read-only"), "{path}: {write:?}");
    }
    let table = machine.shell("grep -E ' /(cache|scratch|srv/host) ' /proc/mounts")?;
    let kinds = ["virtiofs rw,nosuid,nodev", "tmpfs rw,nosuid,nodev"];
    ensure!(kinds.iter().all(|kind| table.contains(kind)), "{table}");
    for (place, size) in [("/scratch", " 2048 "), ("/dev/shm", " 3072 ")] {
        let shown = machine.shell(&format!("df -k {place} | tail -n 1"))?;
        ensure!(shown.contains(size), "size of the memory volume: {shown}");
    }
    // What is the machine's own stays so.
    let hosts = machine.exec(&["cat", "/etc/hosts"])?;
    ensure!(!hosts.stdout.contains("kubelet"), "{hosts:?}");
    Ok(())
}

/// What the machine writes is on the host, and the other way round.
fn writes(machine: &Container<'_, '_>, cache: &Path, host: &Path) -> Result<()> {
    machine.shell(
        "echo inside > /cache/file; echo of the part > /part/file; echo inside > /srv/host/file; \
         echo gone > /scratch/file; sync",
    )?;
    ensure!(fs::read_to_string(cache.join("file"))? == "inside\n");
    ensure!(fs::read_to_string(cache.join("part/file"))? == "of the part\n");
    ensure!(fs::read_to_string(host.join("file"))? == "inside\n");
    ensure!(machine.shell("cat /cache/part/file")? == "of the part");
    fs::write(host.join("late"), "from the host\n")?;
    wait::until("a file of the host's", SEEN, || {
        let seen = machine.exec(&["cat", "/srv/host/late"])?;
        Ok((seen.stdout == "from the host\n").then_some(()))
    })
}

/// A ConfigMap that the kubelet updates changes in the machine.
fn follows(machine: &Container<'_, '_>, config: &Path, version: u32, content: &str) -> Result<()> {
    publish(config, version, content)?;
    wait::until("the update of a ConfigMap", SEEN, || {
        Ok((machine.shell("cat /etc/app/key")? == content).then_some(()))
    })
}

/// A ConfigMap that is a disk is no mount; it is found by serial number and label.
fn disk(machine: &Container<'_, '_>) -> Result<()> {
    let found = machine.shell(
        "[ ! -e /etc/static ] && d=$(findfs LABEL=STATIC) && cat /sys/block/${d#/dev/}/serial \
         /sys/block/${d#/dev/}/ro && mkdir -p /run/disk && mount -o ro -t vfat $d /run/disk && \
         echo && cat /run/disk/key && umount /run/disk",
    )?;
    ensure!(found.replace('\n', "") == "static1one", "{found}");
    Ok(())
}

/// The threads that serve the files have their filters, here as for containers.
fn confined(pod: &Pod<'_>) -> Result<()> {
    let mut served = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", pod.shim_pid()?))? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.starts_with("fs") {
            let status = fs::read_to_string(thread.join("status"))?;
            ensure!(status.contains("Seccomp:\t2"), "{status}");
            served += 1;
        }
    }
    ensure!(served > 0, "no thread serves files");
    Ok(())
}

/// Without our agent the shares are found by their tag, as the transcript says.
fn by_hand(machine: &Container<'_, '_>) -> Result<()> {
    let log = machine.log()?.stdout;
    let told = "/srv/host (srv-host)";
    let way = "mount -t virtiofs podvisor /mnt";
    ensure!(log.contains(told) && log.contains(way), "{log}");
    let names = machine.shell(&format!("mkdir -p /mnt && {way} && ls /mnt; umount /mnt"))?;
    for name in ["cache", "etc-app", "etc-one.conf", "srv-host"] {
        ensure!(names.lines().any(|line| line == name), "{name}: {names}");
    }
    ensure!(
        !names.contains("static"),
        "a disk is shared as well: {names}"
    );
    Ok(())
}
