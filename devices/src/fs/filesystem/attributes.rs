//! Requests about the attributes of files.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{ROOT_ID, SetattrValid, stat64};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chownat, ftruncate,
    utimensat,
};
use rustix::process::{Gid, Uid};

use super::super::attr::{FileStat, tree_root_attributes};
use super::super::credentials::without_fsetid;
use super::super::exports::Tree;
use super::super::inode::{Inode, PathFd};
use super::errno;

impl Tree {
    /// FUSE_GETATTR, of an open file when the guest names one: that works after its removal too.
    pub(super) fn get_attributes(
        &self,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        if inode == ROOT_ID {
            return Ok((tree_root_attributes(), Duration::ZERO));
        }
        let inode = self.inodes.get(inode)?;
        let stat = match handle.and_then(|handle| self.files.get(handle).ok()) {
            Some(opened) => FileStat::of(&opened.file)?,
            None => inode.stat()?,
        };
        Ok((stat.attributes(inode.volume), inode.export.cache.timeout()))
    }

    /// FUSE_SETATTR. The owner first: changing it takes off set-user-ID, which a mode given at
    /// the same time may set.
    pub(super) fn set_attributes(
        &self,
        inode: u64,
        wanted: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let inode = self.writable_inode(inode)?;
        let fd = inode.path_fd()?;
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let uid = valid.contains(SetattrValid::UID).then_some(wanted.st_uid);
            let gid = valid.contains(SetattrValid::GID).then_some(wanted.st_gid);
            change_owner(&fd, uid, gid)?;
        }
        if valid.contains(SetattrValid::MODE) {
            self.proc_fd
                .chmod(&fd, Mode::from_raw_mode(wanted.st_mode & 0o7777))?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(wanted.st_size).map_err(|_| errno(libc::EFBIG))?;
            let truncate = || self.truncate(&inode, handle, size);
            if valid.contains(SetattrValid::KILL_SUIDGID) {
                without_fsetid(truncate)?;
            } else {
                truncate()?;
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            utimensat(
                fd.as_fd(),
                c"",
                &timestamps(wanted, valid),
                AtFlags::EMPTY_PATH,
            )?;
        }
        let stat = FileStat::of(fd)?;
        Ok((stat.attributes(inode.volume), inode.export.cache.timeout()))
    }

    fn truncate(&self, inode: &Inode, handle: Option<u64>, size: u64) -> io::Result<()> {
        if let Some(opened) = handle.and_then(|handle| self.files.get(handle).ok()) {
            return Ok(ftruncate(&opened.file, size)?);
        }
        Ok(ftruncate(inode.open(&self.proc_fd, OFlags::WRONLY)?, size)?)
    }
}

fn change_owner(fd: &PathFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(errno(libc::EINVAL));
    }
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?)
}

fn timestamps(wanted: &stat64, valid: SetattrValid) -> Timestamps {
    let time = |set, now, seconds, nanoseconds| {
        if !valid.contains(set) {
            Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            }
        } else if valid.contains(now) {
            Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW,
            }
        } else {
            Timespec {
                tv_sec: seconds,
                tv_nsec: nanoseconds,
            }
        }
    };
    Timestamps {
        last_access: time(
            SetattrValid::ATIME,
            SetattrValid::ATIME_NOW,
            wanted.st_atime,
            wanted.st_atime_nsec,
        ),
        last_modification: time(
            SetattrValid::MTIME,
            SetattrValid::MTIME_NOW,
            wanted.st_mtime,
            wanted.st_mtime_nsec,
        ),
    }
}
