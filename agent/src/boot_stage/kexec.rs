//! Loading a kernel to be started in place of this one (kexec_file_load(2)).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};

use rustix::fs::MemfdFlags;

/// KEXEC_FILE_NO_INITRAMFS (linux/kexec.h).
const NO_INITRAMFS: libc::c_ulong = 4;
/// Initial images one after the other are aligned to this
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
const ALIGNMENT: u64 = 4;

/// Loads a kernel; one that was loaded before is forgotten.
///
/// # Errors
///
/// What the kernel said.
pub fn load(kernel: &File, initrd: Option<&File>, command_line: &str) -> io::Result<()> {
    let command_line = CString::new(command_line)?;
    let length = command_line.as_bytes_with_nul().len();
    let (initrd, flags): (RawFd, _) = match initrd {
        Some(file) => (file.as_raw_fd(), 0),
        None => (-1, NO_INITRAMFS),
    };
    // SAFETY: descriptors, and a C string that lives as long as the call, with its length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd,
            length,
            command_line.as_ptr(),
            flags,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A file in memory that is made of parts.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    len: u64,
}

impl MemoryFile {
    /// An empty file.
    ///
    /// # Errors
    ///
    /// What memfd_create(2) said.
    pub fn new(name: &str) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        Ok(Self {
            file: file.into(),
            len: 0,
        })
    }

    /// Appends all of `part`, padded as initial images are.
    ///
    /// # Errors
    ///
    /// What reading or writing said.
    pub fn append(&mut self, part: &mut impl Read) -> io::Result<()> {
        self.len += io::copy(part, &mut self.file)?;
        let padding = self.len.next_multiple_of(ALIGNMENT) - self.len;
        let zeros = [0; 4];
        let padding_len = usize::try_from(padding).unwrap_or_default();
        self.file
            .write_all(zeros.get(..padding_len).unwrap_or_default())?;
        self.len += padding;
        Ok(())
    }

    /// The file.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn parts_are_padded() {
        let mut file = MemoryFile::new("test").unwrap();
        file.append(&mut &b"12345"[..]).unwrap();
        file.append(&mut &b"67"[..]).unwrap();
        let file = file.into_file();
        let mut content = [1; 12];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"12345\0\0\x0067\0\0");
        assert_eq!(file.metadata().unwrap().len(), 12);
    }
}
