//! Block devices of the guest: disks by their serial numbers, and their partitions, as sysfs has
//! them (Documentation/ABI/stable/sysfs-block).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podvisor_boot_entries::partitions::Table;
use podvisor_boot_entries::superblock::{Content, HEAD_LEN, identify};

const BLOCK: &str = "/sys/block";
/// How long a disk may take to appear. All of a machine's disks are there before it is started:
/// this is for drivers that look for them in the background.
const DISK_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// A disk, or a partition or volume of one.
#[derive(Debug, Clone)]
pub struct BlockDevice {
    /// Its name in the kernel.
    pub name: String,
    /// Number of the partition; `None` for a whole device.
    pub partition: Option<u32>,
}

impl BlockDevice {
    /// A whole device.
    #[must_use]
    pub fn whole(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            partition: None,
        }
    }

    /// Its device node.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Its device number, as `MAJOR:MINOR`.
    ///
    /// # Errors
    ///
    /// What sysfs said.
    pub fn number(&self) -> io::Result<String> {
        let path = format!("/sys/class/block/{}/dev", self.name);
        Ok(fs::read_to_string(path)?.trim().to_owned())
    }

    /// Reads up to `len` bytes at `offset`; fewer at the device's end.
    ///
    /// # Errors
    ///
    /// What the device said.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.node())?;
        let mut buffer = vec![0; len];
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(done as u64))? {
                0 => break,
                count => done += count,
            }
        }
        buffer.truncate(done);
        Ok(buffer)
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// What the device said.
    pub fn content(&self) -> io::Result<Content> {
        Ok(identify(&self.read(0, HEAD_LEN)?))
    }

    /// How it is divided.
    ///
    /// # Errors
    ///
    /// What the device said.
    pub fn table(&self) -> io::Result<Table> {
        Ok(Table::of(&self.read(0, 1024)?))
    }

    /// Its partitions, by number.
    ///
    /// # Errors
    ///
    /// What sysfs said.
    pub fn partitions(&self) -> io::Result<Vec<Self>> {
        let mut partitions = Vec::new();
        let folder = Path::new(BLOCK).join(&self.name);
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let number = fs::read_to_string(entry.path().join("partition"));
            let number = number.ok().and_then(|number| number.trim().parse().ok());
            if number.is_some() {
                partitions.push(Self {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    partition: number,
                });
            }
        }
        partitions.sort_by_key(|device| device.partition);
        Ok(partitions)
    }
}

/// Waits for the disk of this serial number; `None` when there is none.
///
/// # Errors
///
/// What sysfs said.
pub fn wait_for_disk(serial: &str) -> io::Result<Option<BlockDevice>> {
    let begun = Instant::now();
    loop {
        if let Some(name) = find(Path::new(BLOCK), |disk| serial_of(disk) == serial)? {
            return Ok(Some(BlockDevice::whole(&name)));
        }
        if begun.elapsed() > DISK_LIMIT {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Serial numbers of all disks, for people.
#[must_use]
pub fn serials() -> Vec<String> {
    let entries = fs::read_dir(BLOCK).into_iter().flatten().flatten();
    let mut serials: Vec<String> = entries.map(|entry| serial_of(&entry.path())).collect();
    serials.retain(|serial| !serial.is_empty());
    serials.sort();
    serials
}

fn find(block: &Path, is_it: impl Fn(&Path) -> bool) -> io::Result<Option<String>> {
    for entry in fs::read_dir(block)? {
        let entry = entry?;
        if is_it(&entry.path()) {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn serial_of(disk: &Path) -> String {
    let serial = fs::read_to_string(disk.join("serial"));
    serial.unwrap_or_default().trim().to_owned()
}
