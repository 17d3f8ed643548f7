//! A machine that starts over in place: a reboot ends nothing.

use std::fs;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use podvisor_vmm::{EndReason, OrderError, RestartCause, VmEvent};

use super::guest::Guest;
use super::machines::some_devices;
use super::{case, long};
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        case("vm_reboots_in_place_with_all_devices", reboots),
        long("vm_panic_after_a_reboot_is_an_end", panics_later),
        long("vm_is_restarted_by_its_owner", by_the_owner),
        case("vm_restarts_after_a_triple_fault", triple_faults),
    ]
}

/// Three boots, two processors. Each tries its devices; the disk tells which boot it is.
const BOOTS: &str = "
boot=$(head -c 1 /dev/vda)
echo boot $boot processors $(nproc) random $(head -c 32 /dev/hwrng | wc -c)
printf $((boot+1)) | dd of=/dev/vda conv=notrunc,sync,fsync 2>/dev/null
[ $boot -lt 3 ] && reboot -f
poweroff -f";

fn reboots() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, [b"0".as_slice(), &[0; 1 << 20]].concat())?;
    let guest = Guest::new(BOOTS)?
        .size(2, 256)?
        .devices(some_devices(&disk)?)
        .restarting()
        .start()?;
    for expected in 1..=3 {
        let VmEvent::Restarted { cause, count } = guest.event()? else {
            bail!("ended; console:\n{}", guest.console());
        };
        ensure!(
            (cause, count) == (RestartCause::Guest, expected),
            "{cause:?} {count}"
        );
    }
    guest.shutdown()?;
    ensure!(guest.vm.restarts() == 3);
    let console = guest.console();
    for boot in 0..=3 {
        let line = format!("boot {boot} processors 2 random 32");
        ensure!(
            console.matches(&line).count() == 1,
            "no '{line}' in:\n{console}"
        );
    }
    let mut first = [0];
    fs::File::open(&disk)?.read_exact(&mut first)?;
    ensure!(&first == b"4", "the disk says {first:?}");
    Ok(())
}

fn panics_later() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![b'0'; 1 << 20])?;
    // A text that looks like a panic, in the boot before it, is none of this boot's.
    let script = "
if [ $(head -c 1 /dev/vda) = 0 ]; then
printf 1 | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; echo first; reboot -f
fi
exit 7";
    let guest = Guest::new(script)?
        .devices(some_devices(&disk)?)
        .restarting()
        .start()?;
    ensure!(matches!(guest.event()?, VmEvent::Restarted { .. }));
    match guest.end()? {
        EndReason::GuestPanic { message } if message.contains("Attempted to kill init") => Ok(()),
        other => bail!("{other}"),
    }
}

fn by_the_owner() -> Result<()> {
    let script = "echo up; while true; do sleep 1; done";
    let guest = Guest::new(script)?.size(2, 128)?.restarting().start()?;
    guest.line("up")?;
    for round in 1..=2 {
        guest.vm.restart()?;
        ensure!(
            guest.event()?
                == VmEvent::Restarted {
                    cause: RestartCause::Owner,
                    count: round
                }
        );
    }
    // A paused machine is reset, and stays paused.
    guest.vm.pause()?;
    guest.vm.restart()?;
    guest.event()?;
    let before = guest.console();
    std::thread::sleep(Duration::from_millis(500));
    ensure!(guest.console() == before, "a paused guest went on");
    guest.vm.resume()?;
    podvisor_tests::wait::until("another boot", super::guest::PATIENCE, || {
        Ok((guest.console().len() > before.len()).then_some(()))
    })?;
    guest.vm.stop();
    ensure!(guest.end()? == EndReason::Killed);
    let refused = guest.vm.restart();
    ensure!(matches!(refused, Err(OrderError::Ended)), "{refused:?}");
    Ok(())
}

fn triple_faults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, super::ends::kernel_of(&[0xcc]))?;
    let guest = Guest::new("")?.kernel(kernel).restarting().start()?;
    for _ in 0..3 {
        let event = guest.event()?;
        ensure!(
            matches!(
                event,
                VmEvent::Restarted {
                    cause: RestartCause::TripleFault,
                    ..
                }
            ),
            "{event:?}"
        );
    }
    guest.vm.stop();
    loop {
        match guest.event()? {
            VmEvent::Restarted { .. } => {}
            VmEvent::Ended(EndReason::Killed) => return Ok(()),
            VmEvent::Ended(other) => bail!("{other}"),
        }
    }
}
