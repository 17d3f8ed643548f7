//! Runs `boot-driver` and reads what it reports.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

/// One boot.
#[derive(Clone, Debug)]
pub struct Boot {
    /// From just before the VMM's exec to the init's byte.
    pub exec_to_init_ns: u64,
    /// The part of it before the guest's first instruction.
    pub before_entry_ns: u64,
    /// Exits up to the byte.
    pub exits: u64,
    /// Those of them that reached the VMM.
    pub exits_user: u64,
    /// The phases of the start, with their end in milliseconds since the exec.
    pub phases: Vec<(String, f64)>,
}

/// The program in place.
pub struct Driver {
    program: PathBuf,
}

/// A boot to be repeated.
pub struct Command<'a> {
    driver: &'a Driver,
    kernel: &'a Path,
    initrd: &'a Path,
    args: &'a str,
}

impl Driver {
    /// Puts the program into `folder`, from where its pages come as fast as those of any
    /// installed program.
    pub fn copy_to(program: &Path, folder: &Path) -> Result<Self> {
        let copy = folder.join("boot-driver");
        fs::copy(program, &copy).with_context(|| format!("cannot read {}", program.display()))?;
        Ok(Self { program: copy })
    }

    /// A boot of `kernel` with `initrd` and the command line `args`.
    pub fn boot_of<'a>(&'a self, kernel: &'a Path, initrd: &'a Path, args: &'a str) -> Command<'a> {
        Command {
            driver: self,
            kernel,
            initrd,
            args,
        }
    }
}

impl Command<'_> {
    /// Boots once.
    pub fn run(&self) -> Result<Boot> {
        let mut command = std::process::Command::new(&self.driver.program);
        command
            .arg("--kernel")
            .arg(self.kernel)
            .arg("--initrd")
            .arg(self.initrd);
        command
            .arg("--args")
            .arg(self.args)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let exec_ns = monotonic_ns();
        let output = command.output().context("cannot run boot-driver")?;
        ensure!(output.status.success(), "boot-driver: {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        Boot::parse(&text, exec_ns).with_context(|| format!("boot-driver said:\n{text}"))
    }
}

impl Boot {
    fn parse(text: &str, exec_ns: u64) -> Result<Self> {
        let lines: Vec<(&str, u64)> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let values: HashMap<&str, u64> = lines.iter().copied().collect();
        let value = |name: &str| {
            values
                .get(name)
                .copied()
                .with_context(|| format!("no {name}"))
        };
        let start_ns = value("start_ns")? - exec_ns;
        let phases = lines
            .iter()
            .filter_map(|(name, us)| Some((name.strip_prefix("phase.")?, us)));
        let end_ms = |us: &u64| (start_ns + us * 1000) as f64 / 1e6;
        Ok(Self {
            exec_to_init_ns: value("byte_ns")? - exec_ns,
            before_entry_ns: start_ns + value("phase.first_entry")? * 1000,
            exits: value("exits")?,
            exits_user: value("exits_user")?,
            phases: phases
                .map(|(name, us)| (name.to_owned(), end_ms(us)))
                .collect(),
        })
    }
}

/// `CLOCK_MONOTONIC`, which starting processes share.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
