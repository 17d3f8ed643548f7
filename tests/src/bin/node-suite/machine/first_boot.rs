//! A machine's first boot, and what people do with it then: its console, its transcript, its network,
//! commands, files, forwarded ports, and the power button.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::{STATUS, STDIN, STDOUT};
use podvisor_tests::streaming::port_channel::DATA;
use podvisor_tests::{Console, Container, Cri, Pod, wait};

use super::{BUSYBOX, BUSYBOX_BOOT, BUSYBOX_RAW, BUSYBOX_TREE, logged_in, machine, machine_pod};
use super::{transcript, wait_for_log};
use crate::case::{Case, long};

/// Longer than the busybox machine takes to end.
const GRACE: Duration = Duration::from_secs(60);
const SHOWN: Duration = Duration::from_secs(30);

pub fn cases() -> Vec<Case> {
    vec![
        long("a_machine_boots_the_disk_of_its_image", qcow2),
        long("a_machine_boots_a_raw_disk_and_starts_over", raw),
        long("a_machine_boots_a_tree_with_a_kernel", tree),
    ]
}

fn qcow2(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "first").run()?;
    let machine = machine(&pod, BUSYBOX).start()?;
    let mut console = logged_in(&machine)?;
    consoles(&machine, &mut console)?;
    network(&pod, &mut console)?;
    commands(&machine).with_context(|| transcript(&machine))?;
    window_size(&mut console)?;
    console.run("echo kept > /var/kept; sync")?;
    layer(&pod)?;
    power_button(&machine)?;
    drop(console);
    // What was written is gone with the machine: the next one has the image's disk again.
    machine.remove()?;
    let again = super::machine(&pod, BUSYBOX).attempt(1).start()?;
    wait_for_log(&again, ": boot 1\n", BUSYBOX_BOOT)?;
    let kept = logged_in(&again)?.run("ls /var");
    ensure!(!kept?.contains("kept"), "the image was written to");
    Ok(())
}

/// Everyone who is attached sees and types the same; the transcript begins with the first line.
fn consoles(machine: &Container<'_, '_>, console: &mut Console) -> Result<()> {
    let mut other = Console::attach(machine)?;
    // Whoever sees what he typed is attached.
    other.send("echo typed by anyone '@'@\n")?;
    other.expect("typed by anyone @@\n", SHOWN)?;
    console.expect("typed by anyone @@\n", SHOWN)?;
    console.send("echo to all of '@'@\n")?;
    console.expect("to all of @@\n", SHOWN)?;
    other.expect("to all of @@\n", SHOWN)?;
    // A burst arrives whole, however fast it comes.
    let lines = console.run("seq 5000")?;
    let lost = lines
        .lines()
        .zip(1..)
        .find(|(line, number)| *line != number.to_string());
    ensure!(
        lines.lines().count() == 5000 && lost.is_none(),
        "{lost:?} of a burst"
    );
    wait_for_log(machine, "\n5000\n", SHOWN)?;
    let log = machine.log()?.stdout;
    let boot = log
        .find(": boot 1\n")
        .context("no boot in the transcript")?;
    let login = log.find(" login: ").context("no prompt")?;
    let burst = log.find("\n4999\n").context("no burst")?;
    ensure!(boot < login && login < burst, "out of order: {log}");
    Ok(())
}

/// The machine owns the pod's address, which it has learnt by DHCP.
fn network(pod: &Pod<'_>, console: &mut Console) -> Result<()> {
    let addresses = pod.addresses()?;
    let address = addresses.first().context("the pod has no address")?;
    let seen = wait::until("the address", SHOWN, || {
        let seen = console.run("ip -o address show dev eth0; cat /sys/class/net/eth0/mtu")?;
        Ok(seen.contains(&format!("inet {address}/")).then_some(seen))
    })?;
    ensure!(seen.ends_with("1450"), "MTU: {seen}");
    let resolver = console.run("cat /etc/resolv.conf")?;
    ensure!(
        resolver.contains("nameserver 10.96.0.10")
            && resolver.contains("default.svc.cluster.local"),
        "name servers: {resolver}"
    );
    let name = console.run("hostname")?;
    ensure!(name == pod.hostname(), "called {name}");
    let routes = console.run("ip route")?;
    ensure!(routes.contains("default via 10.88.0.1"), "routes: {routes}");
    let mut http = TcpStream::connect((address.as_str(), 80)).context("port 80")?;
    http.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    http.read_to_string(&mut page)?;
    ensure!(page.ends_with("here\n"), "{page}");
    let mut forwarded = pod.port_forward(9000)?;
    forwarded.send(DATA, b"through the port")?;
    forwarded.wait_for(DATA, "through the port")
}

