//! What a pod's requests need to know of this machine.

use std::fs;

use anyhow::{Context, Result};

/// A fresh random id (RFC 9562, version 4).
pub fn new_uid() -> Result<String> {
    let uid = read("/proc/sys/kernel/random/uuid")?;
    Ok(uid.trim().to_owned())
}

/// This machine's name.
pub fn node_name() -> Result<String> {
    Ok(read("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// Name and release of this machine's kernel.
pub fn kernel() -> Result<String> {
    let name = read("/proc/sys/kernel/ostype")?;
    let release = read("/proc/sys/kernel/osrelease")?;
    Ok(format!("{} {}", name.trim(), release.trim()))
}

/// Bytes of memory.
pub fn memory_bytes() -> Result<i64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
    Ok(kib
        .context("/proc/meminfo has no MemTotal")?
        .saturating_mul(1024))
}

/// Content of resolv.conf; empty when there is none.
pub fn resolv_conf() -> String {
    fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {file}"))
}
