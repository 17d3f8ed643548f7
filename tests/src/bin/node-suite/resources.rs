//! Limits: the guest's cgroups have what runc's have, and what no machine can give is refused.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{HugepageLimit, LinuxContainerResources};
use podvisor_tests::{Container, Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate, long};

pub fn cases() -> Vec<Case> {
    vec![
        gate("limits_and_their_changes_are_as_with_runc", as_with_runc),
        gate(
            "limits_beyond_the_machine_are_refused_with_the_numbers",
            beyond_the_machine,
        ),
        gate("a_pod_grows_and_shrinks_with_its_limits", growth),
        long("a_pods_processors_are_pinned_near_its_memory", binding),
        gate("memory_shortage_ends_only_who_caused_it", memory_shortage),
    ]
}

/// Takes all the memory it can get.
const GREEDY: &str = "x=1234567890123456; while true; do x=$x$x; done";
/// How long that may take on an emulated CPU.
const GREEDY_LIMIT: Duration = Duration::from_secs(120);

fn first_limits() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        oom_score_adj: 321,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: [("memory.high", "50331648"), ("memory.oom.group", "1")]
            .map(|(file, value)| (file.to_owned(), value.to_owned()))
            .into(),
    }
}

fn later_limits() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 70_000,
        cpu_shares: 2048,
        memory_limit_in_bytes: 96 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        cpuset_cpus: "0".into(),
        ..LinuxContainerResources::default()
    }
}

/// Everything that limits a container, as it sees it itself.
fn limits(container: &Container<'_, '_>) -> Result<String> {
    container.shell(
        "cd /sys/fs/cgroup; for f in cpu.max cpu.weight cpuset.cpus cpuset.mems memory.max \
         memory.high memory.oom.group hugetlb.2MB.max; do echo $f $(cat $f); done; \
         echo score $(cat /proc/self/oom_score_adj); echo CPUs $(nproc)",
    )
}

fn as_with_runc(cri: &Cri) -> Result<()> {
    let machine = PodBuilder::new(cri, Handler::Podvisor, "machine").run()?;
    let plain = PodBuilder::new(cri, Handler::Runc, "plain").run()?;
    let limited = |pod: &podvisor_tests::Pod<'_>| -> Result<(String, String)> {
        let container = pod.container("limited");
        let container = container
            .with_resources(|all| *all = first_limits())
            .start()?;
        let before = limits(&container)?;
        container.update(later_limits())?;
        Ok((before, limits(&container)?))
    };
    let (ours, runcs) = (limited(&machine)?, limited(&plain)?);
    // Both lines: shares of 512 and 2048. runc before 1.3 gave less, 20 and 79.
    ensure!(ours.0.contains("cpu.weight 59") && ours.1.contains("cpu.weight 174"));
    let without_weight = |limits: (String, String)| {
        [limits.0, limits.1].map(|text| {
            let lines = text.lines().filter(|line| !line.starts_with("cpu.weight"));
            lines.collect::<Vec<_>>().join("\n")
        })
    };
    let (ours, runcs) = (without_weight(ours), without_weight(runcs));
    ensure!(
        ours == runcs,
        "limits differ.\nVM pod:\n{}\n{}\nrunc pod:\n{}\n{}",
        ours[0],
        ours[1],
        runcs[0],
        runcs[1]
    );
    ensure!(ours[0].contains("cpu.max 20000 50000") && ours[1].contains("cpu.max 70000 100000"));
    Ok(())
}

