//! What CRI reports that a pod uses, for loads that are known.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{
    ContainerStats, ContainerStatsFilter, CpuUsage, LinuxPodSandboxStats,
    ListContainerStatsRequest, ListPodSandboxStatsRequest,
};
use podvisor_tests::task::Shim;
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("statistics_are_right_for_known_loads", statistics),
        gate("a_sandbox_tells_what_its_machine_uses", sandbox),
    ]
}

const RECEIVED: u64 = 8 << 20;
const SENT: u64 = 4 << 20;
const WRITTEN: u64 = 8 << 20;
const MILLICPUS: i64 = 200;
const HELD: u64 = 48 << 20;
/// What a container's shell and kernel memory take beside, about.
const SHELL: u64 = 2 << 20;
/// What headers add at most to bytes sent in packets of the pods' MTU.
const HEADERS_PERCENT: u64 = 6;

fn statistics(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "statistics")
        .memory_mib(192)
        .run()?;
    let sink = pod.container("sink").memory_mib(64).start()?;
    let load = pod.container("load").memory_mib(128).millicpus(MILLICPUS);
    // A small quota makes the load known: even on a busy node it is used up.
    let load = load
        .script(&format!(
            "head -c {HELD} /dev/zero > /dev/shm/held; while true; do :; done"
        ))
        .start()?;
    sink.shell(&format!("head -c {WRITTEN} /dev/zero > /file; sync"))?;
    network(&pod, &sink)?;
    memory_and_cpu(&pod, &load)?;
    lists(cri, &pod, &load)?;
    // containerd looks at file systems every ten seconds.
    wait::until("usage of the file system", Duration::from_secs(60), || {
        let layer = sink.stats()?.writable_layer;
        let used = layer.and_then(|layer| layer.used_bytes);
        Ok(is_about(used.map_or(0, |used| used.value), WRITTEN).then_some(()))
    })
}

/// What containerd from 2.3 on asks each second, and 2.1 with no sandboxer: the sandbox service is
/// asked here as it does.
fn sandbox(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "sandbox").run()?;
    let load = pod.container("load").memory_mib(96).start()?;
    let shim = Shim::connect(&pod)?;
    let usage = || -> Result<(u64, u64)> {
        let metrics = shim.sandbox_metrics(&pod.id)?;
        let memory = metrics.memory.context("no memory")?.usage;
        Ok((memory, metrics.cpu.context("no CPU")?.usage_usec))
    };
    let inside = || -> Result<u64> {
        let text = load.shell("awk '/usage_usec/ {print $2}' /sys/fs/cgroup/cpu.stat")?;
        Ok(text.parse()?)
    };
    let (before, inside_before) = (usage()?, inside()?);
    load.shell(&format!(
        "head -c {HELD} /dev/zero > /dev/shm/held; i=0; while test $i -lt 100000; do i=$((i+1)); done"
    ))?;
    let (inside_after, after) = (inside()?, usage()?);
    let held = after.0.saturating_sub(before.0);
    ensure!(is_about(held, HELD), "{held} bytes more with {HELD} held");
    let (machine, container) = (after.1 - before.1, inside_after - inside_before);
    ensure!(
        container > 0 && machine >= container,
        "the machine used {machine} us, its container {container}"
    );
    let unknown = shim.sandbox_metrics("no-such-sandbox").err();
    ensure!(unknown.is_some(), "metrics of no sandbox");
    Ok(())
}

/// Within 10 %.
fn is_about(found: u64, expected: u64) -> bool {
    (expected * 9 / 10..=expected * 11 / 10).contains(&found)
}

fn network(pod: &Pod<'_>, container: &Container<'_, '_>) -> Result<()> {
    let counters = || -> Result<(u64, u64)> {
        let network = pod.stats()?.network.context("no network statistics")?;
        let eth0 = network.default_interface.context("no interface")?;
        ensure!(
            eth0.name == "eth0",
            "the default interface is {}",
            eth0.name
        );
        let (received, sent) = (eth0.rx_bytes, eth0.tx_bytes);
        Ok((
            received.map_or(0, |it| it.value),
            sent.map_or(0, |it| it.value),
        ))
    };
    let address = pod.addresses()?.first().cloned().context("no address")?;
    container.shell(&format!(
        "(nc -l -p 9000 | wc -c > /received; head -c {SENT} /dev/zero | nc -l -p 9001) \
         > /dev/null 2>&1 &"
    ))?;
    let connect = |port: u16| {
        wait::until("listener", Duration::from_secs(30), || {
            Ok(TcpStream::connect((address.as_str(), port)).ok())
        })
    };
    let before = counters()?;
    let mut to = connect(9000)?;
    to.write_all(&vec![0x5a; usize::try_from(RECEIVED)?])?;
    to.shutdown(Shutdown::Write)?;
    wait::until("all bytes", Duration::from_secs(60), || {
        let count = container.shell("cat /received")?;
        Ok((count == RECEIVED.to_string()).then_some(()))
    })?;
    let between = counters()?;
    let mut bytes = Vec::new();
    connect(9001)?.read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == SENT, "{} bytes came", bytes.len());
    let after = counters()?;
    for (what, found, bytes) in [
        ("received", between.0 - before.0, RECEIVED),
        ("sent", after.1 - between.1, SENT),
    ] {
        let most = bytes + bytes * HEADERS_PERCENT / 100;
        ensure!(
            (bytes..=most).contains(&found),
            "{what}: {found} for {bytes} bytes"
        );
    }
    Ok(())
}

