//! Reads the kernel and the initial image straight from their files into guest memory.

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use podvisor_devices::GuestMemory;
use thiserror::Error;
use vm_memory::{
    GuestAddress, GuestMemory as _, GuestMemoryError, GuestMemoryRegion, ReadVolatile,
    VolatileSlice,
};

use super::layout;
use crate::config::MemorySize;

/// Bytes at the start of a kernel file that tell what it is; an ELF header is shorter, and a
/// bzImage's setup header ends before.
const HEAD_LEN: usize = 0x290;

/// Why a kernel or an initial image could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is neither of the two kinds of kernel.
    #[error("{path} is neither an ELF vmlinux nor a bzImage")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file has the right kind but a content that cannot be.
    #[error("{path} is corrupt: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: &'static str,
    },
    /// The kernel cannot be started through the 64-bit entry.
    #[error("{path} is not supported: {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        what: &'static str,
    },
    /// Guest memory has no room for it.
    #[error("{path} needs guest memory {base:#x}+{len:#x}, which the machine does not have")]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// First guest address.
        base: u64,
        /// Bytes from there.
        len: u64,
    },
}

/// A kernel in guest memory, ready to be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Where its 64-bit entry is.
    pub entry: GuestAddress,
    /// The first guest address behind what it occupies until it is up.
    pub end: u64,
    /// Its own setup header, for a bzImage: it goes into the zero page as it came.
    pub setup_header: Option<SetupHeader>,
}

/// `struct setup_header` of a bzImage (Documentation/arch/x86/boot.rst), from offset 0x1f1 of
/// the file on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader(pub Vec<u8>);

/// Where an initial image lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// First guest address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A file being loaded, with the path that errors name.
struct Source<'a> {
    path: &'a Path,
    file: File,
    len: u64,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self, LoadError> {
        let read = |source| LoadError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        Ok(Self {
            path,
            file,
            len: metadata.len(),
        })
    }

    fn corrupt(&self, what: &'static str) -> LoadError {
        LoadError::Corrupt {
            path: self.path.to_owned(),
            what,
        }
    }

    fn unsupported(&self, what: &'static str) -> LoadError {
        LoadError::Unsupported {
            path: self.path.to_owned(),
            what,
        }
    }

    fn read_error(&self, source: io::Error) -> LoadError {
        LoadError::Read {
            path: self.path.to_owned(),
            source,
        }
    }

    /// Reads up to `len` bytes at `offset` into memory of ours.
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, LoadError> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let position = offset.saturating_add(filled as u64);
            match self
                .file
                .read_at(rest, position)
                .map_err(|e| self.read_error(e))?
            {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Reads `len` bytes at `offset` of the file to `base` in guest memory.
    fn load(
        &mut self,
        offset: u64,
        memory: &GuestMemory,
        base: u64,
        len: u64,
    ) -> Result<(), LoadError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.corrupt("it ends before its content does"));
        }
        let no_room = || LoadError::NoRoom {
            path: self.path.to_owned(),
            base,
            len,
        };
        let count = usize::try_from(len).map_err(|_| no_room())?;
        let slice = memory
            .get_slice(GuestAddress(base), count)
            .map_err(|_: GuestMemoryError| no_room())?;
        self.fill(offset, &slice)
    }

    fn fill(&mut self, offset: u64, slice: &VolatileSlice<'_>) -> Result<(), LoadError> {
        use std::io::{Seek, SeekFrom};
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|e| self.read_error(e))?;
        let mut filled = 0;
        while filled < slice.len() {
            let mut rest = slice
                .offset(filled)
                .map_err(|_| self.corrupt("it has no such part"))?;
            match self.file.read_volatile(&mut rest) {
                Ok(0) => return Err(self.corrupt("it shrank while it was read")),
                Ok(count) => filled += count,
                Err(vm_memory::VolatileMemoryError::IOError(e))
                    if e.kind() == io::ErrorKind::Interrupted => {}
                Err(vm_memory::VolatileMemoryError::IOError(e)) => return Err(self.read_error(e)),
                Err(_) => return Err(self.corrupt("it cannot be mapped")),
            }
        }
        Ok(())
    }
}

/// Loads the kernel in the file `path`, whichever of the two kinds it is.
///
/// # Errors
/// [`LoadError`] when it cannot be read, is no kernel, is corrupt or does not fit.
pub fn load_kernel(path: &Path, memory: &GuestMemory) -> Result<LoadedKernel, LoadError> {
    let mut source = Source::open(path)?;
    let head = source.read_at(0, HEAD_LEN)?;
    if elf::is_elf(&head) {
        elf::load(&mut source, &head, memory)
    } else if bzimage::is_bzimage(&head) {
        bzimage::load(&mut source, &head, memory)
    } else {
        Err(LoadError::UnknownFormat {
            path: path.to_owned(),
        })
    }
}

/// Loads the initial image in the file `path` as high as it goes in RAM below the device hole.
///
/// # Errors
/// [`LoadError`] when it cannot be read or does not fit behind `kernel`.
pub fn load_initrd(
    path: &Path,
    memory: &GuestMemory,
    kernel: &LoadedKernel,
) -> Result<LoadedInitrd, LoadError> {
    let mut source = Source::open(path)?;
    let len = source.len;
    let low_end = low_ram_end(memory);
    let base = low_end
        .checked_sub(len)
        .map(|base| base - base % layout::PAGE_SIZE);
    let no_room = || LoadError::NoRoom {
        path: path.to_owned(),
        base: kernel.end,
        len,
    };
    let base = base
        .filter(|&base| base >= kernel.end)
        .ok_or_else(no_room)?;
    source.load(0, memory, base, len)?;
    Ok(LoadedInitrd { base, len })
}

fn low_ram_end(memory: &GuestMemory) -> u64 {
    let low = memory.find_region(GuestAddress(0));
    low.map_or(MemorySize::MIN, |region| region.len())
}

/// A little-endian number of `N` bytes at `offset`, if it is there.
fn le_bytes<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests;