fn beyond_the_machine(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "beyond").run()?;
    let container = pod.container("idle").memory_mib(64).millicpus(500);
    let container = container
        .with_resources(|all| all.cpuset_cpus = "0".into())
        .start()?;
    let confined = fs::read_to_string(pod.server_cgroup()?.join("cpuset.cpus"))?;
    ensure!(
        confined.trim() == "0",
        "the machine is on CPUs {confined:?}"
    );
    let create = pod.container("huge").memory_mib(2048).start().err();
    let memory = LinuxContainerResources {
        memory_limit_in_bytes: 2 << 30,
        ..LinuxContainerResources::default()
    };
    let cpu = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        ..LinuxContainerResources::default()
    };
    for (error, parts) in [
        (create, ["limits.memory", "2048 MiB", "VM"]),
        (
            container.update(memory).err(),
            ["limits.memory", "2048 MiB", "VM"],
        ),
        (
            container.update(cpu).err(),
            ["limits.cpu", "1500m", "1 CPU"],
        ),
    ] {
        let error = format!(
            "{:#}",
            error.with_context(|| format!("a limit beyond the machine was taken: {parts:?}"))?
        );
        for part in parts {
            ensure!(
                error.contains(part),
                "{part:?} is not in the error: {error}"
            );
        }
    }
    let limit = container.shell("cat /sys/fs/cgroup/memory.max")?;
    ensure!(limit == (64 << 20).to_string(), "the limit became {limit}");
    beyond_the_pool(cri)
}

/// A kubelet lets no pod have huge pages that does not ask for them in its limits.
fn beyond_the_pool(cri: &Cri) -> Result<()> {
    const LIMIT: &str = "/sys/fs/cgroup/kubepods/hugetlb.2MB.max";
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+hugetlb")?;
    fs::write(LIMIT, "0").context(LIMIT)?;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "pages");
    let refused = pod.annotation("podvisor.io/hugepages", "2Mi").run().err();
    fs::write(LIMIT, "max")?;
    let error = format!("{:#}", refused.context("pages that are not allowed")?);
    ensure!(error.contains("limits.hugepages-2Mi must be"), "{error}");
    Ok(())
}

fn limits_of(memory_mib: i64, millicpus: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: millicpus * 100,
        memory_limit_in_bytes: memory_mib << 20,
        ..LinuxContainerResources::default()
    }
}

/// The guest's processors in use and its memory in MiB.
pub fn size_inside(container: &Container<'_, '_>) -> Result<(u64, u64)> {
    let seen = container
        .shell("echo $(nproc) $(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)")?;
    let (cpus, kib) = seen.split_once(' ').context("two numbers")?;
    Ok((cpus.parse()?, kib.parse::<u64>()? >> 10))
}

fn growth(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "growing")
        .annotation("podvisor.io/max-cpus", "2")
        .annotation("podvisor.io/max-memory", "640Mi")
        .run()?;
    let container = pod
        .container("first")
        .memory_mib(64)
        .millicpus(500)
        .start()?;
    let possible = container.shell("cat /sys/devices/system/cpu/possible")?;
    ensure!(possible == "0-1", "possible processors: {possible}");
    let begun = size_inside(&container)?;
    ensure!(begun.0 == 1 && begun.1 < 182, "it begins with {begun:?}");

    let refused = container.update(limits_of(400, 500)).err();
    let error = format!("{:#}", refused.context("grown beyond the pod's cgroup")?);
    ensure!(error.contains("the pod's cgroup allows 384 MiB"), "{error}");
    pod.allow_memory_mib(640)?;

    // What the first one gets is there when its update is answered, and can be used.
    container.update(limits_of(256, 1500))?;
    let grown = size_inside(&container)?;
    ensure!(grown.0 == 2 && grown.1 >= begun.1 + 128, "it has {grown:?}");
    let limits = container.shell("cd /sys/fs/cgroup; cat memory.max cpu.max")?;
    ensure!(
        limits == format!("{}\n150000 100000", 256 << 20),
        "{limits}"
    );
    container.shell("dd if=/dev/zero of=/dev/null bs=220M count=1 2> /dev/null")?;

    // And what the second one needs, when it is made.
    let second = pod.container("second").memory_mib(128).start()?;
    let both = size_inside(&second)?;
    ensure!(both.1 >= grown.1 + 120, "with a second container {both:?}");

    for (resources, parts) in [
        (
            limits_of(1024, 1500),
            ["1152 MiB", "podvisor.io/max-memory", "640 MiB"],
        ),
        (limits_of(256, 2500), ["2500m", "podvisor.io/max-cpus", "2"]),
    ] {
        let refused = container.update(resources).err();
        let error = format!("{:#}", refused.context("taken beyond the most")?);
        for part in parts {
            ensure!(
                error.contains(part),
                "{part:?} is not in the error: {error}"
            );
        }
    }
    let still = size_inside(&container)?;
    ensure!(still == both, "{still:?} after refusals, {both:?} before");

    container.update(limits_of(32, 500))?;
    let mut last = still;
    wait::until("the pod is small again", Duration::from_secs(60), || {
        last = size_inside(&container)?;
        Ok((last.0 == 1 && last.1 < begun.1 + 64).then_some(()))
    })
    .with_context(|| format!("it has {last:?}, and began with {begun:?}"))?;
    container.update(limits_of(128, 1200))?;
    let again = size_inside(&container)?;
    ensure!(
        again.0 == 2 && again.1 > last.1,
        "the second time {again:?}"
    );
    Ok(())
}

