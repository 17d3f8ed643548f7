//! What processors and memory look like from inside a guest, and where the host keeps them.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_tests::wait;
use podvisor_vmm::numa::{HostNode, mirror};
use podvisor_vmm::{
    CpuLevel, CpuModel, HotMemory, MemoryBacking, MemoryPlugError, MemorySize, Processors,
    ResetPolicy, Topology, VcpuPlugError, Vcpus, spawn_io_loop,
};

use super::guest::{Guest, PATIENCE, Running};
use super::{case, long};
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        long("vm_processors_have_the_shape_asked_for", topology),
        long("vm_cpu_levels_are_what_the_guest_finds", cpu_levels),
        long("vm_memory_comes_from_the_pool_of_huge_pages", huge_pages),
        case("vm_memory_grows_and_shrinks_on_its_node", plugged_memory),
        long("vm_processors_come_and_go", plugged_processors),
        long("vm_guest_is_told_that_it_goes_on_from_a_copy", generation),
    ]
}

/// One line a processor: package, core, threads of the core.
const TOPOLOGY_REPORT: &str = "cd /sys/devices/system/cpu
for cpu in cpu[0-9]*; do cd $cpu/topology
echo shape $cpu $(cat physical_package_id) $(cat core_id) $(cat thread_siblings_list); cd ../..; done
echo all shapes; sleep 1000";

fn topology() -> Result<()> {
    let topology: Topology = "2:3:2".parse()?;
    let mut processors = Processors::new(topology.possible(), topology)?;
    processors.pinning = vec![vec![0]; 5];
    let guest = Guest::new(TOPOLOGY_REPORT)?.size(1, 256)?;
    let guest = guest
        .with(|config| config.processors = processors)
        .start()?;
    guest.line("all shapes")?;
    let console = guest.console();
    for index in 0..12 {
        let (package, core, first) = (index / 6, index / 2 % 3, index / 2 * 2);
        let line = format!("shape cpu{index} {package} {core} {first}-{}", first + 1);
        ensure!(console.contains(&line), "no '{line}' in:\n{console}");
    }
    ensure!(allowed("vcpu4")? == "0", "vcpu4 is not pinned");
    let free = allowed("vcpu5")?;
    guest.vm.pin_vcpus(&[])?;
    ensure!(allowed("vcpu4")? == free, "vcpu4 is still pinned");
    Ok(())
}

/// The host's CPUs that the thread `name` of this process may run on.
fn allowed(name: &str) -> Result<String> {
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() != name {
            continue;
        }
        let status = fs::read_to_string(path.join("status"))?;
        let mut lines = status.lines();
        let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        return Ok(list.context("no list of CPUs")?.trim().to_owned());
    }
    bail!("no thread {name}");
}

fn with_model(guest: Guest, level: CpuLevel) -> Guest {
    guest.with(|config| config.processors.model = CpuModel::Level(level))
}

