//! What a pod's containers see: each other, their configuration, their volumes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Container, Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate};
use crate::in_pod;

pub fn cases() -> Vec<Case> {
    vec![
        gate("containers_share_network_ipc_and_volumes", share),
        gate("containers_see_what_their_spec_says", configuration),
        gate("a_config_map_update_is_seen_whole", config_map_update),
        gate("executions_end_with_their_own_codes", executions),
        gate("the_guest_has_the_size_of_the_pods_limits", size),
    ]
}

fn share(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "share").run()?;
    let volume = pod.volume("shared")?;
    let first = pod.container("first").mount(&volume, "/data");
    let first = first
        .script("echo hi > /data/hi; nc -l -p 8080 -e echo answered")
        .start()?;
    let second = pod.container("second").mount(&volume, "/data").start()?;
    wait::until("first container's file", Duration::from_secs(20), || {
        Ok(second
            .exec(&["cat", "/data/hi"])?
            .stdout
            .eq("hi\n")
            .then_some(()))
    })?;
    ensure!(
        second.shell("nc 127.0.0.1 8080 </dev/null")? == "answered",
        "no shared network"
    );
    let third = pod
        .container("third")
        .script("echo shared > /dev/shm/f; sleep infinity")
        .start()?;
    wait::until("file in shared memory", Duration::from_secs(20), || {
        Ok((second.exec(&["cat", "/dev/shm/f"])?.stdout == "shared\n").then_some(()))
    })?;
    let (own, other) = (namespace(&second, "ipc")?, namespace(&third, "ipc")?);
    ensure!(own == other, "IPC namespaces differ: {own} and {other}");
    let (own, other) = (namespace(&second, "pid")?, namespace(&third, "pid")?);
    ensure!(
        own != other,
        "containers share the PID namespace {own} unasked"
    );
    let kernel = second.shell("uname -r")?;
    let node = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        kernel != node.trim(),
        "the container runs on the node's kernel {kernel}"
    );
    drop(first);
    Ok(())
}

fn namespace(container: &Container<'_, '_>, kind: &str) -> Result<String> {
    container.shell(&format!("readlink /proc/self/ns/{kind}"))
}

fn configuration(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "configuration").run()?;
    let volume = pod.volume("fixed")?;
    fs::write(volume.join("file"), "content")?;
    let plain = pod
        .container("plain")
        .env("GREETING", "hello world")
        .working_dir("/tmp/new");
    let plain = plain.mount_read_only(&volume, "/fixed").start()?;
    ensure!(
        plain.shell("echo $GREETING; pwd")? == "hello world\n/tmp/new",
        "environment, folder"
    );
    ensure!(plain.shell("hostname")? == pod.hostname(), "hostname");
    let resolv = plain.shell("cat /etc/resolv.conf")?;
    for part in [
        "nameserver 10.96.0.10",
        "search default.svc.cluster.local",
        "ndots:5",
    ] {
        ensure!(
            resolv.contains(part),
            "{part:?} is not in resolv.conf:\n{resolv}"
        );
    }
    ensure!(
        plain.shell("cat /etc/hosts")?.contains("localhost"),
        "hosts"
    );
    ensure!(
        plain.shell("cat /fixed/file")? == "content",
        "read-only volume"
    );
    let write = plain.exec(&["sh", "-c", "echo x > /fixed/file"])?;
    ensure!(
        write.code != 0 && write.stderr.contains("Read-only"),
        "wrote: {write:?}"
    );

    let user = pod
        .container("user")
        .user(1234, 5678, &[42, 43])
        .read_only_root()
        .start()?;
    ensure!(
        user.shell("id -u; id -g; id -G")? == "1234\n5678\n5678 42 43",
        "user and groups"
    );
    let write = user.exec(&["touch", "/file"])?;
    ensure!(
        write.stderr.contains("Read-only file system"),
        "wrote to the root: {write:?}"
    );
    let capabilities = user.shell("grep CapEff /proc/self/status")?;
    ensure!(
        capabilities.ends_with("0000000000000000"),
        "a user's {capabilities}"
    );

    let masked = plain.exec(&["sh", "-c", "cat /proc/kcore | head -c 1 | wc -c"])?;
    ensure!(
        masked.stdout.trim() == "0",
        "/proc/kcore is readable: {masked:?}"
    );
    let sysctl = plain.exec(&["sh", "-c", "echo 1 > /proc/sys/kernel/panic"])?;
    ensure!(sysctl.code != 0, "/proc/sys is writable");
    let seccomp = plain.shell("grep Seccomp: /proc/self/status")?;
    ensure!(seccomp.ends_with('2'), "no seccomp filter: {seccomp}");
    Ok(())
}

