//! How often processors leave guest mode, as KVM counts it
//! (`KVM_GET_STATS_FD`, Documentation/virt/kvm/api.rst, 4.133).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// `struct kvm_stats_header`: flags, name size, number of descriptors, and three offsets.
const HEADER_LEN: usize = 24;
/// `struct kvm_stats_desc` before the name.
const DESCRIPTOR_LEN: usize = 16;
const EXITS: &[u8] = b"exits";
/// KVM names below a hundred figures; more than this is not what we know.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME_LEN: u32 = 256;

/// Why exits cannot be counted.
#[derive(Debug, Error)]
pub enum StatsError {
    /// KVM has no statistics, or they cannot be read.
    #[error("cannot read KVM's statistics")]
    Read(#[source] io::Error),
    /// KVM's statistics have no figure of exits in the form we know.
    #[error("KVM's statistics have no count of exits")]
    Unknown,
}

/// How often a machine's processors left guest mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// All exits.
    pub total: u64,
    /// Those that KVM did not handle itself.
    pub user: u64,
}

/// Where KVM keeps one processor's count.
pub(super) struct ExitCounter {
    file: File,
    offset: u64,
}

impl ExitCounter {
    pub(super) fn open(vcpu: &VcpuFd) -> Result<Self, StatsError> {
        // SAFETY: The request takes no argument and answers with a new file descriptor.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(StatsError::Read(io::Error::last_os_error()));
        }
        // SAFETY: The descriptor is new and nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        debug_assert!(file.as_raw_fd() >= 0);
        let offset = find_exits(&file)?;
        Ok(Self { file, offset })
    }

    pub(super) fn read(&self) -> Result<u64, StatsError> {
        let mut value = [0; 8];
        self.file
            .read_exact_at(&mut value, self.offset)
            .map_err(StatsError::Read)?;
        Ok(u64::from_ne_bytes(value))
    }
}

fn find_exits(file: &File) -> Result<u64, StatsError> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)
        .map_err(StatsError::Read)?;
    let field = |index: usize| u32_at(&header, index * 4).ok_or(StatsError::Unknown);
    let (name_len, count) = (field(1)?, field(2)?);
    let (descriptors, data) = (u64::from(field(4)?), u64::from(field(5)?));
    if name_len > MAX_NAME_LEN || count > MAX_DESCRIPTORS {
        return Err(StatsError::Unknown);
    }
    let descriptor_len = DESCRIPTOR_LEN + name_len as usize;
    let mut bytes = vec![0; descriptor_len * count as usize];
    file.read_exact_at(&mut bytes, descriptors)
        .map_err(StatsError::Read)?;
    let offset = bytes.chunks_exact(descriptor_len).find_map(exits_offset);
    Ok(data + u64::from(offset.ok_or(StatsError::Unknown)?))
}

/// The data offset in `descriptor`, if it is the one that counts exits.
fn exits_offset(descriptor: &[u8]) -> Option<u32> {
    let name = descriptor
        .get(DESCRIPTOR_LEN..)?
        .split(|&byte| byte == 0)
        .next()?;
    if name == EXITS {
        u32_at(descriptor, 8)
    } else {
        None
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u32::from_ne_bytes)
}
