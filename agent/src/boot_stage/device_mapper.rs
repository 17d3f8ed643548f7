//! Devices made of parts of others, read-only (linux/dm-ioctl.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::block::BlockDevice;

const CONTROL: &str = "/dev/mapper/control";
/// The interface's version that this speaks; the kernel takes any later one of the same major.
const VERSION: [u32; 3] = [4, 0, 0];
/// Length of `struct dm_ioctl`.
const HEADER_LEN: u16 = 312;
/// Length of `struct dm_target_spec`.
const TARGET_LEN: usize = 40;
/// Longest name, with its zero.
const NAME_LEN: usize = 128;
const NAME_AT: usize = 48;
const DEVICE_AT: usize = 40;
const READ_ONLY: u32 = 1;

/// A command's number.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Resume = 6,
    Load = 9,
}

impl Command {
    /// _IOWR(0xfd, NUMBER, struct dm_ioctl)
    fn request(self) -> libc::c_ulong {
        0xc138_fd00 | self as libc::c_ulong
    }
}

/// A part of a device: sectors that a target serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub len: u64,
    /// Its kind: `linear`, `striped`.
    pub kind: &'static str,
    /// What its kind takes (Documentation/admin-guide/device-mapper).
    pub parameters: String,
}

/// The kernel's device mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens it; its module is loaded.
    ///
    /// # Errors
    ///
    /// What open(2) said.
    pub fn open() -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(CONTROL)?;
        Ok(Self { control })
    }

    /// Makes a device of these targets.
    ///
    /// # Errors
    ///
    /// What the kernel said; nothing of the device is left.
    pub fn make(&self, name: &str, targets: &[Target]) -> io::Result<BlockDevice> {
        let created = self.call(Command::Create, name, 0, &[])?;
        let loaded = self
            .call(Command::Load, name, READ_ONLY, targets)
            .and_then(|_| self.call(Command::Resume, name, 0, &[]));
        if let Err(error) = loaded {
            self.remove(name)?;
            return Err(error);
        }
        Ok(BlockDevice::whole(&format!("dm-{}", minor_of(&created))))
    }

    /// Removes a device that nobody uses.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Command::Remove, name, 0, &[]).map(drop)
    }

    fn call(
        &self,
        command: Command,
        name: &str,
        flags: u32,
        targets: &[Target],
    ) -> io::Result<Vec<u8>> {
        let mut message = message(name, flags, targets)?;
        // SAFETY: the kernel reads and writes as many bytes as the message's own length field
        // says, which is its length.
        let result = unsafe {
            libc::ioctl(
                self.control.as_raw_fd(),
                command.request(),
                message.as_mut_ptr(),
            )
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(message)
    }
}

/// A command's header with its targets.
fn message(name: &str, flags: u32, targets: &[Target]) -> io::Result<Vec<u8>> {
    if name.is_empty() || name.len() >= NAME_LEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let targets_len = targets
        .iter()
        .map(target)
        .map(|target| target.len())
        .sum::<usize>();
    let header_len = usize::from(HEADER_LEN);
    let total = u32::try_from(header_len + targets_len).map_err(io::Error::other)?;
    let count = u32::try_from(targets.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(header_len + targets_len);
    for field in VERSION {
        message.extend(field.to_ne_bytes());
    }
    for field in [total, HEADER_LEN.into(), count, 0, flags] {
        message.extend(field.to_ne_bytes());
    }
    message.resize(NAME_AT, 0);
    message.extend(name.as_bytes());
    message.resize(header_len, 0);
    targets
        .iter()
        .map(target)
        .for_each(|bytes| message.extend(bytes));
    Ok(message)
}

/// A target with its parameters, padded to the next one.
fn target(target: &Target) -> Vec<u8> {
    let len = (TARGET_LEN + target.parameters.len() + 1).next_multiple_of(8);
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(target.start.to_ne_bytes());
    bytes.extend(target.len.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // Where the next one begins, from here.
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(target.kind.as_bytes());
    bytes.resize(TARGET_LEN, 0);
    bytes.extend(target.parameters.as_bytes());
    bytes.resize(len, 0);
    bytes
}

/// The minor number of the device that an answer names, which is its name's number.
fn minor_of(answer: &[u8]) -> u64 {
    let number = answer.get(DEVICE_AT..).and_then(<[u8]>::first_chunk);
    let number = number.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    // huge_encode_dev (linux/kdev_t.h).
    (number & 0xff) | ((number >> 12) & !0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_LEN: usize = super::HEADER_LEN as usize;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let linear = Target {
            start: 0,
            len: 8,
            kind: "linear",
            parameters: "253:1 2048".to_owned(),
        };
        let message = super::message("vg-root", READ_ONLY, &[linear]).unwrap();
        assert_eq!(message.len(), HEADER_LEN + 56);
        assert_eq!(message[12..16], 368_u32.to_ne_bytes());
        assert_eq!(message[28..32], READ_ONLY.to_ne_bytes());
        assert_eq!(&message[NAME_AT..NAME_AT + 8], b"vg-root\0");
        assert_eq!(&message[HEADER_LEN + 24..HEADER_LEN + 31], b"linear\0");
        assert_eq!(&message[HEADER_LEN + 40..HEADER_LEN + 51], b"253:1 2048\0");
        assert!(super::message(&"x".repeat(NAME_LEN), 0, &[]).is_err());
    }

    #[test]
    fn a_device_is_known_by_its_minor_number() {
        let mut answer = vec![0; HEADER_LEN];
        answer[DEVICE_AT..DEVICE_AT + 8].copy_from_slice(&0x10_fd07_u64.to_ne_bytes());
        assert_eq!(minor_of(&answer), 0x107);
    }
}
