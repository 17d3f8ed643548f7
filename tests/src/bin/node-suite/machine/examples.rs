//! The repository's own examples of machines, by `podvisor run`, as they are and as somebody new to them
//! would go about it (docs/machines.md).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podvisor_tests::console::{LOGIN, PROMPT};
use podvisor_tests::wait;
use tempfile::NamedTempFile;

use super::DEBIAN_BOOT;
use super::debian::DEBIAN;
use crate::case::{Case, long};
use crate::command_line::ESCAPE;
use crate::terminal::Terminal;

const JOB: &str = include_str!("../../../../../runtimeclass/examples/machine-job.yaml");
const MACHINE: &str = include_str!("../../../../../runtimeclass/examples/machine.yaml");
const PET: &str = include_str!("../../../../../runtimeclass/examples/pet.yaml");
/// The password that the pet's Secret sets.
const PASSWORD: &str = "change me";
/// Where the pet's disk is.
const CLAIM: &str = "/var/lib/podvisor/claims/default/disk-pet-0";
/// The grace period of the machines that have one.
const GRACE: Duration = Duration::from_secs(120);
/// How long `podvisor run` takes at most to tidy up behind a machine that has ended.
const TIDY: Duration = Duration::from_secs(60);
const SHOWN: Duration = Duration::from_secs(60);

pub fn cases() -> Vec<Case> {
    vec![long("example_machines_run_as_written", |cri| {
        // Its download is no part of any limit.
        cri.ensure_image(DEBIAN)?;
        job().context("machine-job.yaml")?;
        machine().context("machine.yaml")?;
        pet().context("pet.yaml")
    })]
}

/// A `podvisor run` of an example.
struct Run {
    podvisor: Child,
    /// What it prints.
    output: NamedTempFile,
}

impl Run {
    fn start(manifest: &str) -> Result<Self> {
        let output = NamedTempFile::new_in("/var/tmp")?;
        let stdio = || output.as_file().try_clone().map(Stdio::from);
        let mut podvisor = Command::new("podvisor")
            .args(["run", "--rm", "-"])
            .stdin(Stdio::piped())
            .stdout(stdio()?)
            .stderr(stdio()?)
            .spawn()
            .context("podvisor run")?;
        let input = podvisor.stdin.take().context("no stdin");
        let run = Self { podvisor, output };
        input?.write_all(manifest.as_bytes())?;
        Ok(run)
    }

    /// Does something with the running pod; what it has printed goes with the error.
    fn meanwhile<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let done = work(self);
        done.with_context(|| format!("the pod has printed: {}", self.shown()))
    }

    /// What it has printed so far.
    fn shown(&self) -> String {
        match fs::read(self.output.path()) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until a command can be run in the machine, and until cloud-init has done all it has to do.
    fn wait_for_boot(&mut self, pod: &str) -> Result<()> {
        wait::until("a command in the machine", DEBIAN_BOOT, || {
            let ended = self.podvisor.try_wait()?;
            ensure!(ended.is_none(), "podvisor run ended: {ended:?}");
            let tried = podvisor(&["exec", "--timeout", "20", pod, "--", "true"]);
            Ok(tried.ok().map(drop))
        })?;
        podvisor(&["exec", pod, "--", "cloud-init", "status", "--wait"]).map(drop)
    }

    /// Waits for its end, and yields its exit code.
    fn end(&mut self, limit: Duration) -> Result<Option<i32>> {
        let podvisor = &mut self.podvisor;
        let status = wait::until(
            "the end of podvisor run",
            limit,
            || Ok(podvisor.try_wait()?),
        )?;
        Ok(status.code())
    }

    /// As Ctrl-C and a service manager do: the pod is deleted.
    fn terminate(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.podvisor.id())?);
        Ok(kill(pid, Signal::SIGTERM)?)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Ok(None) = self.podvisor.try_wait() {
            // After a failure; the pod goes with its grace period.
            let _ = self.terminate();
            let _ = self.podvisor.wait();
        }
    }
}