/// Commands and copies without SSH: our agent runs beside the machine's own programs.
fn commands(machine: &Container<'_, '_>) -> Result<()> {
    wait::until("the agent", BUSYBOX_BOOT, || {
        Ok(machine.exec(&["true"]).ok().map(drop))
    })?;
    let output = machine.exec(&["sh", "-c", "cat /etc/hostname; echo aside >&2; exit 7"])?;
    ensure!(
        output.stdout == "busybox\n" && output.stderr == "aside\n" && output.code == 7,
        "{output:?}"
    );
    // As kubectl cp does it.
    let wanted = Wanted {
        stdin: true,
        terminal: false,
    };
    let content = "copied\n".repeat(20_000);
    let script = "head -c 140000 > /run/copy";
    let mut copy = machine.exec_stream(&["sh", "-c", script], wanted)?;
    for piece in content.as_bytes().chunks(16 << 10) {
        copy.send(STDIN, piece)?;
    }
    let copied = copy.finish()?;
    ensure!(copied.text(STATUS).contains("Success"), "{copied:?}");
    let back = machine.exec_stream(&["cat", "/run/copy"], Wanted::default())?;
    let back = back.finish()?;
    let (text, status) = (back.text(STDOUT), back.text(STATUS));
    let (len, whole) = (text.len(), content.len());
    ensure!(text == content, "{len} of {whole} bytes: {status}");
    let limited = machine.exec_within(&["sleep", "100"], Duration::from_secs(2));
    ensure!(limited.is_err(), "a command has no time limit: {limited:?}");
    Ok(())
}

/// The window's size, which no serial line carries, reaches the machine's terminal.
fn window_size(console: &mut Console) -> Result<()> {
    console.resize(101, 37)?;
    wait::until("the window's size", SHOWN, || {
        let size = console.run("stty size < /dev/ttyS0")?;
        Ok((size == "37 101").then_some(()))
    })
}

/// What the machine writes lies in a file without a name on a disk of the node's, not in memory.
fn layer(pod: &Pod<'_>) -> Result<()> {
    let mut layers = 0;
    for open in fs::read_dir(format!("/proc/{}/fd", pod.shim_pid()?))? {
        let open = open?.path();
        let target = fs::read_link(&open).unwrap_or_default();
        let target = target.to_string_lossy();
        if target.contains("/io.containerd.runtime.v2.task/") && target.ends_with(" (deleted)") {
            let file_system = statfs(&open)?.filesystem_type();
            ensure!(file_system != TMPFS_MAGIC, "{target} is in memory");
            layers += 1;
        }
    }
    ensure!(layers > 0, "the shim has no layer open");
    Ok(())
}

/// A stop presses the power button: the machine ends by itself, within the grace period.
fn power_button(machine: &Container<'_, '_>) -> Result<()> {
    let begin = Instant::now();
    machine.stop(GRACE)?;
    let took = begin.elapsed();
    ensure!(took < GRACE, "killed after {took:?}");
    let status = machine.status()?;
    ensure!(status.exit_code == 0, "{status:?}");
    let log = machine.log()?.stdout;
    ensure!(log.contains(": end of boot 1\n"), "{log}");
    Ok(())
}

fn raw(cri: &Cri) -> Result<()> {
    // Nothing says that it is a machine but its disk.
    let pod = podvisor_tests::PodBuilder::new(cri, podvisor_tests::Handler::Podvisor, "raw");
    let pod = pod.memory_mib(256).run()?;
    let machine = machine(&pod, BUSYBOX_RAW).start()?;
    let mut console = logged_in(&machine)?;
    let disk = console.run("cat /sys/block/vda/size")?;
    ensure!(disk == "196608", "{disk} sectors");
    let before = console.run("cat /sys/class/net/eth0/address")?;
    console.send("reboot\n")?;
    // The same machine goes on, with what is on its disk: no container has ended.
    console.expect(": boot 2\n", BUSYBOX_BOOT)?;
    drop(console);
    let mut console = logged_in(&machine)?;
    let after = console.run("cat /sys/class/net/eth0/address")?;
    ensure!(before == after, "MAC {before}, then {after}");
    let address = pod.addresses()?.swap_remove(0);
    wait::until("the network after a reboot", SHOWN, || {
        Ok(TcpStream::connect((address.as_str(), 80)).ok().map(drop))
    })?;
    // Switched off from inside, it has ended well.
    console.send("poweroff\n")?;
    let status = machine.wait(BUSYBOX_BOOT)?;
    ensure!(status.exit_code == 0, "{status:?}");
    let log = machine.log()?.stdout;
    ensure!(log.contains(": end of boot 2\n"), "{log}");
    Ok(())
}

fn tree(cri: &Cri) -> Result<()> {
    let pod = machine_pod(cri, "tree").run()?;
    let machine = super::machine(&pod, BUSYBOX_TREE).start()?;
    let mut console = logged_in(&machine)?;
    let kernel = console.run("uname -r; cat /proc/1/comm; head -n 1 /etc/hostname")?;
    let lines: Vec<&str> = kernel.lines().collect();
    ensure!(
        matches!(lines.as_slice(), [kernel, "init", "busybox"] if kernel.contains("cloud-amd64")),
        "{kernel}"
    );
    console.run("echo written > /var/file; sync")?;
    power_button(&machine)
}
