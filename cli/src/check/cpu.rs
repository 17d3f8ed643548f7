//! The processor and KVM.

use std::error::Error;
use std::fs;

use podvisor_vmm::host;

use super::Check;

/// Virtualization in the processor, and KVM with what machines need of it.
pub fn checks() -> Vec<Check> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    vec![virtualization(&cpuinfo), kvm()]
}

fn virtualization(cpuinfo: &str) -> Check {
    let name = "CPU virtualization";
    let has = |flag: &str| {
        let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
        flags.any(|line| line.split_whitespace().any(|word| word == flag))
    };
    match (has("vmx"), has("svm")) {
        (true, _) => Check::good(name, "Intel VT-x (vmx)"),
        (_, true) => Check::good(name, "AMD-V (svm)"),
        _ => Check::bad(
            name,
            "neither vmx nor svm in /proc/cpuinfo",
            "switch it on in the firmware, or allow nested virtualization for this machine",
        ),
    }
}

fn kvm() -> Check {
    let name = "KVM";
    match host::open_kvm() {
        Ok(kvm) => Check::good(
            name,
            format!(
                "{}, version {}, every needed capability",
                host::KVM_PATH,
                kvm.get_api_version()
            ),
        ),
        Err(error) => {
            let remedy = match &error {
                host::HostError::Open { .. } => {
                    "load the module kvm_intel or kvm_amd, and run as root"
                }
                host::HostError::Version(_) | host::HostError::Capabilities(_) => {
                    "use a newer kernel, or real virtualization instead of a paravirtual one"
                }
            };
            Check::bad(name, chain(&error), remedy)
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_line_tells() {
        assert!(virtualization("flags\t\t: fpu vmx sse\n").ok);
        assert!(virtualization("flags : fpu svm\n").ok);
        assert!(!virtualization("flags : fpu vmx_not\nbugs : vmx\n").ok);
    }
}
