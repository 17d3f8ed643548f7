//! Consoles under load, the watchdog, and places on the bus.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use podvisor_devices::console::{ConsoleReader, ReaderConfig, Terminal, WhenFull};
use podvisor_devices::virtio::{Rng, RngConfig};
use podvisor_tests::wait;
use podvisor_vmm::{
    Console, DeviceSlot, PciSlot, RestartCause, VmEvent, WatchdogConfig, spawn_io_loop,
};

use super::guest::{Guest, PATIENCE};
use super::{case, long};
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        long(
            "vm_serial_console_loses_nothing_to_a_slow_reader",
            slow_reader,
        ),
        case("vm_watchdog_resets_a_guest_that_stays_away", watchdog),
        long("vm_devices_sit_where_they_are_wanted", places),
        case("vm_entropy_comes_at_its_rate", entropy),
    ]
}

fn held_reader(terminal: &Terminal, capacity: usize) -> ConsoleReader {
    terminal.reader(ReaderConfig {
        capacity,
        when_full: WhenFull::Hold,
    })
}

/// Reads what is there into `text`; whether there was something.
fn read_some(reader: &ConsoleReader, text: &mut String) -> bool {
    let mut bytes = [0; 1000];
    let count = reader.try_read(&mut bytes);
    text.push_str(&String::from_utf8_lossy(
        bytes.get(..count).unwrap_or_default(),
    ));
    count > 0
}

/// Reads until `end` comes.
fn read_until(reader: &ConsoleReader, text: &mut String, end: &str) -> Result<()> {
    wait::until(end, PATIENCE, || {
        while read_some(reader, text) {}
        Ok(text.contains(end).then_some(()))
    })
}

fn slow_reader() -> Result<()> {
    const LINES: u32 = 30_000;
    let script = format!(
        "exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo; echo ready; read word; seq 1 {LINES}; echo \"typed $word\"; poweroff -f"
    );
    let terminal = Terminal::new();
    let reader = held_reader(&terminal, 2000);
    let guest = Guest::new(&script)?
        .args("quiet")?
        .with(|config| {
            config.console = Console::Terminal;
            config.terminal = Some(terminal.clone());
        })
        .start()?;
    let mut text = String::new();
    read_until(&reader, &mut text, "ready")?;
    ensure!(terminal.input(b"something\n") == 10);
    // A reader that is away for a second holds the guest up, and then gets all.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        read_some(&reader, &mut text);
    }
    read_until(&reader, &mut text, "typed something")?;
    let lines = text.lines().map(str::trim);
    let numbers: Vec<u32> = lines.filter_map(|line| line.parse().ok()).collect();
    ensure!(
        numbers.iter().copied().eq(1..=LINES),
        "{} numbers of {LINES}",
        numbers.len()
    );
    ensure!(reader.lost() == 0, "{} bytes lost", reader.lost());
    guest.shutdown()
}

fn watchdog() -> Result<()> {
    // Our kernel has no driver for it: enabled, it counts from its longest time, which the limit
    // shortens. A second boot leaves it alone.
    let script = "
for device in /sys/bus/pci/devices/*; do
[ $(cat $device/device) = 0x25ab ] && found=$device
done
echo watchdog at $(basename $found)
printf '\\002' | dd of=$found/config bs=1 seek=104 conv=notrunc 2>/dev/null
while true; do sleep 1; done";
    let io = spawn_io_loop()?;
    let guest = Guest::new(script)?
        .with(|config| {
            config.watchdog = Some(WatchdogConfig {
                limit: Duration::from_secs(2),
                address: None,
                io,
            });
        })
        .restarting()
        .start()?;
    guest.line("watchdog at 0000:00:01.0")?;
    let event = guest.event()?;
    ensure!(
        matches!(
            event,
            VmEvent::Restarted {
                cause: RestartCause::Watchdog,
                ..
            }
        ),
        "{event:?}"
    );
    ensure!(
        guest
            .console()
            .contains("did not come back to its watchdog")
    );
    guest.vm.stop();
    Ok(())
}

fn places() -> Result<()> {
    let io = spawn_io_loop()?;
    let device = |name: &str, address: Option<u32>| {
        let rng = Rng::new(RngConfig::default(), io.clone())?;
        let mut slot = DeviceSlot::new(name, rng);
        slot.address = address.map(PciSlot::try_from).transpose()?;
        Ok::<_, anyhow::Error>(slot)
    };
    let script = "echo places $(ls /sys/bus/pci/devices) end
head -c 8 /dev/hwrng | wc -c | sed 's/^/random /'; poweroff -f";
    let devices = vec![
        device("a", None)?,
        device("b", Some(31))?,
        device("c", Some(1))?,
    ];
    let guest = Guest::new(script)?.devices(devices).start()?;
    let line = guest.line("places ")?;
    ensure!(
        line == "0000:00:00.0 0000:00:01.0 0000:00:02.0 0000:00:1f.0 end",
        "{line}"
    );
    guest.line("random 8")?;
    guest.shutdown()?;
    let twice = vec![device("a", Some(7))?, device("b", Some(7))?];
    let Err(error) = Guest::new("")?.devices(twice).start() else {
        bail!("two devices in one place");
    };
    let text = format!("{error:#}");
    ensure!(
        text.contains("devices a and b both want PCI slot 7"),
        "{text}"
    );
    Ok(())
}

/// The first second's worth comes at once, the rest as it is earned, whatever the driver asks for.
fn entropy() -> Result<()> {
    let bytes_per_second = NonZeroU32::new(1024);
    let rng = Rng::new(RngConfig { bytes_per_second }, spawn_io_loop()?)?;
    let script = "now() { cut -d . -f 1 /proc/uptime; }; begin=$(now)
dd if=/dev/hwrng of=/dev/null bs=64 count=48 2> /dev/null
echo took $(($(now) - begin)) end; poweroff -f";
    let guest = Guest::new(script)?
        .devices(vec![DeviceSlot::new("rng", rng)])
        .start()?;
    let line = guest.line("took ")?;
    let seconds = line.split(' ').next().map(str::parse::<u64>);
    ensure!(matches!(seconds, Some(Ok(1..))), "{line}");
    guest.shutdown().map(drop)
}
