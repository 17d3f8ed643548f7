//! The block devices of a spec (`volumeDevices`): disks of the guest, under numbers of its own.

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};

use crate::host::DiskRequest;

/// A block device of the host that a container is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its place in the spec's list of devices.
    pub index: usize,
    /// Which one.
    pub disk: DiskRequest,
}

/// A device's number in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNumber {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// The block devices of `linux`. One that the container may not write to is read-only.
pub fn of(linux: &Linux) -> Vec<BlockDevice> {
    let devices = linux.devices().as_deref().unwrap_or_default();
    let blocks = devices.iter().enumerate();
    let blocks = blocks.filter(|(_, device)| device.typ() == LinuxDeviceType::B);
    blocks
        .filter_map(|(index, device)| {
            let (major, minor) = (device.major(), device.minor());
            let writes = rules(linux).iter().any(|rule| {
                let access = rule.access().as_deref().unwrap_or_default();
                let about = names(rule, major, minor) || names_all(rule);
                rule.allow() && about && access.contains('w')
            });
            Some(BlockDevice {
                index,
                disk: DiskRequest {
                    major: u64::try_from(major).ok()?,
                    minor: u64::try_from(minor).ok()?,
                    read_only: !writes,
                },
            })
        })
        .collect()
}

/// Puts the guest's numbers in place of the host's, in the devices and in their rules. `placed`
/// has one number for each of `blocks`.
pub fn renumber(linux: &mut Linux, blocks: &[BlockDevice], placed: &[GuestNumber]) {
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    let host_rules = rules.clone();
    for (block, number) in blocks.iter().zip(placed) {
        let Some(device) = devices.get_mut(block.index) else {
            continue;
        };
        let (major, minor) = (device.major(), device.minor());
        device.set_major(number.major.into());
        device.set_minor(number.minor.into());
        for (rule, hosts) in rules.iter_mut().zip(&host_rules) {
            if names(hosts, major, minor) {
                rule.set_major(Some(number.major.into()));
                rule.set_minor(Some(number.minor.into()));
            }
        }
    }
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices));
}

fn rules(linux: &Linux) -> &[LinuxDeviceCgroup] {
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    rules.unwrap_or_default()
}

/// Whether a rule is about this one block device.
fn names(rule: &LinuxDeviceCgroup, major: i64, minor: i64) -> bool {
    rule.typ() == Some(LinuxDeviceType::B)
        && (rule.major(), rule.minor()) == (Some(major), Some(minor))
}

/// Whether a rule is about all devices, as a privileged container's is.
fn names_all(rule: &LinuxDeviceCgroup) -> bool {
    let all_types = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    all_types && rule.major().is_none() && rule.minor().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux() -> Linux {
        let json = r#"{"devices": [
                {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5},
                {"path": "/dev/data", "type": "b", "major": 7, "minor": 0},
                {"path": "/dev/fixed", "type": "b", "major": 7, "minor": 1}],
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": 7, "minor": 0, "access": "mrw"},
                {"allow": true, "type": "b", "major": 7, "minor": 1, "access": "mr"}]}}"#;
        serde_json::from_str(json).unwrap()
    }

    fn disk(minor: u64, read_only: bool) -> DiskRequest {
        DiskRequest {
            major: 7,
            minor,
            read_only,
        }
    }

    #[test]
    fn a_device_without_a_right_to_write_is_read_only() {
        let found: Vec<_> = of(&linux()).iter().map(|block| block.disk).collect();
        assert_eq!(found, [disk(0, false), disk(1, true)]);
    }

    #[test]
    fn devices_and_their_rules_get_the_guests_numbers() {
        let mut linux = linux();
        let blocks = of(&linux);
        // The first one's new number is the second one's old number.
        let placed = [(7, 1), (254, 0)].map(|(major, minor)| GuestNumber { major, minor });
        renumber(&mut linux, &blocks, &placed);
        let devices = linux.devices().clone().unwrap();
        let numbers: Vec<_> = devices.iter().map(|d| (d.major(), d.minor())).collect();
        assert_eq!(numbers, [(1, 5), (7, 1), (254, 0)]);
        let rules: Vec<_> = rules(&linux)
            .iter()
            .map(|r| (r.major(), r.minor()))
            .collect();
        let some = |major, minor| (Some(major), Some(minor));
        assert_eq!(rules, [(None, None), some(7, 1), some(254, 0)]);
    }
}
