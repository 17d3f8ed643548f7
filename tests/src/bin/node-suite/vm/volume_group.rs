//! A group of LVM with the volumes that installers make: swap, and the root behind it. The node has no
//! device mapper and needs none: LVM only writes its metadata, and what is in the root is written to where
//! the metadata says it lies.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::LoopDevice;
use tempfile::TempDir;

use super::boot_disk::{Ext4, UUID};

const MIB: u64 = 1 << 20;
const NAME: &str = "vg";
/// Lengths in MiB: of what comes before the first volume, of the volumes, of all.
const DATA_AT: u64 = 1;
const SWAP: u64 = 8;
const ROOT: u64 = 48;
const LEN: u64 = 64;

/// The group, on its only physical volume. It is gone when dropped.
pub struct VolumeGroup {
    device: LoopDevice,
    /// Where LVM keeps its configuration: nothing of the node's.
    system: TempDir,
}

impl VolumeGroup {
    pub fn new() -> Result<Self> {
        let group = Self {
            device: LoopDevice::new(LEN * MIB)?,
            system: tempfile::tempdir()?,
        };
        let device = group.device.path().to_str().context("a device's name")?;
        let aligned = format!("{DATA_AT}m");
        group.lvm(&["pvcreate", "-y", "--dataalignment", &aligned, device])?;
        group.lvm(&["vgcreate", NAME, device])?;
        for (name, len) in [("swap", SWAP), ("root", ROOT)] {
            let len = format!("{len}m");
            // Not activated, and so not cleared either.
            let inactive = ["-y", "-an", "-Zn", "-Wn"];
            let what = ["-L", &len, "-n", name, NAME];
            group.lvm(&[&["lvcreate"][..], &inactive, &what].concat())?;
        }
        Ok(group)
    }

    /// What GRUB calls the root's volume.
    pub fn grub_name(&self) -> Result<String> {
        let which = format!("{NAME}/root");
        let fields = ["--noheadings", "-o", "vg_uuid,lv_uuid", &which];
        let told = self.lvm(&[&["lvs"][..], &fields].concat())?;
        let mut words = told.split_whitespace();
        let (group, volume) = (words.next(), words.next());
        let group = group.context("a group without an identifier")?;
        let volume = volume.context("a volume without an identifier")?;
        Ok(format!("lvmid/{group}/{volume}"))
    }

    /// Writes the files of `tree` to the root and returns the device of the physical volume.
    pub fn fill(&self, tree: &Path) -> Result<&Path> {
        let root = Ext4 {
            label: "root",
            uuid: UUID,
            offset: (DATA_AT + SWAP) * MIB,
            len_mib: ROOT,
        };
        root.write(tree, self.device.path())?;
        Ok(self.device.path())
    }

    /// Runs a command of LVM and returns what it printed.
    fn lvm(&self, command: &[&str]) -> Result<String> {
        let device = self.device.path().display();
        // No other device, no udev, no copies of the metadata.
        let config = format!(
            "devices {{ filter = [ \"a|^{device}$|\", \"r|.*|\" ] obtain_device_list_from_udev = 0 \
             external_device_info_source = \"none\" }} backup {{ backup = 0 archive = 0 }}"
        );
        let output = Command::new("lvm")
            .env("LVM_SYSTEM_DIR", self.system.path())
            .args(command)
            .args(["--driverloaded", "n", "--config", &config])
            .output()
            .context("lvm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lvm {command:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }
}
