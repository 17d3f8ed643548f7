//! What annotations say of a machine, looked at from inside of it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_proto::cri::v1::LinuxContainerResources;
use podvisor_tests::{Console, Cri, LoopDevice, Pod, wait};

use super::{
    BUSYBOX, BUSYBOX_BOOT, REPORTING, ensure_seen, logged_in, machine, machine_pod, transcript,
};
use crate::case::{Case, gate, long};
use crate::guest_memory::has_pages_of;

/// Where the busybox machine's partition begins.
const PARTITION: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        long("a_machines_hardware_is_as_annotated", hardware),
        long("a_machine_grows_with_its_limits_on_its_node", growth),
        gate("a_machines_console_can_be_virtio", virtio_console),
        gate("a_machine_that_hangs_is_reset_by_its_watchdog", watchdog),
        long("disks_are_booted_in_the_annotated_order", boot_order),
    ]
}

/// The node's pool of huge pages, and as many as the machine is large, with some to spare.
const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PAGES: &str = "170";
const SMBIOS: &str = "{system: {manufacturer: Example, product: Pet, version: '7', sku: A1, family: Pets}, \
    board: {product: Board}, chassis: {asset: '0042'}, oem-strings: [role=db]}";

fn hardware(cri: &Cri) -> Result<()> {
    fs::write(POOL, PAGES)?;
    let seen = hardware_on_huge_pages(cri);
    fs::write(POOL, "0")?;
    seen
}

fn hardware_on_huge_pages(cri: &Cri) -> Result<()> {
    let pages = fs::read_to_string(POOL)?;
    ensure!(pages.trim() == PAGES, "the node has {pages} huge pages");
    let pod = machine_pod(cri, "hardware")
        .annotation("podvisor.io/cpus", "2")
        .annotation("podvisor.io/max-cpus", "2")
        .annotation("podvisor.io/cpu-topology", "1:1:2")
        .annotation("podvisor.io/cpu-model", "x86-64-v2")
        .annotation("podvisor.io/memory", "320Mi")
        .annotation("podvisor.io/kernel-args", "mitigations=off")
        .annotation("podvisor.io/smbios", SMBIOS)
        .annotation("podvisor.io/rng", "1Ki")
        .annotation("podvisor.io/hugepages", "2Mi")
        .annotation("podvisor.io/balloon", "reporting")
        .run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    ensure_seen(
        &mut console,
        &[
            ("nproc", "2"),
            (
                "cat /sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                "0-1",
            ),
            (
                "grep -c -w sse4_2 /proc/cpuinfo; grep -c -w avx /proc/cpuinfo; true",
                "2\n0",
            ),
            (
                "grep -o -w mitigations=off /proc/cmdline",
                "mitigations=off",
            ),
            (
                "cd /sys/class/dmi/id; cat sys_vendor product_name product_version product_sku \
                 product_family board_name chassis_asset_tag",
                "Example\nPet\n7\nA1\nPets\nBoard\n0042",
            ),
            (
                "strings /sys/firmware/dmi/tables/DMI | grep role=",
                "role=db",
            ),
            (REPORTING, "1"),
        ],
    )?;
    sizes(&pod, &mut console)
}

/// The machine's memory in MiB.
fn memory_mib(console: &mut Console) -> Result<u64> {
    let kib = console.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    Ok(kib.parse::<u64>()? >> 10)
}

/// How much memory the machine has, and in what; who it is; how fast its entropy comes.
fn sizes(pod: &Pod<'_>, console: &mut Console) -> Result<()> {
    ensure!(has_pages_of(pod, 2048)?, "no memory is in huge pages");
    let mib = memory_mib(console)?;
    ensure!((256..=320).contains(&mib), "{mib} MiB of 320");
    let name = pod.config().metadata.clone().unwrap_or_default().name;
    let serial = console.run("cat /sys/class/dmi/id/product_serial")?;
    ensure!(
        serial == format!("default/{name}"),
        "serial number {serial}"
    );
    // 1 KiB a second, and as much at once, of which the kernel takes its part as well.
    let took = console.run(
        "a=$(cut -d . -f 1 /proc/uptime); head -c 3072 /dev/hwrng > /dev/null; \
         b=$(cut -d . -f 1 /proc/uptime); echo $((b - a))",
    )?;
    ensure!(took.parse::<u32>()? >= 1, "3 KiB of entropy in {took} s");
    Ok(())
}