/// Writes `content` the way the kubelet's atomic writer does: a new folder, then `..data` is
/// renamed over.
pub fn publish(volume: &Path, version: u32, content: &str) -> Result<()> {
    let folder = format!("..version_{version}");
    fs::create_dir(volume.join(&folder))?;
    fs::write(volume.join(&folder).join("key"), content)?;
    symlink(&folder, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    if version == 1 {
        symlink("..data/key", volume.join("key"))?;
    } else {
        fs::remove_dir_all(volume.join(format!("..version_{}", version - 1)))?;
    }
    Ok(())
}

fn config_map_update(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "configmap").run()?;
    let volume = pod.volume("kubernetes.io~configmap")?;
    publish(&volume, 1, "one")?;
    let reader = pod.container("reader").mount_read_only(&volume, "/config");
    let reader = reader.script(
        "while true; do s=$(cat /config/key 2>&1); [ \"$s\" = \"$l\" ] || echo \"$s\"; l=$s; done",
    );
    let reader = reader.start()?;
    let watcher = in_pod::with_program(pod.container("watcher"))?
        .mount_read_only(&volume, "/config")
        .command(&in_pod::command(in_pod::WATCH, "/config"))
        .start()?;
    wait::until("first version", Duration::from_secs(20), || {
        let ready = reader.log()?.stdout.contains("one") && !watcher.log()?.stdout.is_empty();
        Ok(ready.then_some(()))
    })?;
    publish(&volume, 2, "two")?;
    wait::until("second version", Duration::from_secs(20), || {
        Ok(reader.log()?.stdout.contains("two").then_some(()))
    })?;
    let seen = reader.log()?.stdout;
    ensure!(seen == "one\ntwo\n", "the swap was not atomic: {seen:?}");
    let events = watcher.log()?.stdout;
    ensure!(events == "watching\n..data\n", "inotify events: {events:?}");
    Ok(())
}

fn executions(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "exec").run()?;
    let container = pod.container("idle").env("WHO", "me").start()?;
    for code in [0, 3] {
        let output =
            container.exec(&["sh", "-c", &format!("echo out; echo err >&2; exit {code}")])?;
        ensure!(output.code == code, "{output:?}");
        ensure!(
            (output.stdout.as_str(), output.stderr.as_str()) == ("out\n", "err\n"),
            "{output:?}"
        );
    }
    let killed = container.exec(&["sh", "-c", "kill -KILL $$"])?;
    ensure!(killed.code == 137, "{killed:?}");
    ensure!(
        container.shell("echo $WHO")? == "me",
        "an exec lacks the container's environment"
    );
    let started = Instant::now();
    let missing = container
        .exec(&["no-such-command"])
        .err()
        .context("a missing command ran")?;
    ensure!(
        format!("{missing:#}").contains("no-such-command"),
        "{missing:#}"
    );
    let probe = Instant::now();
    container.exec(&["true"])?;
    // An emulated CPU makes a second long: a missing command may take no longer than running one,
    // or one second.
    let limit = probe.elapsed().max(Duration::from_secs(1));
    ensure!(
        probe.duration_since(started) <= limit * 2,
        "missing command: {:?}",
        started.elapsed()
    );

    let failing = pod.container("failing").script("exit 7").start()?;
    let status = failing.wait(Duration::from_secs(30))?;
    ensure!(status.exit_code == 7, "exit code {}", status.exit_code);
    failing.remove()?;
    let again = pod.container("again").script("echo once more").start()?;
    ensure!(
        again.wait(Duration::from_secs(30))?.exit_code == 0,
        "a later container failed"
    );
    ensure!(
        again.log()?.stdout == "once more\n",
        "log of a later container"
    );

    let missing = pod.container("missing").command(&["/no/such/file"]).start();
    let error = missing
        .err()
        .context("a container without its command started")?;
    ensure!(format!("{error:#}").contains("/no/such/file"), "{error:#}");
    Ok(())
}

fn size(cri: &Cri) -> Result<()> {
    // The limit alone gives no more processors than the node has, which may be one.
    let pod = PodBuilder::new(cri, Handler::Podvisor, "size")
        .cpus(2)
        .annotation("podvisor.io/cpus", "2")
        .memory_mib(640)
        .run()?;
    let container = pod
        .container("idle")
        .memory_mib(640)
        .millicpus(1500)
        .start()?;
    ensure!(
        container.shell("nproc")? == "2",
        "CPUs: {}",
        container.shell("nproc")?
    );
    // All of the limit, and not much more.
    let available: u64 = container
        .shell("awk '/MemAvailable/ {print $2}' /proc/meminfo")?
        .parse()?;
    ensure!(
        (640 << 10..704 << 10).contains(&available),
        "{available} KiB are available for a limit of 640 MiB"
    );
    let limit = container.shell("cat /sys/fs/cgroup/memory.max; cat /sys/fs/cgroup/cpu.max")?;
    ensure!(
        limit == format!("{}\n150000 100000", 640 << 20),
        "limits inside: {limit}"
    );
    Ok(())
}
