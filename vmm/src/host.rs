//! What this host must offer for machines to run.

use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// Where KVM is.
pub const KVM_PATH: &str = "/dev/kvm";
/// The one version of KVM's interface (`KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// Why this host cannot run machines.
#[derive(Debug, Error)]
pub enum HostError {
    /// The device is missing or refused.
    #[error("cannot open {path}")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is not KVM, or one of another time.
    #[error("KVM has interface version {0}, not {API_VERSION}")]
    Version(i32),
    /// KVM lacks something.
    #[error("KVM lacks {}", .0.join(", "))]
    Capabilities(Vec<&'static str>),
}

/// What machines need of KVM, by the names of its documentation.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// Opens KVM and makes sure that it can do what machines need.
///
/// # Errors
/// [`HostError`] says what is missing.
pub fn open_kvm() -> Result<Kvm, HostError> {
    let path = Path::new(KVM_PATH);
    let open = |e: kvm_ioctls::Error| HostError::Open {
        path: path.to_owned(),
        source: e.into(),
    };
    let kvm = Kvm::new().map_err(open)?;
    match kvm.get_api_version() {
        API_VERSION => {}
        other => return Err(HostError::Version(other)),
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .collect();
    if missing.is_empty() {
        Ok(kvm)
    } else {
        Err(HostError::Capabilities(
            missing.into_iter().map(|(_, name)| *name).collect(),
        ))
    }
}
