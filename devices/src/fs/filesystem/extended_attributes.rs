//! Requests about extended attributes of regular files and directories; others have none here.
//!
//! A guest sees its own: `user.*`, `trusted.*` and file capabilities. Security labels are the
//! host's, and access control lists are not enforced by the guest's kernel, so both are said not
//! to be supported rather than pretended.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::fs::{OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};

use super::super::exports::Tree;
use super::super::inode::Inode;
use super::errno;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of linux/limits.h, in bytes.
const LEN_MAX: usize = 1 << 16;

impl Tree {
    /// FUSE_GETXATTR.
    pub(super) fn get_xattr(
        &self,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if inode == ROOT_ID || !is_served(name.to_bytes()) {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let inode = self.inodes.get(inode)?;
        let Some(file) = self.open_for_xattrs(&inode)? else {
            return Err(errno(libc::ENODATA));
        };
        let value = filled(size, |buffer| Ok(fgetxattr(&file, name, buffer)?))?;
        Ok(match u32::try_from(value.len()) {
            Ok(len) if size == 0 => GetxattrReply::Count(len),
            _ => GetxattrReply::Value(value),
        })
    }

    /// FUSE_LISTXATTR.
    pub(super) fn list_xattrs(&self, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let mut names = Vec::new();
        if inode != ROOT_ID {
            let inode = self.inodes.get(inode)?;
            if let Some(file) = self.open_for_xattrs(&inode)? {
                names = filled(0, |buffer| Ok(flistxattr(&file, buffer)?))?;
            }
        }
        let served = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| is_served(name));
        let names: Vec<u8> = served.flatten().copied().collect();
        match u32::try_from(names.len()) {
            Ok(len) if size == 0 => Ok(ListxattrReply::Count(len)),
            Ok(len) if len <= size => Ok(ListxattrReply::Names(names)),
            _ => Err(errno(libc::ERANGE)),
        }
    }

    /// FUSE_SETXATTR.
    pub(super) fn set_xattr(
        &self,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let file = self.open_to_change_xattr(inode, name)?;
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| errno(libc::EINVAL))?;
        Ok(fsetxattr(file, name, value, flags)?)
    }

    /// FUSE_REMOVEXATTR.
    pub(super) fn remove_xattr(&self, inode: u64, name: &CStr) -> io::Result<()> {
        let file = self.open_to_change_xattr(inode, name)?;
        Ok(fremovexattr(file, name)?)
    }

    fn open_to_change_xattr(&self, inode: u64, name: &CStr) -> io::Result<File> {
        let inode = self.writable_inode(inode)?;
        if !is_served(name.to_bytes()) {
            return Err(errno(libc::EOPNOTSUPP));
        }
        self.open_for_xattrs(&inode)?
            .ok_or_else(|| errno(libc::EOPNOTSUPP))
    }

    /// The file in a way extended attributes are accepted through; `None` where it would take a
    /// path.
    fn open_for_xattrs(&self, inode: &Inode) -> io::Result<Option<File>> {
        match inode.kind {
            libc::S_IFREG | libc::S_IFDIR => inode
                .open(&self.proc_fd, OFlags::RDONLY | OFlags::NONBLOCK)
                .map(Some),
            _ => Ok(None),
        }
    }
}

/// Whether an attribute is the guest's business; `name` may end with its NUL.
fn is_served(name: &[u8]) -> bool {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || name == b"security.capability"
}

/// What `read` puts into a buffer of `size` bytes, of the longest there is when `size` is zero.
fn filled(size: u32, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).unwrap_or(LEN_MAX);
    let mut buffer = vec![
        0;
        if size == 0 {
            LEN_MAX
        } else {
            size.min(LEN_MAX)
        }
    ];
    let len = read(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}
