//! The devices of a spec. The guest has its own: of the host's only those are named that every
//! kernel has under the same numbers, and block devices, which become the guest's disks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount};
use thiserror::Error;

use super::volume::COMMON_DEVICES;

/// A device of the host that the pod names.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("linux.devices: {0} is a device of the host, which a VM pod does not have")]
pub struct HostDeviceError(PathBuf);

/// Whether a container is privileged: nothing in a spec says so, but containerd gives a writable
/// sysfs to no other (containerd, `pkg/oci`, `WithPrivileged`).
pub fn is_privileged(mounts: &[Mount]) -> bool {
    let writable = |mount: &Mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        !options.iter().any(|option| option == "ro")
    };
    let sysfs = |mount: &&Mount| mount.typ().as_deref() == Some("sysfs");
    mounts.iter().find(sysfs).is_some_and(writable)
}

/// Makes the devices of `linux` the guest's, but for block devices, which keep the host's numbers
/// until they are plugged. A privileged container may use every device of the guest, for which the
/// agent makes nodes.
///
/// # Errors
/// [`HostDeviceError`].
pub fn translate(linux: &mut Linux, privileged: bool) -> Result<(), HostDeviceError> {
    let mut devices = linux.devices().clone().unwrap_or_default();
    if privileged {
        // Without `privileged_without_host_devices` containerd lists all that the host has.
        devices.retain(|device| !is_at_its_place(device));
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources.set_devices(Some(vec![everything()]));
        linux.set_resources(Some(resources));
    }
    let is_translated = |device: &LinuxDevice| device.typ() == LinuxDeviceType::B;
    let foreign = |device: &&LinuxDevice| !is_translated(device) && !is_common(device);
    if let Some(device) = devices.iter().find(foreign) {
        return Err(HostDeviceError(device.path().clone()));
    }
    linux.set_devices(Some(devices));
    Ok(())
}

fn is_common(device: &LinuxDevice) -> bool {
    let character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
    let is_one = |&((major, minor), _): &((u64, u64), _)| {
        u64::try_from(device.major()) == Ok(major) && u64::try_from(device.minor()) == Ok(minor)
    };
    character && COMMON_DEVICES.iter().any(is_one)
}

/// Whether the host has this very device at this very path, as it has those that containerd
/// lists.
fn is_at_its_place(device: &LinuxDevice) -> bool {
    number_at(device.path()).is_some_and(|number| number == (device.major(), device.minor()))
}

fn number_at(path: &Path) -> Option<(i64, i64)> {
    let number = std::fs::symlink_metadata(path).ok()?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    Some((major.into(), minor.into()))
}

/// The rule that allows all access to all devices.
fn everything() -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_access(Some("rwm".to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(devices: &str) -> Linux {
        serde_json::from_str(&format!(r#"{{"devices":[{devices}]}}"#)).unwrap()
    }

    const DISK: &str = r#"{"path":"/dev/my-disk","type":"b","major":8,"minor":0}"#;
    const KVM: &str = r#"{"path":"/dev/my-kvm","type":"c","major":10,"minor":232}"#;
    const ZERO: &str = r#"{"path":"/dev/zero","type":"c","major":1,"minor":5}"#;

    #[test]
    fn a_device_of_the_host_is_refused_by_name() {
        for privileged in [false, true] {
            let error = translate(&mut linux(KVM), privileged).unwrap_err();
            assert_eq!(error, HostDeviceError("/dev/my-kvm".into()));
        }
        // Nor does it pass for another by its path.
        let disguised = r#"{"path":"/dev/null","type":"c","major":10,"minor":232}"#;
        assert!(translate(&mut linux(disguised), false).is_err());
    }

    #[test]
    fn a_block_device_that_the_pod_names_stays() {
        for privileged in [false, true] {
            let mut linux = linux(DISK);
            translate(&mut linux, privileged).unwrap();
            assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
        }
    }

    #[test]
    fn a_device_that_every_kernel_has_stays() {
        let mut linux = linux(ZERO);
        translate(&mut linux, false).unwrap();
        assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn the_hosts_devices_of_a_privileged_container_become_the_guests() {
        let mut linux = linux(ZERO);
        translate(&mut linux, true).unwrap();
        assert!(linux.devices().as_ref().unwrap().is_empty());
        let rules = linux.resources().as_ref().unwrap().devices().clone();
        assert_eq!(rules, Some(vec![everything()]));
    }

    #[test]
    fn a_privileged_container_is_known_by_its_sysfs() {
        let mounts = |options: &str| -> Vec<Mount> {
            let json = format!(
                r#"[{{"destination":"/proc","type":"proc"}},
                    {{"destination":"/sys","type":"sysfs","source":"sysfs","options":[{options}]}}]"#
            );
            serde_json::from_str(&json).unwrap()
        };
        assert!(is_privileged(&mounts(r#""nosuid","rw""#)));
        assert!(!is_privileged(&mounts(r#""nosuid","ro""#)));
        assert!(!is_privileged(&[]));
    }
}