/// One processor on one node: what there is of them in a node of ours.
fn binding(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "bound")
        .annotation("podvisor.io/cpu-pinning", "auto")
        .annotation("podvisor.io/numa", "auto")
        .run()?;
    for (name, cpus, millicpus, why) in [
        ("anywhere", "", 1000, "names no CPUs"),
        ("shared", "0", 500, "a limit of 500m"),
    ] {
        let container = pod.container(name).millicpus(millicpus);
        let container = container.with_resources(|all| all.cpuset_cpus = cpus.into());
        let error = container
            .start()
            .err()
            .context("pinned without CPUs of its own")?;
        let error = format!("{error:#}");
        for part in ["podvisor.io/cpu-pinning", why] {
            ensure!(
                error.contains(part),
                "{part:?} is not in the error: {error}"
            );
        }
    }
    let container = pod.container("own").millicpus(1000);
    let container = container
        .with_resources(|all| all.cpuset_cpus = "0".into())
        .start()?;
    ensure!(container.shell("nproc")? == "1", "more than one CPU");
    let process = format!("/proc/{}", pod.shim_pid()?);
    let mut pinned = None;
    for task in fs::read_dir(format!("{process}/task"))? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == "vcpu0" {
            let status = fs::read_to_string(path.join("status"))?;
            let mut lines = status.lines();
            let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            pinned = list.map(|list| list.trim().to_owned());
        }
    }
    ensure!(pinned.as_deref() == Some("0"), "vcpu0 runs on {pinned:?}");
    let maps = fs::read_to_string(format!("{process}/numa_maps"))?;
    ensure!(maps.contains(" bind:0 "), "no memory is bound:\n{maps}");
    Ok(())
}

fn memory_shortage(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "shortage").run()?;
    let steady = pod.container("steady").memory_mib(48).start()?;
    let killed = steady.exec(&["sh", "-c", GREEDY])?;
    ensure!(killed.code == 137, "the greedy exec: {killed:?}");
    ensure!(
        steady.shell("echo alive")? == "alive",
        "the exec's container died"
    );

    // Without a limit of its own a container has the machine's memory, and no more.
    let unlimited = pod.container("unlimited");
    let unlimited = unlimited
        .with_resources(|all| all.oom_score_adj = 1000)
        .script(GREEDY)
        .start()?;
    let status = unlimited.wait(GREEDY_LIMIT)?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    wait::until("OOMKilled", Duration::from_secs(10), || {
        Ok((unlimited.status()?.reason == "OOMKilled").then_some(()))
    })?;
    ensure!(steady.shell("echo alive")? == "alive", "the neighbour died");
    ensure!(
        steady.status()?.finished_at == 0,
        "the neighbour is said to have ended"
    );
    Ok(())
}
