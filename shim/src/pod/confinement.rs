//! The security modules' labels of a spec. Profiles and types are policies of the host's kernel,
//! whereas the container runs on the guest's: what containerd adds by itself is left out, and what
//! a pod names is enforced in the guest or refused, never dropped.

use oci_spec::runtime::Process;
use thiserror::Error;

/// The AppArmor profile of containers that name none (containerd, `internal/cri/server/sputil`).
const DEFAULT_APPARMOR_PROFILE: &str = "cri-containerd.apparmor.d";
/// The name that stands for no AppArmor profile.
const UNCONFINED: &str = "unconfined";
/// SELinux types of containers that name none: container-selinux's defaults (`lxc_contexts`), an
/// alias, and the type of privileged containers.
const DEFAULT_SELINUX_TYPES: [&str; 5] = [
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "svirt_lxc_net_t",
    "spc_t",
];

/// A confinement that a guest does not have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "process.selinuxLabel: {0} is a type of the host's SELinux policy, which a VM pod does not \
     have: leave seLinuxOptions.type out"
)]
pub struct SelinuxTypeError(String);

/// The AppArmor profile that the pod names for a process.
pub fn apparmor_profile(process: &Process) -> Option<&str> {
    let profile = process.apparmor_profile().as_deref()?;
    let defaults = ["", UNCONFINED, DEFAULT_APPARMOR_PROFILE];
    (!defaults.contains(&profile)).then_some(profile)
}

/// Makes sure that the pod names no SELinux type. A level alone tells containers of different pods
/// apart, which their machines do.
///
/// # Errors
/// [`SelinuxTypeError`].
pub fn check_selinux(process: &Process) -> Result<(), SelinuxTypeError> {
    let label = process.selinux_label().as_deref().unwrap_or_default();
    // user:role:type:level
    match label.split(':').nth(2) {
        Some(kind) if !DEFAULT_SELINUX_TYPES.contains(&kind) => {
            Err(SelinuxTypeError(kind.to_owned()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(fields: &str) -> Process {
        let json = format!(r#"{{"cwd":"/","user":{{"uid":0,"gid":0}},{fields}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn only_a_profile_that_the_pod_names_counts() {
        for (name, named) in [
            ("cri-containerd.apparmor.d", false),
            ("unconfined", false),
            ("", false),
            ("my-profile", true),
        ] {
            let process = process(&format!(r#""apparmorProfile":"{name}""#));
            assert_eq!(apparmor_profile(&process), named.then_some(name));
        }
    }

    #[test]
    fn only_a_selinux_type_of_the_pods_own_is_refused() {
        let check = |label: &str| check_selinux(&process(&format!(r#""selinuxLabel":"{label}""#)));
        assert_eq!(check("system_u:system_r:container_t:s0:c4,c5"), Ok(()));
        assert_eq!(check(""), Ok(()));
        let error = check("system_u:system_r:my_t:s0").unwrap_err();
        assert!(error.to_string().contains("my_t"), "{error}");
        assert!(error.to_string().contains("seLinuxOptions.type"), "{error}");
    }
}