fn cpu_levels() -> Result<()> {
    let report = "grep -m 1 'model name' /proc/cpuinfo; grep -m 1 flags /proc/cpuinfo; poweroff -f";
    let seen = |level| -> Result<Running> {
        let guest = with_model(Guest::new(report)?, level).start()?;
        guest.shutdown()?;
        Ok(guest)
    };
    // An emulated processor (QEMU's TCG) lets nested guests execute XSETBV behind KVM's back, which then tells them a size
    // of states that Linux finds inconsistent: it goes without AVX there.
    let is_emulated = fs::read_to_string("/proc/cpuinfo")?.contains("QEMU TCG CPU");
    let third = if is_emulated { "bmi2" } else { "avx2" };
    for (level, has, has_not) in [
        (CpuLevel::V2, "sse4_2", ["avx", "bmi2"].as_slice()),
        (CpuLevel::V3, third, &["aes"]),
    ] {
        let guest = seen(level)?;
        let name = guest.line("model name\t: ")?;
        ensure!(name == format!("Podvisor {level}"), "{name}");
        let flags = guest.line("flags\t\t: ")?;
        let flags: Vec<_> = flags.split(' ').collect();
        ensure!(flags.contains(&has), "no {has} in {flags:?}");
        let wrong = has_not.iter().find(|flag| flags.contains(flag));
        ensure!(wrong.is_none(), "{wrong:?} in {flags:?}");
        ensure!(flags.contains(&"hypervisor"), "{flags:?}");
    }
    if fs::read_to_string("/proc/cpuinfo")?.contains(" avx512f ") {
        return seen(CpuLevel::V4).map(drop);
    }
    let Err(error) = with_model(Guest::new(report)?, CpuLevel::V4).start() else {
        bail!("a host without AVX-512 runs x86-64-v4");
    };
    let text = format!("{error:#}");
    let expected = "x86-64-v4: it lacks avx512f";
    ensure!(text.contains(expected), "'{text}' without '{expected}'");
    Ok(())
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

fn huge_pages() -> Result<()> {
    fs::write(POOL, "70")?;
    let outcome = on_huge_pages();
    fs::write(POOL, "0")?;
    outcome
}

fn on_huge_pages() -> Result<()> {
    let free = || -> Result<u64> { Ok(fs::read_to_string(FREE)?.trim().parse()?) };
    let pages = free()?;
    ensure!(pages >= 64, "the node has {pages} huge pages");
    let backed = |memory_mib| -> Result<Guest> {
        let guest = Guest::new("echo running; sleep 1000")?.size(1, memory_mib)?;
        Ok(guest.with(|config| config.memory_backing = MemoryBacking::HugePages2Mi))
    };
    let guest = backed(128)?.start()?;
    ensure!(free()? == pages - 64, "{} of {pages} pages free", free()?);
    guest.line("running")?;
    drop(guest);
    ensure!(free()? == pages, "{} of {pages} pages came back", free()?);
    let Err(error) = backed(1024)?.start() else {
        bail!("started on pages that there are not");
    };
    let text = format!("{error:#}");
    let expected = format!("512 huge pages of 2 MiB are needed, {pages} are free");
    ensure!(text.contains(&expected), "'{text}' without '{expected}'");
    Ok(())
}

/// Takes what comes, tells of it, and lets go of it again.
const MEMORY_REPORT: &str = "echo online_movable > /sys/devices/system/memory/auto_online_blocks
last=0; while true; do now=$(($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 / 64 * 64))
[ $now = $last ] || echo has $now.; last=$now; sleep 0.2; done";

fn plugged_memory() -> Result<()> {
    let size = |mib: u64| MemorySize::from_bytes(mib << 20);
    let (begins, max) = (size(256)?, size(512)?);
    let processors = Processors::from(Vcpus::MIN);
    let nodes = HostNode::all()?;
    let cpus = nodes.iter().flat_map(|node| node.cpus.clone());
    let cpus: Vec<_> = cpus.collect();
    let mirror = mirror(&nodes, &cpus, begins, MemoryBacking::Normal, &processors)?;
    let io = spawn_io_loop()?;
    let guest = Guest::new(MEMORY_REPORT)?.size(1, 256)?.with(|config| {
        config.hot_memory = Some(HotMemory { max, io });
        config.numa = Some(mirror.numa);
    });
    let guest = guest.start()?;
    let maps = fs::read_to_string("/proc/self/numa_maps")?;
    ensure!(maps.contains(" bind:0 "), "no memory is bound:\n{maps}");
    guest.line("has 192.")?;
    guest.vm.set_memory(max)?;
    guest.line("has 448.")?;
    let present = || guest.vm.memory().map(|memory| memory.present);
    ensure!(present() == Some(512 << 20), "{:?}", guest.vm.memory());
    guest.vm.set_memory(begins)?;
    wait::until("the memory comes back", PATIENCE, || {
        Ok((present() == Some(256 << 20)).then_some(()))
    })?;
    let refused = guest.vm.set_memory(size(1024)?);
    ensure!(
        matches!(refused, Err(MemoryPlugError::OutOfBounds { .. })),
        "{refused:?}"
    );
    Ok(())
}

/// Says with how many processors the kernel began, and switches on what comes.
const PROCESSOR_REPORT: &str = "echo begins with $(nproc).; last=0; while true; do
for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do [ $(cat $cpu) = 1 ] || echo 1 > $cpu; done
now=$(nproc); [ $now = $last ] || echo has $now.; last=$now; sleep 0.2; done";

fn plugged_processors() -> Result<()> {
    let vcpus = |count: u32| Vcpus::try_from(count);
    let make = || -> Result<Guest> {
        let processors = Processors::new(vcpus(1)?, "1:3:1".parse()?)?;
        Ok(Guest::new(PROCESSOR_REPORT)?.with(|config| {
            config.processors = processors;
            config.on_reset = ResetPolicy::Restart;
        }))
    };
    let mut guest = make()?.start()?;
    guest.line("has 1.")?;
    // One alone, too: its making is the last that KVM hears of processors.
    for count in [2, 3] {
        guest.vm.set_vcpus(vcpus(count)?)?;
        guest.line(&format!("has {count}."))?;
    }
    ensure!(allowed("vcpu2").is_ok(), "vcpu2 has no thread");
    let left_with_one = |guest: &Running| {
        wait::until("processors leave", PATIENCE, || {
            let is_alone = guest.vm.vcpus().present == 1 && allowed("vcpu2").is_err();
            Ok(is_alone.then_some(()))
        })
        .with_context(|| format!("{:?}; console:\n{}", guest.vm.vcpus(), guest.console()))
    };
    let two_again = |guest: &Running, seen: usize| {
        wait::until("two processors again", PATIENCE, || {
            let console = guest.console();
            let since = console.get(seen..).unwrap_or_default();
            Ok(since.contains("has 2.").then_some(()))
        })
        .with_context(|| guest.console())
    };
    guest.vm.set_vcpus(vcpus(1)?)?;
    left_with_one(&guest)?;
    // One that was there before, and stays over a reset.
    let seen = guest.console().len();
    guest.vm.set_vcpus(vcpus(2)?)?;
    two_again(&guest, seen)?;
    let seen = guest.console().len();
    guest.vm.restart()?;
    two_again(&guest, seen)?;
    let console = guest.console();
    let since = console.get(seen..).unwrap_or_default();
    ensure!(since.contains("begins with 2."), "{since}");
    // Nothing to resume.
    guest.vm.resume()?;
    guest.vm.pause()?;
    let state = guest.vm.save()?;
    guest = make()?.restore(guest, &state)?;
    ensure!(guest.vm.vcpus().present == 2, "{:?}", guest.vm.vcpus());
    guest.vm.resume()?;
    guest.vm.set_vcpus(vcpus(1)?)?;
    left_with_one(&guest)?;
    let refused = guest.vm.set_vcpus(vcpus(4)?);
    ensure!(
        matches!(refused, Err(VcpuPlugError::TooMany { .. })),
        "{refused:?}"
    );
    Ok(())
}

fn generation() -> Result<()> {
    let with_id = |id| -> Result<Guest> {
        let script = "i=0; while true; do i=$((i+1)); echo tick $i.; sleep 0.2; done";
        Ok(Guest::new(script)?.with(|config| config.generation_id = Some(id)))
    };
    let told = "crng reseeded due to virtual machine fork";
    let guest = with_id(1)?.start()?;
    guest.line("tick 3.")?;
    guest.vm.pause()?;
    let state = guest.vm.save()?;
    let same = with_id(1)?.restore(guest, &state)?;
    same.vm.resume()?;
    same.line("tick 8.")?;
    ensure!(!same.console().contains(told), "{}", same.console());
    same.vm.pause()?;
    let state = same.vm.save()?;
    let copy = with_id(2)?.restore(same, &state)?;
    copy.vm.resume()?;
    copy.line(told).map(drop)
}
