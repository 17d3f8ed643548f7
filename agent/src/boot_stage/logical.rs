//! LVM: groups of the physical volumes of a disk, and devices for their volumes.

use std::collections::BTreeMap;
use std::io;

use podvisor_boot_entries::lvm::{self, LogicalVolume, Segment, VolumeGroup};

use super::block::BlockDevice;
use super::device_mapper::{DeviceMapper, Target};

/// A logical volume that has a device.
#[derive(Debug)]
pub struct Logical {
    /// The device.
    pub device: BlockDevice,
    /// Its name below /dev/mapper.
    pub name: String,
    /// What GRUB calls it.
    pub grub_names: Vec<String>,
}

/// The groups of some physical volumes.
#[derive(Debug, Default)]
pub struct Groups {
    groups: BTreeMap<String, VolumeGroup>,
    /// Numbers of the physical volumes' devices, by identifier.
    devices: BTreeMap<String, String>,
}

impl Groups {
    /// Adds a physical volume.
    ///
    /// # Errors
    ///
    /// Why it cannot be used, in words.
    pub fn add(&mut self, device: &BlockDevice) -> Result<(), String> {
        let read = |offset, len| device.read(offset, len);
        let volume = lvm::physical_volume(&read).map_err(|error| crate::error_chain(&error))?;
        let number = device.number().map_err(|error| error.to_string())?;
        self.devices.insert(volume.id, number);
        let group = VolumeGroup::parse(&volume.metadata).map_err(|error| error.to_string())?;
        let known = self.groups.get(&group.id);
        if known.is_none_or(|known| known.sequence < group.sequence) {
            self.groups.insert(group.id.clone(), group);
        }
        Ok(())
    }

    /// Makes devices for all volumes; what has none is told in words.
    pub fn activate(&self, mapper: &DeviceMapper, findings: &mut Vec<String>) -> Vec<Logical> {
        let mut made = Vec::new();
        for group in self.groups.values() {
            for volume in &group.volumes {
                match self.make(mapper, group, volume) {
                    Ok(logical) => made.push(logical),
                    Err(why) => {
                        findings.push(format!("LVM volume {}/{} {why}", group.name, volume.name));
                    }
                }
            }
        }
        made
    }

    fn make(
        &self,
        mapper: &DeviceMapper,
        group: &VolumeGroup,
        volume: &LogicalVolume,
    ) -> Result<Logical, String> {
        let segments = volume.segments.as_ref();
        let segments = segments.map_err(|kind| format!("is of type {kind}, which is not read"))?;
        let targets = segments.iter().map(|segment| self.target(segment));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let name = mapped_name(&group.name, &volume.name);
        let device = mapper
            .make(&name, &targets)
            .map_err(|error: io::Error| format!("cannot be activated: {error}"))?;
        Ok(Logical {
            device,
            grub_names: vec![
                format!("lvm/{name}"),
                format!("lvmid/{}/{}", dashed(&group.id), dashed(&volume.id)),
            ],
            name,
        })
    }

    fn target(&self, segment: &Segment) -> Result<Target, String> {
        let places = segment.stripes.iter().map(|stripe| {
            let device = self.devices.get(&stripe.device);
            let device = device.ok_or("lacks a physical volume")?;
            Ok(format!("{device} {}", stripe.start))
        });
        let places = places.collect::<Result<Vec<_>, &str>>()?;
        let (kind, parameters) = match places.as_slice() {
            [only] => ("linear", only.clone()),
            several => {
                let (count, list) = (several.len(), several.join(" "));
                ("striped", format!("{count} {} {list}", segment.chunk))
            }
        };
        Ok(Target {
            start: segment.start,
            len: segment.len,
            kind,
            parameters,
        })
    }
}

/// The device mapper's name of a volume: dashes of the parts are doubled.
fn mapped_name(group: &str, volume: &str) -> String {
    let escape = |name: &str| name.replace('-', "--");
    format!("{}-{}", escape(group), escape(volume))
}

/// An identifier as LVM writes it.
fn dashed(id: &str) -> String {
    let mut rest = id;
    let mut parts = Vec::new();
    for len in [6, 4, 4, 4, 4, 4, 6] {
        let Some((part, after)) = rest.split_at_checked(len) else {
            return id.to_owned();
        };
        parts.push(part);
        rest = after;
    }
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use podvisor_boot_entries::lvm::Stripe;

    use super::*;

    fn groups() -> Groups {
        let devices = [("a", "254:1"), ("b", "254:2")];
        Groups {
            groups: BTreeMap::new(),
            devices: devices
                .map(|(id, number)| (id.to_owned(), number.to_owned()))
                .into(),
        }
    }

    fn segment(stripes: &[(&str, u64)]) -> Segment {
        let stripes = stripes.iter().map(|(device, start)| Stripe {
            device: (*device).to_owned(),
            start: *start,
        });
        Segment {
            start: 0,
            len: 8192,
            chunk: 128,
            stripes: stripes.collect(),
        }
    }

    #[test]
    fn segments_become_targets() {
        let linear = groups().target(&segment(&[("a", 2048)])).unwrap();
        assert_eq!((linear.kind, &*linear.parameters), ("linear", "254:1 2048"));
        let striped = groups().target(&segment(&[("a", 0), ("b", 8)])).unwrap();
        assert_eq!(striped.parameters, "2 128 254:1 0 254:2 8");
        let missing = groups().target(&segment(&[("c", 0)]));
        assert_eq!(missing.unwrap_err(), "lacks a physical volume");
    }

    #[test]
    fn names_are_those_of_dev_mapper_and_of_grub() {
        assert_eq!(mapped_name("debian-vg", "root"), "debian--vg-root");
        let id = "abcdefghijklmnopqrstuvwxyzabcdef";
        assert_eq!(dashed(id), "abcdef-ghij-klmn-opqr-stuv-wxyz-abcdef");
        assert_eq!(dashed("short"), "short");
    }
}
