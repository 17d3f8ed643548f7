//! The smallest VMM on podvisor-vmm: boots a kernel and reports when the guest's init wrote its
//! first byte to the serial port. Benchmarks start it, as they would start any VMM.
//!
//! Prints one `NAME VALUE` per line: `start_ns` and `byte_ns` are the times on `CLOCK_MONOTONIC`
//! of the call of `Vm::start` and of the byte's arrival, `phase.X` the microseconds from that call
//! to the end of phase X, `exits` and `exits_user` how often the processors left the guest.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use podvisor_vmm::{
    Console, EndReason, KernelArgs, MemoryBacking, MemorySize, ResetPolicy, Vcpus, Vm, VmConfig,
    VmEvent, VmHandle,
};

/// What the guest's init writes first.
const INIT_BYTE: u8 = 0xa5;

const USAGE: &str = "usage: boot-driver --kernel FILE [--initrd FILE] [--args TEXT] [--vcpus N] [--memory-mib N] [--huge-pages yes|no] [--until byte|end]";

/// What the command line asks for.
struct Options {
    config: VmConfig,
    until_end: bool,
}

/// What happened in the guest.
enum Report {
    /// The first byte of init, at this time; the guest waits until the sender is dropped.
    Init {
        at_ns: u128,
        release: SyncSender<()>,
    },
    Ended(EndReason),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot-driver: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  caused by: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (report, reports) = mpsc::channel();
    let Options {
        mut config,
        until_end,
    } = parse(std::env::args().skip(1))?;
    let output = Mutex::new(report.clone());
    config.console_output = Some(Box::new(move |byte| on_output(byte, &output)));
    let report = Mutex::new(report);
    let events = Box::new(move |event| {
        if let VmEvent::Ended(reason) = event {
            send(&report, Report::Ended(reason));
        }
    });
    println!("start_ns {}", monotonic_ns());
    let vm = Vm::start(config, events)?;
    wait(&vm, &reports, until_end)
}

fn wait(vm: &VmHandle, reports: &Receiver<Report>, until_end: bool) -> Result<(), Box<dyn Error>> {
    let mut seen = false;
    loop {
        match reports.recv()? {
            Report::Init { at_ns, release } => {
                print_figures(vm, at_ns)?;
                seen = true;
                if !until_end {
                    return Ok(());
                }
                drop(release);
            }
            Report::Ended(reason) if seen => {
                println!("ended {reason}");
                return Ok(());
            }
            Report::Ended(reason) => {
                let console = vm.console_tail();
                return Err(format!("{reason}\n{}", String::from_utf8_lossy(&console)).into());
            }
        }
    }
}

fn print_figures(vm: &VmHandle, at_ns: u128) -> Result<(), Box<dyn Error>> {
    println!("byte_ns {at_ns}");
    let exits = vm.exits()?;
    println!("exits {}\nexits_user {}", exits.total, exits.user);
    for phase in vm.timeline() {
        println!("phase.{} {}", phase.name, phase.at_us);
    }
    Ok(())
}

fn on_output(byte: u8, report: &Mutex<Sender<Report>>) {
    if byte == INIT_BYTE {
        let at_ns = monotonic_ns();
        let (release, released) = mpsc::sync_channel(0);
        send(report, Report::Init { at_ns, release });
        // An error is the release: the other end was dropped.
        let _ = released.recv();
    }
}

fn send(report: &Mutex<Sender<Report>>, what: Report) {
    if let Ok(report) = report.lock() {
        // Without a receiver the driver is on its way out.
        let _ = report.send(what);
    }
}

/// `CLOCK_MONOTONIC`, which starting processes share.
fn monotonic_ns() -> u128 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u128::from(now.tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(now.tv_nsec.unsigned_abs())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
    let mut kernel = None;
    let mut config = VmConfig {
        processors: Vcpus::try_from(1)?.into(),
        memory: MemorySize::from_bytes(128 << 20)?,
        memory_backing: MemoryBacking::TransparentHugePages,
        hot_memory: None,
        numa: None,
        generation_id: None,
        smbios: None,
        kernel: PathBuf::new(),
        initrd: None,
        kernel_args: KernelArgs::default(),
        console: Console::Log,
        terminal: None,
        console_output: None,
        power_button: false,
        on_reset: ResetPolicy::End,
        on_poweroff: ResetPolicy::End,
        watchdog: None,
        devices: Vec::new(),
    };
    let mut until_end = false;
    while let Some(name) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        match name.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value)),
            "--initrd" => config.initrd = Some(PathBuf::from(value)),
            "--args" => config.kernel_args = KernelArgs::new(&value)?,
            "--vcpus" => config.processors = Vcpus::try_from(value.parse::<u32>()?)?.into(),
            "--memory-mib" => config.memory = MemorySize::from_bytes(value.parse::<u64>()? << 20)?,
            "--huge-pages" if value == "no" => config.memory_backing = MemoryBacking::Normal,
            "--huge-pages" => {}
            "--power-button" => config.power_button = value == "yes",
            "--until" => until_end = value == "end",
            _ => return Err(USAGE.into()),
        }
    }
    config.kernel = kernel.ok_or(USAGE)?;
    Ok(Options { config, until_end })
}
