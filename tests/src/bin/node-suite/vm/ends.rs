//! Every way a machine can end, or not even begin, has its own reason.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_tests::node;
use podvisor_vmm::EndReason;

use super::case;
use super::guest::Guest;
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        case("vm_resets_are_told_from_panics", resets_and_panics),
        case("vm_triple_fault_is_an_end", triple_fault),
        case("vm_is_killed_without_asking_the_guest", killed),
        case("vm_bad_kernels_are_named", bad_kernels),
    ]
}

fn resets_and_panics() -> Result<()> {
    let reset = Guest::new("reboot -f")?.start()?;
    ensure!(reset.end()? == EndReason::Reset);
    let keyboard = Guest::new("reboot -f")?.args("reboot=k")?.start()?;
    ensure!(keyboard.end()? == EndReason::Reset);
    let panic = Guest::new("exit 7")?.start()?;
    match panic.end()? {
        EndReason::GuestPanic { message } if message.contains("Attempted to kill init") => Ok(()),
        other => bail!("{other}"),
    }
}

/// An ELF file whose only code is `code`, at the address where kernels lie.
pub(super) fn kernel_of(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    let mut file = vec![0; 0x78];
    let mut put = |at: usize, bytes: &[u8]| {
        file.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62_u16.to_le_bytes());
    put(24, &ADDRESS.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 1, 0]);
    put(64, &1_u32.to_le_bytes());
    put(72, &0x78_u64.to_le_bytes());
    put(88, &ADDRESS.to_le_bytes());
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &(code.len() as u64).to_le_bytes());
    file.extend(code);
    file
}

fn triple_fault() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("kernel");
    // No interrupt table: the breakpoint faults, the fault faults, and so does that.
    fs::write(&kernel, kernel_of(&[0xcc]))?;
    let guest = Guest::new("")?.kernel(kernel).start()?;
    ensure!(guest.end()? == EndReason::TripleFault);
    Ok(())
}

fn killed() -> Result<()> {
    // With interrupts off and never a reason to leave guest mode.
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, kernel_of(&[0xfa, 0xeb, 0xfe]))?;
    let guest = Guest::new("")?.kernel(kernel).size(4, 64)?.start()?;
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    guest.vm.stop();
    ensure!(guest.end()? == EndReason::Killed);
    ensure!(guest.vm.wait() == EndReason::Killed);
    ensure!(
        asked.elapsed() < Duration::from_secs(2),
        "killed after {:?}",
        asked.elapsed()
    );
    Ok(())
}

fn bad_kernels() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("kernel");
    let good = fs::read(node::release()?.join("vmlinux"))?;
    let cut = good.get(..good.len() / 4).context("an empty kernel")?;
    let tiny = kernel_of(&[0; 64]);
    let cases: [(Option<&[u8]>, &str); 4] = [
        (None, "No such file or directory"),
        (
            Some(b"#!/bin/sh\n"),
            "is neither an ELF vmlinux nor a bzImage",
        ),
        (Some(cut), "is corrupt"),
        (tiny.get(..100), "is corrupt"),
    ];
    for (content, expected) in cases {
        match content {
            Some(content) => fs::write(&path, content)?,
            None => ensure!(!path.exists()),
        }
        let Err(error) = Guest::new("")?.kernel(path.clone()).start() else {
            bail!("started without a kernel: {expected}");
        };
        let text = format!("{error:#}");
        ensure!(text.contains(expected), "'{text}' without '{expected}'");
        ensure!(text.contains("/kernel"), "'{text}' names no file");
    }
    Ok(())
}
