//! How a machine's disks are attached, and which of them it boots, by what its pod says.

use podvisor_annotations::value::boot::BootDevice;
use podvisor_annotations::value::disk::{CacheMode as Cache, Disk};
use podvisor_devices::virtio::block::image::CacheMode;
use podvisor_proto::agent::v1::BootSource;
use podvisor_proto::agent::v1::boot_source::Kind as BootFrom;
use podvisor_vmm::Vcpus;

use super::error::TaskError;
use super::pet_plan::TREE;
use crate::guest::pet_disk::DiskOptions;
use crate::machine::disks::DiskSet;

/// The most queues of a disk whose pod says nothing of them: more of them cost memory and interrupts,
/// and hardly speed.
const USUAL_QUEUES_MAX: u8 = 4;

/// The queues of a disk, unless its pod says it: one for each processor that the machine boots with, at
/// most 4.
pub(super) fn queues(vcpus: Vcpus) -> u16 {
    vcpus.get().min(USUAL_QUEUES_MAX).into()
}

/// How a disk is attached, by what the pod says of it; `queues` unless it says how many.
pub(super) fn options(annotated: Option<&Disk>, serial: &str, queues: u16) -> DiskOptions {
    let mut options = DiskOptions {
        serial: serial.to_owned(),
        queues,
        ..DiskOptions::default()
    };
    let Some(disk) = annotated else {
        return options;
    };
    if let Some(serial) = &disk.serial {
        options.serial = serial.as_str().to_owned();
    }
    if let Some(queues) = disk.queues {
        options.queues = queues.get().into();
    }
    options.read_only = disk.ro;
    options.pci = disk.pci.map(|slot| slot.get());
    options.thread = disk.iothread.map(|thread| thread.get());
    options.iops = disk.iops.map(|limit| limit.get());
    options.bps = disk.bps.map(|limit| limit.bytes());
    options.cache = disk.cache.map(|cache| match cache {
        Cache::Writeback => CacheMode::Writeback,
        Cache::None => CacheMode::None,
        Cache::Writethrough => CacheMode::Writethrough,
        Cache::Unsafe => CacheMode::Unsafe,
    });
    options
}

/// What the machine boots from, in order: as the pod says, or what makes it a machine. The machine's own
/// disk is `/`, and also `boot_path` where the container sees it elsewhere.
pub(super) fn boot_sources(
    disks: &DiskSet,
    order: &[BootDevice],
    boot_path: Option<&str>,
    is_tree: bool,
) -> Result<Vec<BootSource>, TaskError> {
    let from = |kind| BootSource { kind: Some(kind) };
    let serial = |options: &DiskOptions| from(BootFrom::DiskSerial(options.serial.clone()));
    if is_tree && order.is_empty() {
        return Ok(vec![from(BootFrom::Tree(TREE.to_owned()))]);
    }
    let mut sources = Vec::new();
    for device in order {
        let BootDevice::Disk(path) = device else {
            let why =
                format!("podvisor.io/boot-order: {device}: no machine boots from the network");
            return Err(TaskError::Invalid(why));
        };
        let is_boot = path.is_root() || boot_path == Some(path.as_str());
        let boot = disks.boot.as_ref().filter(|_| is_boot);
        let boot = boot.map(|(_, options)| options);
        let other = disks
            .others
            .iter()
            .find(|(_, options)| options.path == path.as_str());
        let options = boot.or_else(|| other.map(|(_, options)| options));
        let options = options.ok_or_else(|| {
            TaskError::Invalid(format!(
                "podvisor.io/boot-order: no disk of this machine is {path}"
            ))
        })?;
        sources.push(serial(options));
    }
    if sources.is_empty() {
        let all = disks.boot.iter().map(|(_, options)| options);
        let all = all.chain(disks.others.iter().map(|(_, options)| options));
        sources.extend(all.map(serial));
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podvisor_annotations::Annotations;

    use super::*;
    use crate::machine::disks::BootDisk;
    use crate::machine::store::StoredDisk;

    fn stored() -> StoredDisk {
        StoredDisk {
            file: tempfile::tempfile().unwrap(),
            len: 0,
            read_only: false,
            record: None,
        }
    }

    /// A machine's own disk and one that its container sees at `/data`.
    fn disks() -> DiskSet {
        let mut data = options(None, "disk0", 1);
        data.path = "/data".to_owned();
        DiskSet {
            boot: Some((BootDisk::Volume(stored()), options(None, "boot", 1))),
            others: vec![(stored(), data)],
        }
    }

    fn serials(order: &[&str], boot_path: &str) -> Result<Vec<String>, TaskError> {
        let order: Vec<BootDevice> = order.iter().map(|path| path.parse().unwrap()).collect();
        let sources = boot_sources(&disks(), &order, Some(boot_path), false)?;
        let serials = sources.into_iter().map(|source| match source.kind {
            Some(BootFrom::DiskSerial(serial)) => serial,
            other => panic!("{other:?}"),
        });
        Ok(serials.collect())
    }

    #[test]
    fn the_root_is_the_machines_own_disk_wherever_its_container_sees_it() {
        for boot_path in ["/", "/disk"] {
            for order in [&["/data", "/"], &["/data", boot_path]] {
                assert_eq!(serials(order, boot_path).unwrap(), ["disk0", "boot"]);
            }
            assert_eq!(serials(&[], boot_path).unwrap(), ["boot", "disk0"]);
        }
        let error = serials(&["/", "/other"], "/disk").unwrap_err();
        assert!(error.to_string().contains("/other"), "{error}");
        assert!(serials(&["/disk"], "/").is_err());
    }

    #[test]
    fn a_disk_has_a_queue_for_each_processor_and_the_cache_that_suits_it() {
        let many = [1, 2, 4, 5, 32].map(|vcpus| queues(Vcpus::try_from(vcpus).unwrap()));
        assert_eq!(many, [1, 2, 4, 4, 4]);
        let annotated = "[{path: /, ro: true}, {path: /data, queues: 7, cache: none}]";
        let annotated = BTreeMap::from([("podvisor.io/disks".to_owned(), annotated.to_owned())]);
        let annotated = Annotations::parse(&annotated).unwrap();
        let [usual, told] = annotated.disks.as_slice() else {
            panic!("{annotated:?}");
        };
        let of = |disk| {
            let options = options(disk, "disk0", 3);
            (options.queues, options.cache)
        };
        assert_eq!(of(None), (3, None));
        assert_eq!(of(Some(usual)), (3, None));
        assert_eq!(of(Some(told)), (7, Some(CacheMode::None)));
    }
}
