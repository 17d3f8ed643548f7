//! The table of all keys, from which parsing, documentation, schema and admission policy are made.

use crate::key::Key;
use crate::kind::Kind;
use crate::value::boot::{BootDevice, BootKind};
use crate::value::cloud_init::CloudInit;
use crate::value::cpu::{CpuModel, CpuPinning, CpuTopology, Numa, Vcpus};
use crate::value::disk::Disk;
use crate::value::guest::{ConsoleKind, KernelArgs, PowerAction, RngRate, WatchdogTimeout};
use crate::value::memory::{Balloon, Hugepages, MemorySize};
use crate::value::nic::Nic;
use crate::value::smbios::Smbios;
use crate::value::ssh_key::SshKey;

/// Kinds of pod that a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Every pod.
    Every,
    /// Pods that are machines only.
    Machine,
}

impl Applies {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Every => "every pod",
            Self::Machine => "machine pods",
        }
    }
}

/// All about one key.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The key.
    pub key: Key,
    /// The form of its value.
    pub kind: Kind,
    /// What holds without it.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Which pods it is for.
    pub applies: Applies,
    /// Another key whose value it must not be below.
    pub at_least: Option<Key>,
    /// Values that are right.
    pub examples: &'static [&'static str],
}

impl Definition {
    const fn new(key: Key, kind: Kind) -> Self {
        Self {
            key,
            kind,
            default: "",
            meaning: "",
            applies: Applies::Every,
            at_least: None,
            examples: &[],
        }
    }

    const fn means(mut self, meaning: &'static str) -> Self {
        self.meaning = meaning;
        self
    }

    const fn else_is(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn at_least(mut self, other: Key) -> Self {
        self.at_least = Some(other);
        self
    }

    const fn for_machines(mut self) -> Self {
        self.applies = Applies::Machine;
        self
    }

    const fn such_as(mut self, examples: &'static [&'static str]) -> Self {
        self.examples = examples;
        self
    }
}

