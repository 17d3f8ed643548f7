//! One run of a guest that loads its disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

const ARGS: &str = "quiet console=ttyS0 panic=-1";

/// What both VMMs get.
pub struct Files {
    /// Our VMM.
    pub driver: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initial image.
    pub initrd: PathBuf,
    /// The folder of `disk.raw` and `disk.qcow2`.
    pub disks: PathBuf,
}

/// Who runs the guest.
#[derive(Clone, Copy, Debug)]
pub enum Vmm {
    Ours,
    Qemu,
}

/// What a workload came to.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Operations a second.
    pub throughput: f64,
    /// Time of the VMM's threads, the guest's included, for an operation, in microseconds.
    pub cpu_us: f64,
}

/// Runs the guest to its end and returns what each workload came to.
pub fn run(files: &Files, vmm: Vmm, format: &str) -> Result<BTreeMap<String, Measured>> {
    let mut command = match vmm {
        Vmm::Ours => ours(files, format),
        Vmm::Qemu => qemu(files, format),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {vmm:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let measured = read(child.id(), BufReader::new(output));
    if measured.is_err() {
        // It may wait for ever, or have ended.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let measured = measured.with_context(|| format!("{vmm:?} with {format}"))?;
    ensure!(status.success(), "{vmm:?}: {status}");
    Ok(measured)
}

fn read(pid: u32, output: impl BufRead) -> Result<BTreeMap<String, Measured>> {
    let mut measured = BTreeMap::new();
    let mut cpu_before = 0;
    let mut seen = String::new();
    for line in output.lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["begin", _] => cpu_before = cpu_ns(pid)?,
            ["end", name, operations, nanoseconds] => {
                let cpu = cpu_ns(pid)? - cpu_before;
                let (operations, ns) = (operations.parse::<f64>()?, nanoseconds.parse::<f64>()?);
                let result = Measured {
                    throughput: operations * 1e9 / ns,
                    cpu_us: cpu as f64 / 1e3 / operations,
                };
                measured.insert((*name).to_owned(), result);
            }
            ["done", ..] => return finish(measured),
            _ => {
                seen.push_str(&line);
                seen.push('\n');
            }
        }
    }
    bail!("the guest did not come to its end:\n{seen}")
}

fn finish(measured: BTreeMap<String, Measured>) -> Result<BTreeMap<String, Measured>> {
    ensure!(measured.len() == 8, "{} workloads", measured.len());
    Ok(measured)
}

/// Time that the threads of a process have run.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        sum += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(sum)
}

fn disk(files: &Files, format: &str) -> PathBuf {
    files.disks.join(format!("disk.{format}"))
}

fn ours(files: &Files, format: &str) -> Command {
    let mut command = Command::new(&files.driver);
    command
        .arg("--kernel")
        .arg(&files.kernel)
        .arg("--initrd")
        .arg(&files.initrd)
        .args(["--args", ARGS, "--format", format])
        .arg("--disk")
        .arg(disk(files, format));
    command
}

fn qemu(files: &Files, format: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    let path = |path: &Path| path.display().to_string();
    let file = format!(
        "driver=file,node-name=file,aio=io_uring,discard=unmap,filename={}",
        path(&disk(files, format))
    );
    command
        .args([
            "-M",
            "q35,accel=kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            "256",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio"])
        .args(["-kernel", &path(&files.kernel)])
        .args(["-initrd", &path(&files.initrd), "-append", ARGS])
        .args(["-object", "iothread,id=thread"])
        .args(["-blockdev", &file, "-blockdev"])
        .arg(format!("driver={format},node-name=disk,file=file"))
        .args(["-device", "virtio-blk-pci,drive=disk,iothread=thread"]);
    command
}
