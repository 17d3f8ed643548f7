//! A file as a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// Hands out numbers of free devices.
const CONTROL: &str = "/dev/loop-control";
/// Others may take a number first; more often than this they do not.
const ATTEMPTS: usize = 32;

/// `lo_flags` (include/uapi/linux/loop.h).
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` (include/uapi/linux/loop.h).
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (include/uapi/linux/loop.h).
#[repr(C)]
pub struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

mod ioctls {
    use super::LoopConfig;

    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
}

/// A loop device. The kernel takes it away when nobody has it open any more: neither this value nor a
/// machine.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// Keeps the device.
    _device: File,
}

impl LoopDevice {
    /// Makes a device of `file`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn attach(file: &File, read_only: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request has no argument, and the descriptor is open for the call.
            let number = unsafe { ioctls::loop_ctl_get_free(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new()
                .read(true)
                .write(!read_only)
                .open(&path)?;
            match configure(device.as_raw_fd(), file.as_raw_fd(), read_only) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        _device: device,
                    });
                }
                // Somebody else was faster.
                Err(nix::Error::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy))
    }

    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn configure(device: RawFd, file: RawFd, read_only: bool) -> nix::Result<()> {
    let mut flags = AUTOCLEAR | DIRECT_IO;
    if read_only {
        flags |= READ_ONLY;
    }
    let config = LoopConfig {
        fd: u32::try_from(file).map_err(|_| nix::Error::EBADF)?,
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `loop_config`, whose size is asserted above, while `config` lives.
    unsafe { ioctls::loop_configure(device, &raw const config) }?;
    Ok(())
}
