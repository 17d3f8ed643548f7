//! A VMM on podvisor-vmm for a guest with one disk: `block-driver --kernel FILE --initrd FILE --args
//! TEXT --disk FILE --format raw|qcow2`. The guest's console is its output; it ends with the guest.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::mpsc;

use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::{Block, BlockConfig};
use podvisor_vmm::confine::on_start;
use podvisor_vmm::{
    Console, DeviceSlot, KernelArgs, MemoryBacking, MemorySize, ResetPolicy, ThreadKind, Vcpus, Vm,
    VmConfig, VmEvent,
};

const USAGE: &str =
    "usage: block-driver --kernel FILE --initrd FILE --args TEXT --disk FILE --format raw|qcow2";
const MEMORY_LEN: u64 = 256 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("block-driver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (pairs, _) = words.as_chunks();
    let options: HashMap<&str, &str> = pairs
        .iter()
        .map(|[name, value]| (name.as_str(), value.as_str()))
        .collect();
    let option = |name| options.get(name).copied().ok_or(USAGE);
    let format = match option("--format")? {
        "raw" => ImageFormat::Raw,
        "qcow2" => ImageFormat::Qcow2,
        _ => return Err(USAGE.into()),
    };
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let events = Box::new(move |event| {
        if let (VmEvent::Ended(reason), Ok(report)) = (event, report.lock()) {
            // Without a receiver the driver is on its way out.
            let _ = report.send(reason);
        }
    });
    let config = VmConfig {
        processors: Vcpus::try_from(1)?.into(),
        memory: MemorySize::from_bytes(MEMORY_LEN)?,
        memory_backing: MemoryBacking::TransparentHugePages,
        hot_memory: None,
        numa: None,
        generation_id: None,
        smbios: None,
        kernel: PathBuf::from(option("--kernel")?),
        initrd: Some(PathBuf::from(option("--initrd")?)),
        kernel_args: KernelArgs::new(option("--args")?)?,
        // What the load prints goes through the port, as it does in QEMU.
        console: Console::Terminal,
        terminal: None,
        console_output: Some(Box::new(|byte| {
            let mut out = std::io::stdout().lock();
            // Nobody may listen any more.
            let _ = out.write_all(&[byte]);
            if byte == b'\n' {
                let _ = out.flush();
            }
        })),
        power_button: false,
        on_reset: ResetPolicy::End,
        on_poweroff: ResetPolicy::End,
        watchdog: None,
        devices: vec![disk(option("--disk")?, format)?],
    };
    let vm = Vm::start(config, events)?;
    let reason = reports.recv()?;
    drop(vm);
    // Who has all figures listens no more.
    let _ = writeln!(std::io::stdout(), "ended {reason}");
    Ok(())
}

fn disk(path: &str, format: ImageFormat) -> Result<DeviceSlot, Box<dyn Error>> {
    let source = ImageSource {
        file: File::options().read(true).write(true).open(path)?,
        format,
        backing: BackingFiles::Refused,
    };
    let backend = image::open(source, ImageOptions::default())?;
    let thread = EventLoop::spawn("disk", Box::new(on_start(ThreadKind::Disk)))?;
    let device = Block::new(BlockConfig::default(), backend, thread)?;
    Ok(DeviceSlot::new("disk", device))
}