fn memory_and_cpu(pod: &Pod<'_>, container: &Container<'_, '_>) -> Result<()> {
    wait::until("held memory", Duration::from_secs(120), || {
        let size = container.shell("wc -c < /dev/shm/held")?;
        Ok((size == HELD.to_string()).then_some(()))
    })?;
    let usage = || -> Result<(u64, i64)> {
        let cpu = container.stats()?.cpu.context("no CPU statistics")?;
        let used = cpu.usage_core_nano_seconds.context("no CPU time")?.value;
        Ok((used, cpu.timestamp))
    };
    let inside = || -> Result<u64> {
        let text = container.shell("awk '/usage_usec/ {print $2}' /sys/fs/cgroup/cpu.stat")?;
        Ok(text.parse::<u64>()? * 1000)
    };
    let (inside_before, pod_first) = (inside()?, cpu(&pod.stats()?)?);
    let (first, first_at) = usage()?;
    std::thread::sleep(Duration::from_secs(10));
    let (second, second_at) = usage()?;
    let (inside_after, pod_second) = (inside()?, cpu(&pod.stats()?)?);
    ensure!(second_at > first_at, "the statistics' time stands still");
    ensure!(
        inside_before <= first && first < second && second <= inside_after,
        "CPU time {first}..{second} ns, {inside_before}..{inside_after} ns inside"
    );
    let elapsed = u64::try_from(second_at - first_at)?;
    let millicpus = (second - first) * 1000 / elapsed.max(1);
    let expected = u64::try_from(MILLICPUS)?;
    ensure!(
        is_about(millicpus, expected),
        "a load of {expected} thousandths of a CPU is {millicpus}"
    );
    // The pod's is the machine's: what the host spends on the guest counts as well.
    let (of_pod, of_container) = (pod_second - pod_first, second - first);
    ensure!(
        of_pod >= of_container / 10 * 9,
        "the pod used {of_pod} ns while its container used {of_container}"
    );
    let working_set = container
        .stats()?
        .memory
        .and_then(|it| it.working_set_bytes);
    let working_set = working_set.context("no working set")?.value;
    ensure!(
        is_about(working_set, HELD + SHELL),
        "working set {working_set} bytes with {HELD} held"
    );
    let of_pod = memory(&pod.stats()?)?;
    ensure!(
        of_pod > working_set,
        "the pod's working set {of_pod} is less than {working_set}"
    );
    Ok(())
}

fn cpu(stats: &LinuxPodSandboxStats) -> Result<u64> {
    let cpu = stats.cpu.as_ref().context("no CPU statistics of the pod")?;
    Ok(cpu.usage_core_nano_seconds.context("no CPU time")?.value)
}

fn memory(stats: &LinuxPodSandboxStats) -> Result<u64> {
    let memory = stats
        .memory
        .as_ref()
        .context("no memory statistics of the pod")?;
    Ok(memory.working_set_bytes.context("no working set")?.value)
}

/// The containers of a pod, as a list has them.
fn listed(cri: &Cri, pod: &Pod<'_>) -> Result<Vec<ContainerStats>> {
    let filter = ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..ContainerStatsFilter::default()
    };
    let request = ListContainerStatsRequest {
        filter: Some(filter),
    };
    let answer = cri.call("ListContainerStats", |mut c| async move {
        c.list_container_stats(request).await
    })?;
    Ok(answer.stats)
}

/// What a container of a list uses of CPUs, and how long the list is.
fn of_container(list: Vec<ContainerStats>, id: &str) -> Result<(CpuUsage, usize)> {
    let count = list.len();
    let found = list.into_iter().find(|stats| {
        let attributes = stats.attributes.as_ref();
        attributes.is_some_and(|attributes| attributes.id == id)
    });
    let cpu = found.and_then(|stats| stats.cpu);
    Ok((cpu.context("the container is not listed")?, count))
}

/// The same figures from every place that has them.
fn lists(cri: &Cri, pod: &Pod<'_>, container: &Container<'_, '_>) -> Result<()> {
    // containerd tells what is used at present from the second look on.
    let (first, _) = of_container(listed(cri, pod)?, &container.id)?;
    std::thread::sleep(Duration::from_secs(5));
    let (second, containers) = of_container(listed(cri, pod)?, &container.id)?;
    ensure!(containers == 2, "{containers} containers");
    let used = |cpu: &CpuUsage| cpu.usage_core_nano_seconds.map_or(0, |used| used.value);
    let elapsed = u64::try_from(second.timestamp - first.timestamp)?;
    let expected = (used(&second) - used(&first)) * 1_000 / (elapsed / 1_000_000).max(1);
    let cores = second
        .usage_nano_cores
        .context("no usage in nano cores")?
        .value;
    ensure!(
        is_about(cores, expected),
        "{cores} nano cores, not about {expected}"
    );
    let listed = cri.call("ListPodSandboxStats", |mut c| async move {
        c.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
            .await
    })?;
    let ours = listed.stats.iter().find(|stats| {
        let attributes = stats.attributes.as_ref();
        attributes.is_some_and(|attributes| attributes.id == pod.id)
    });
    let ours = ours
        .and_then(|stats| stats.linux.as_ref())
        .context("the pod is not listed")?;
    ensure!(
        ours.containers.len() == 2,
        "{} containers of the pod",
        ours.containers.len()
    );
    let processes = ours.process.as_ref().and_then(|it| it.process_count);
    ensure!(
        processes.is_some_and(|count| count.value >= 2),
        "processes of the pod: {processes:?}"
    );
    let metrics = Command::new("ctr")
        .args([
            "-n",
            "k8s.io",
            "task",
            "metrics",
            "--format",
            "json",
            &container.id,
        ])
        .output()?;
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    ensure!(
        metrics.contains("usage_usec"),
        "ctr task metrics: {metrics:?}"
    );
    Ok(())
}