/// Nobody in this machine switches processors on but who sits at its console; memory comes by itself.
fn growth(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "growing")
        .annotation("podvisor.io/max-cpus", "2")
        .annotation("podvisor.io/max-memory", "768Mi")
        .annotation("podvisor.io/cpu-pinning", "none")
        .annotation("podvisor.io/numa", "auto")
        .run()?;
    let container = machine(&pod, BUSYBOX);
    let container = container
        .with_resources(|all| all.cpuset_cpus = "0".into())
        .start()?;
    let mut console = logged_in(&container)?;
    ensure_seen(
        &mut console,
        &[
            ("nproc", "1"),
            ("cat /sys/devices/system/cpu/possible", "0-1"),
            ("cat /sys/devices/system/node/online", "0"),
            ("ls /sys/firmware/acpi/tables | grep SRAT", "SRAT"),
        ],
    )?;
    let maps = fs::read_to_string(format!("/proc/{}/numa_maps", pod.shim_pid()?))?;
    ensure!(maps.contains(" bind:0 "), "no memory is bound:\n{maps}");
    let begun = memory_mib(&mut console)?;
    let limits = |memory_mib: i64, millicpus: i64| LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: millicpus * 100,
        memory_limit_in_bytes: memory_mib << 20,
        cpuset_cpus: "0".into(),
        ..LinuxContainerResources::default()
    };
    container.update(limits(480, 1500))?;
    wait::until("more memory", Duration::from_secs(60), || {
        Ok((memory_mib(&mut console)? >= begun + 200).then_some(()))
    })?;
    console.run("echo 1 > /sys/devices/system/cpu/cpu1/online")?;
    ensure_seen(&mut console, &[("nproc", "2")])?;
    let refused = container.update(limits(1024, 1500)).err();
    let error = format!("{:#}", refused.context("taken beyond the most")?);
    for part in ["1024 MiB", "podvisor.io/max-memory", "768 MiB"] {
        ensure!(
            error.contains(part),
            "{part:?} is not in the error: {error}"
        );
    }
    container.update(limits(256, 1000))?;
    wait::until("one processor again", Duration::from_secs(60), || {
        Ok((console.run("nproc")? == "1").then_some(()))
    })
}

/// The machine's own menu knows of its serial port alone, and is quiet.
fn virtio_console(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "console")
        .annotation("podvisor.io/console", "virtio")
        .annotation("podvisor.io/kernel-args", "debug");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    let terminal = console.run("sed 's/.* //' /sys/class/tty/console/active")?;
    ensure!(terminal == "hvc0", "the console is {terminal}");
    let log = transcript(&machine);
    let mut lines = log.lines();
    let is_heard =
        lines.any(|line| line.contains("Linux version ") && line.contains("cloud-amd64"));
    ensure!(is_heard, "its kernel is not heard: {log}");
    // Device 26 of virtio, a file system: there is nothing to share.
    let shared = console.run("cat /sys/bus/virtio/devices/*/device | grep -c 0x001a; true")?;
    ensure!(shared == "0", "{shared} file systems for no volume");
    let lines = console.run("seq 3000 | tail -n 1")?;
    ensure!(lines == "3000", "{lines}");
    Ok(())
}

fn watchdog(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "watchdog").annotation("podvisor.io/watchdog", "10");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    let found = console.run("cd /sys/class/watchdog/watchdog0; cat identity state")?;
    ensure!(found.contains("inactive"), "{found}");
    // It is armed, and then nobody feeds it.
    console.send("(sleep 1000 > /dev/watchdog) &\n")?;
    console.expect(": boot 2\n", BUSYBOX_BOOT + Duration::from_secs(30))?;
    let running = machine.status()?;
    ensure!(running.finished_at == 0, "it ended: {running:?}");
    Ok(())
}

/// Two disks that boot, the second one first.
fn boot_order(cri: &Cri) -> Result<()> {
    let second = LoopDevice::new(96 << 20)?;
    let pod = machine_pod(cri, "filled").run()?;
    let filled = machine(&pod, BUSYBOX)
        .device(second.path(), "/", "mrw")
        .start()?;
    logged_in(&filled).with_context(|| transcript(&filled))?;
    filled.stop(Duration::from_secs(60))?;
    drop(pod);
    mark(&second)?;
    let pod = machine_pod(cri, "order")
        .annotation("podvisor.io/boot-order", "[/dev/second, /]")
        .annotation("podvisor.io/cpu-pinning", "auto")
        .annotation("podvisor.io/balloon", "auto");
    let pod = pod.run()?;
    let machine = machine(&pod, BUSYBOX).device(second.path(), "/dev/second", "mrw");
    let machine = machine.millicpus(1000);
    let machine = machine.with_resources(|all| all.cpuset_cpus = "0".into());
    let machine = machine.start()?;
    let mut console = logged_in(&machine)?;
    let arguments = console.run("cat /proc/cmdline")?;
    ensure!(arguments.contains("from=second"), "{arguments}");
    ensure_seen(&mut console, &[(REPORTING, "1")])?;
    let allowed = cpus_of_vcpu(&pod)?;
    ensure!(allowed == "0", "vcpu0 runs on {allowed}");
    Ok(())
}

/// The host's CPUs that the machine's first processor may run on.
fn cpus_of_vcpu(pod: &Pod<'_>) -> Result<String> {
    for task in fs::read_dir(format!("/proc/{}/task", pod.shim_pid()?))? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == "vcpu0" {
            let status = fs::read_to_string(path.join("status"))?;
            let mut lines = status.lines();
            let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            return Ok(list.context("no list of CPUs")?.trim().to_owned());
        }
    }
    bail!("there is no vcpu0")
}

/// Changes what the disk's menu says for its kernel.
fn mark(disk: &LoopDevice) -> Result<()> {
    const MENU: &str = "/boot/extlinux/extlinux.conf";
    let debugfs = |command: &str| {
        let output = Command::new("debugfs")
            .args(["-w", "-R", command])
            .arg(format!("{}?offset={PARTITION}", disk.path().display()))
            .output()?;
        ensure!(output.status.success(), "debugfs: {output:?}");
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let menu = debugfs(&format!("cat {MENU}"))?;
    ensure!(menu.contains("APPEND "), "{menu}");
    let new = tempfile::NamedTempFile::new_in("/var/tmp")?;
    fs::write(new.path(), menu.replace("APPEND ", "APPEND from=second "))?;
    debugfs(&format!("rm {MENU}"))?;
    debugfs(&format!("write {} {MENU}", new.path().display()))?;
    Ok(())
}
