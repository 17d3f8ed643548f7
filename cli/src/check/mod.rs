//! `podvisor check`: whether this machine can run pods in virtual machines, and what is missing.

mod containerd;
mod cpu;
mod kernel;
mod machines;
mod release;
mod report;

use std::path::Path;

pub use report::{Check, Report};

/// Looks at everything. Only containerd is asked, nothing is changed.
pub async fn check(address: &Path) -> Report {
    let mut checks = cpu::checks();
    checks.extend(kernel::checks());
    checks.extend(machines::checks());
    checks.extend(containerd::checks(address).await);
    checks.extend(release::checks());
    Report { checks }
}