/// A definition for each key, in the order of [`Key::ALL`].
pub const DEFINITIONS: [Definition; Key::ALL.len()] = [
    Definition::new(Key::Cpus, Vcpus::KIND)
        .means("vCPUs at boot")
        .else_is("the CPU limit rounded up, at most the host's processors")
        .such_as(&["2"]),
    Definition::new(Key::MaxCpus, Vcpus::KIND)
        .means("vCPUs that the guest can have: their number follows the containers' CPU limits when these change")
        .else_is("the vCPUs at boot: their number stays")
        .at_least(Key::Cpus)
        .such_as(&["8"]),
    Definition::new(Key::Memory, MemorySize::KIND)
        .means("guest memory at boot")
        .else_is("the memory limit and what the guest itself takes")
        .such_as(&["512Mi", "1.5Gi", "2147483648"]),
    Definition::new(Key::MaxMemory, MemorySize::KIND)
        .means("guest memory at most: it follows the containers' memory limits when these change")
        .else_is("the memory at boot: it stays")
        .at_least(Key::Memory)
        .such_as(&["8Gi"]),
    Definition::new(Key::CpuTopology, CpuTopology::KIND)
        .means("how the guest's processors are grouped; the product is what it can have at most, max-cpus")
        .else_is("one socket of single-threaded cores")
        .such_as(&["1:4:2"]),
    Definition::new(Key::CpuModel, CpuModel::KIND)
        .means("what CPUID tells the guest; a level is the same on every node that has it")
        .else_is("host")
        .such_as(&["x86-64-v3"]),
    Definition::new(Key::CpuPinning, CpuPinning::KIND)
        .means("whether vCPU threads are bound to the pod's exclusive processors")
        .else_is("none")
        .such_as(&["auto"]),
    Definition::new(Key::Numa, Numa::KIND)
        .means("whether the guest mirrors the NUMA nodes of its processors")
        .else_is("none")
        .such_as(&["auto"]),
    Definition::new(Key::Hugepages, Hugepages::KIND)
        .means("what guest memory lies on")
        .else_is("the node's transparent_huge_pages: thp or none")
        .such_as(&["2Mi"]),
    Definition::new(Key::KernelArgs, KernelArgs::KIND)
        .means("appended for the guest's kernel")
        .else_is("nothing")
        .such_as(&["quiet mitigations=off"]),
    Definition::new(Key::Boot, BootKind::KIND)
        .means("which kind of pod this is, when it should not be told from the pod")
        .else_is("auto")
        .such_as(&["machine"]),
    Definition::new(Key::Disks, Disk::LIST)
        .means("how volumes, named by their devicePath or mountPath, are disks")
        .else_is("every block volume, in the order of the pod, with the defaults below")
        .for_machines()
        .such_as(&[
            "[{path: /, cache: none, queues: 4}]",
            "- path: /data\n  ro: true\n  serial: DATA01\n  pci: 00:07.0\n- path: /scratch\n  iops: 2000\n  bps: 100Mi\n",
        ]),
    Definition::new(Key::Nics, Nic::LIST)
        .means("how interfaces of the pod's network namespace are network cards")
        .else_is("every interface, in the order of the namespace, with the defaults below")
        .for_machines()
        .such_as(&["[{name: eth0, mode: nat}, {name: net1, mac: '52:54:00:12:34:56', mtu: 9000}]"]),
    Definition::new(Key::BootOrder, BootDevice::LIST)
        .means("disks and network cards in the order in which they are tried")
        .else_is("the machine's own disk, then the other disks in their order")
        .for_machines()
        .such_as(&["[/data, /]"]),
    Definition::new(Key::CloudInit, CloudInit::KIND)
        .means("the NoCloud seed: a volume with user-data (and meta-data, network-config), or the user-data itself; hostname, network and keys are filled in")
        .else_is("a seed with hostname, network and keys only")
        .for_machines()
        .such_as(&["/etc/cloud-init", "#cloud-config\npackages: [nginx]\n"]),
    Definition::new(Key::SshKeys, SshKey::LINES)
        .means("public keys that may log in as the image's default user")
        .else_is("none")
        .for_machines()
        .such_as(&["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER me@example.org"]),
    Definition::new(Key::Smbios, Smbios::KIND)
        .means("strings of the firmware's tables")
        .else_is("maker and product are Podvisor's; serial number and UUID are made of the pod's identity")
        .for_machines()
        .such_as(&["{system: {manufacturer: Example, product: Pet, sku: A1}, chassis: {asset: '0042'}, oem-strings: [role=db]}"]),
    Definition::new(Key::Console, ConsoleKind::KIND)
        .means("what attach and logs are connected to")
        .else_is("serial")
        .for_machines()
        .such_as(&["virtio"]),
    Definition::new(Key::Rng, RngRate::KIND)
        .means("how many bytes a second the entropy device gives at most")
        .else_is("no limit")
        .such_as(&["1Ki"]),
    Definition::new(Key::Balloon, Balloon::KIND)
        .means("how memory that the guest does not use goes back to the host")
        .else_is("reporting")
        .such_as(&["auto"]),
    Definition::new(Key::OnPoweroff, PowerAction::KIND)
        .means("what happens when the guest powers off")
        .else_is("stop")
        .for_machines()
        .such_as(&["restart"]),
    Definition::new(Key::OnReboot, PowerAction::KIND)
        .means("what happens when the guest reboots")
        .else_is("restart")
        .for_machines()
        .such_as(&["stop"]),
    Definition::new(Key::Watchdog, WatchdogTimeout::KIND)
        .means("a watchdog device that resets the guest after as many seconds without a sign of life")
        .else_is("no watchdog")
        .for_machines()
        .such_as(&["30"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_key_in_order_and_complete() {
        for (definition, key) in DEFINITIONS.iter().zip(Key::ALL) {
            assert_eq!(definition.key, key);
            assert_eq!(key.definition().key, key);
            for text in [definition.default, definition.meaning] {
                assert!(!text.is_empty(), "{key}");
            }
            assert!(!definition.examples.is_empty(), "{key}");
        }
    }
}