/// Runs `podvisor`, which must succeed, and yields what it prints.
fn podvisor(arguments: &[&str]) -> Result<String> {
    let output = Command::new("podvisor")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let [said, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let status = output.status;
    ensure!(status.success(), "{arguments:?}: {status}: {said}{error}");
    Ok(said.into_owned())
}

/// Runs a script in a machine.
fn shell(pod: &str, script: &str) -> Result<String> {
    let said = podvisor(&["exec", pod, "--", "sh", "-c", script])?;
    Ok(said.trim().to_owned())
}

/// Somebody at the machine's console, who has asked for its prompt.
fn at_console(pod: &str) -> Result<Terminal> {
    let mut console = Terminal::run(Command::new("podvisor").args(["console", pod]))?;
    console.wait_for("Ctrl-] disconnects", SHOWN)?;
    wait::until("a login prompt", GRACE, || {
        console.type_in("\r")?;
        let shown = console.wait_for(&format!("{pod}{LOGIN}"), PROMPT);
        Ok(shown.ok())
    })?;
    Ok(console)
}

fn leave(mut console: Terminal) -> Result<()> {
    console.type_in(ESCAPE)?;
    let code = console.end()?;
    ensure!(code == Some(0), "podvisor console ends with {code:?}");
    Ok(())
}

/// It works, says so, and switches itself off.
fn job() -> Result<()> {
    let mut run = Run::start(JOB)?;
    run.meanwhile(|run| {
        let code = run.end(DEBIAN_BOOT + GRACE)?;
        let answer = "the answer is 42, says a machine with kernel";
        let answered = run.shown().contains(answer);
        ensure!(code == Some(0) && answered, "it ends with {code:?}");
        Ok(())
    })
}

/// Looked at in every way that the documentation tells of, and removed from elsewhere.
fn machine() -> Result<()> {
    let mut run = Run::start(MACHINE)?;
    run.meanwhile(|run| {
        run.wait_for_boot("vm")?;
        let pods = podvisor(&["ps"])?;
        let is_there = |line: &str| line.contains(" ready ") && line.ends_with(" vm");
        ensure!(pods.lines().any(is_there), "pods: {pods}");
        let motd = shell("vm", "cat /etc/motd")?;
        ensure!(motd == "This machine is a pod.", "/etc/motd: {motd}");
        let kernel = podvisor(&["exec", "vm", "--", "bash", "-c", "uname -a"])?;
        ensure!(kernel.starts_with("Linux vm "), "kernel: {kernel}");
        ssh_answers("vm")?;
        leave(at_console("vm")?)?;
        podvisor(&["rm", "vm"])?;
        // A machine that is switched off ends with 0, one whose plug is pulled with 137.
        let code = run.end(TIDY)?;
        ensure!(code == Some(0), "removed, it ends with {code:?}");
        let pods = podvisor(&["ps"])?;
        ensure!(!pods.lines().any(|line| line.ends_with(" vm")), "{pods}");
        Ok(())
    })
}

/// The machine's sshd is reached by the address that the machine tells.
fn ssh_answers(pod: &str) -> Result<()> {
    let addresses = podvisor(&["exec", pod, "--", "hostname", "-I"])?;
    let address = addresses.split_whitespace().next().context("no address")?;
    let mut ssh = TcpStream::connect((address, 22)).context("port 22")?;
    ssh.set_read_timeout(Some(SHOWN))?;
    let mut greeting = [0; 4];
    ssh.read_exact(&mut greeting)?;
    ensure!(greeting == *b"SSH-", "{address} says {greeting:?}");
    Ok(())
}

/// Deleted and run again, it is the machine that it was.
fn pet() -> Result<()> {
    let _claim = Claim;
    let (first, kept) = visit_pet()?;
    ensure!(kept.is_empty(), "a new disk has {kept:?}");
    let disk = fs::metadata(Path::new(CLAIM).join("disk.img"))?;
    ensure!(disk.len() == 4 << 30, "a disk of {} bytes", disk.len());
    let (second, kept) = visit_pet()?;
    ensure!(kept == "by the first", "on the disk: {kept:?}");
    ensure!(first == second, "another machine: {first}, then {second}");
    Ok(())
}

/// The claim of the pet, which would stay.
struct Claim;

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(CLAIM) {
            eprintln!("{CLAIM} is not removed: {error}");
        }
    }
}

/// All that makes a machine the same one.
const WHO: &str = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub \
    /sys/class/dmi/id/product_uuid /sys/class/dmi/id/product_serial /sys/class/net/e*/address";
/// Shows what a pod before has left, and leaves something for the next one.
const KEEP: &str = "cat /var/lib/kept; echo by the first > /var/lib/kept";

/// Runs the pet's pod and deletes it; yields who its machine is, and what it found.
fn visit_pet() -> Result<(String, String)> {
    let mut run = Run::start(PET)?;
    run.meanwhile(|run| {
        run.wait_for_boot("pet-0")?;
        log_in_to_pet()?;
        let told = shell(
            "pet-0",
            "cat /sys/class/dmi/id/chassis_asset_tag; echo $ROLE",
        )?;
        ensure!(told == "pet\npet", "asset and role: {told}");
        let who = shell("pet-0", WHO)?;
        let kept = shell("pet-0", KEEP)?;
        let begin = Instant::now();
        run.terminate()?;
        let code = run.end(GRACE + TIDY)?;
        let took = begin.elapsed();
        ensure!(
            code == Some(143) && took < GRACE,
            "deleted, it ends with {code:?} after {took:?}"
        );
        Ok((who, kept))
    })
}

/// The Secret's password opens the console, and who is there has the container's environment.
fn log_in_to_pet() -> Result<()> {
    let mut console = at_console("pet-0")?;
    console.type_in("debian\r")?;
    console.wait_for("Password: ", SHOWN)?;
    console.type_in(&format!("{PASSWORD}\r"))?;
    console.wait_for("$ ", SHOWN)?;
    console.type_in("echo \"<$(id -un)>\" is a \"<$ROLE>\"; exit\r")?;
    console.wait_for("<debian> is a <pet>", SHOWN)?;
    console.wait_for(&format!("pet-0{LOGIN}"), SHOWN)?;
    leave(console)
}
