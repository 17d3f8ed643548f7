//! Commands in a machine by QEMU's guest agent, Debian's own, where ours does not run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::STATUS;
use podvisor_tests::{Container, Cri, LoopDevice, wait};

use super::{BUSYBOX, logged_in, machine, machine_pod, transcript};
use crate::case::{Case, long};

const AGENT: &str = "/usr/sbin/qemu-ga";
const DISK_LEN: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(60);

pub fn cases() -> Vec<Case> {
    vec![long(
        "a_machine_takes_commands_by_an_agent_of_its_own",
        own_agent,
    )]
}

/// Puts the agent, with its libraries and the loader for them, on a disk.
fn fill(disk: &LoopDevice) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let libraries = Command::new("ldd").arg(AGENT).output()?;
    let libraries = String::from_utf8(libraries.stdout)?;
    let files = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in files.chain([AGENT]) {
        let name = Path::new(file).file_name().context("a path without name")?;
        fs::copy(file, folder.path().join(name)).with_context(|| format!("copy {file}"))?;
    }
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-O", "^has_journal", "-d"])
        .args([folder.path(), disk.path()])
        .output()?;
    ensure!(made.status.success(), "mkfs.ext4: {made:?}");
    Ok(())
}

fn own_agent(cri: &Cri) -> Result<()> {
    let disk = LoopDevice::new(DISK_LEN)?;
    fill(&disk)?;
    let pod = machine_pod(cri, "agent").run()?;
    let machine = machine(&pod, BUSYBOX).device(disk.path(), "/dev/tools", "mrw");
    let machine = machine.start()?;
    let mut console = logged_in(&machine)?;
    console.run("killall podvisor-agent")?;
    wait::until("a refusal", LIMIT, || {
        Ok(machine.exec(&["true"]).is_err().then_some(()))
    })?;
    let refused = machine.exec(&["true"]).err().context("nobody refuses")?;
    let refused = format!("{refused:#}");
    for tried in ["our agent", "org.qemu.guest_agent.0"] {
        ensure!(refused.contains(tried), "{refused}");
    }
    console
        .run("mkdir /run/tools && mount -o ro $(findfs LABEL=tools || echo /dev/vdb) /run/tools")?;
    console.run(
        "cd /run/tools && ./ld-linux-x86-64.so.2 --library-path . ./qemu-ga --daemonize \
         --method virtio-serial --path /dev/vport*p1 --statedir /run --pidfile /run/qga.pid; cd /",
    )?;
    let seen = commands(&machine);
    seen.with_context(|| format!("the transcript: {}", transcript(&machine)))
}

fn commands(machine: &Container<'_, '_>) -> Result<()> {
    wait::until("the machine's agent", LIMIT, || {
        Ok(machine.exec(&["true"]).ok().map(drop))
    })?;
    let script = "cat /etc/hostname; echo aside $HOME >&2; exit 7";
    let output = machine.exec(&["sh", "-c", script])?;
    ensure!(
        output.stdout == "busybox\n" && output.stderr == "aside /root\n" && output.code == 7,
        "{output:?}"
    );
    let killed = machine.exec(&["sh", "-c", "kill -9 $$"])?;
    ensure!(killed.code == 137, "{killed:?}");
    let missing = machine.exec(&["no-such-program"]);
    ensure!(missing.is_err(), "{missing:?}");
    let limited = machine.exec_within(&["sleep", "1234"], Duration::from_secs(3));
    ensure!(limited.is_err(), "a command has no time limit: {limited:?}");
    wait::until("the end of what took too long", LIMIT, || {
        let listed = machine.exec(&["busybox", "ps"])?;
        ensure!(listed.stdout.contains("qemu-ga"), "{listed:?}");
        Ok((!listed.stdout.contains("sleep 1234")).then_some(()))
    })?;
    input(machine)?;
    let terminal = Wanted {
        stdin: false,
        terminal: true,
    };
    let refused = machine.exec_stream(&["true"], terminal);
    let said = match refused {
        Ok(stream) => stream.finish()?.text(STATUS),
        Err(error) => format!("{error:#}"),
    };
    ensure!(said.contains("leave out -t"), "{said}");
    Ok(())
}

/// Input reaches a command when it has ended, which ctr says as kubectl does.
fn input(machine: &Container<'_, '_>) -> Result<()> {
    let content = "typed\n".repeat(20_000);
    let output = machine.exec_by_ctr("cat; exit 9", content.as_bytes())?;
    ensure!(output.status.code() == Some(9), "{output:?}");
    let back = String::from_utf8(output.stdout)?;
    ensure!(back == content, "{} of {} bytes", back.len(), content.len());
    Ok(())
}
