//! File handles: names of files that outlive no file and cost no open descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// `MAX_HANDLE_SZ` of linux/fs.h: the longest handle there is, in bytes.
const HANDLE_LEN_MAX: usize = 128;

/// `struct file_handle` of linux/fs.h with room for every handle.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_LEN_MAX],
}

impl RawHandle {
    fn as_mut_ptr(&mut self) -> *mut libc::file_handle {
        std::ptr::from_mut(self).cast()
    }
}

/// A file's name in its file system. It carries a generation: the handle of a deleted file does
/// not match a later file of the same inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

impl FileHandle {
    /// The handle of an open file; `None` where its file system has none, as an overlay without
    /// the `nfs_export` option.
    ///
    /// # Errors
    /// Those of name_to_handle_at(2), but for those that mean "no handles here".
    pub fn of(fd: impl AsFd) -> io::Result<Option<Self>> {
        let mut raw = RawHandle {
            len: 128,
            kind: 0,
            bytes: [0; HANDLE_LEN_MAX],
        };
        let mut mount_id = 0;
        // SAFETY: the path is a C string, `raw` is a file_handle followed by the room its `len`
        // announces, and both outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                raw.as_mut_ptr(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EOVERFLOW | libc::EINVAL | libc::ENOSYS) => Ok(None),
                _ => Err(error),
            };
        }
        let len = usize::try_from(raw.len).unwrap_or(HANDLE_LEN_MAX);
        Ok(raw.bytes.get(..len).map(|bytes| Self {
            kind: raw.kind,
            bytes: bytes.into(),
        }))
    }

    /// Opens the file; `mount` is any directory or regular file of the mount to reach it through,
    /// not opened with `O_PATH`.
    ///
    /// # Errors
    /// `ESTALE` when the file is gone; others of open_by_handle_at(2).
    pub fn open(&self, mount: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            len: 0,
            kind: self.kind,
            bytes: [0; HANDLE_LEN_MAX],
        };
        for (to, from) in raw.bytes.iter_mut().zip(self.bytes.iter()) {
            *to = *from;
            raw.len += 1;
        }
        // SAFETY: `raw` is a file_handle of `len` bytes that outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_fd().as_raw_fd(),
                raw.as_mut_ptr(),
                flags | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A handle together with the mount it is opened through.
#[derive(Clone, Debug)]
pub(super) struct MountedHandle {
    /// The file.
    pub handle: FileHandle,
    /// A file of its mount.
    pub mount: Arc<File>,
}

impl MountedHandle {
    /// Opens the file; errors as [`FileHandle::open`].
    pub fn open(&self, flags: i32) -> io::Result<OwnedFd> {
        self.handle.open(&*self.mount, flags)
    }
}
