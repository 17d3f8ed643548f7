//! Volumes that are file systems in the guest's memory: a pod's emptyDirs of medium `Memory` and
//! `HugePages`. They live as long as the guest.
//!
//! Containers write to them, so that their parts are made from descriptors and through no link.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use podvisor_proto::agent::MEMORY_DIR;
use podvisor_proto::agent::v1::{MakeVolumeRequest, Ownership};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::huge_pages::allow_on_demand;
use crate::volumes::{VolumeError, check_id, check_path, failed, open_directory};

/// Makes the volume unless it is there, and then the part of it that is asked for.
///
/// # Errors
///
/// [`VolumeError`]; a volume that could not be mounted is not there.
pub fn make(request: &MakeVolumeRequest) -> Result<(), VolumeError> {
    check_id(&request.volume_id)?;
    check_path(&request.part)?;
    let folder = Path::new(MEMORY_DIR).join(&request.volume_id);
    if !folder.exists() {
        fs::create_dir_all(&folder).map_err(failed(""))?;
        if let Err(error) = mount_volume(request, &folder) {
            // The mount's failure is what has to be told.
            let _ = fs::remove_dir(&folder);
            return Err(failed("")(error));
        }
    }
    make_part(&folder, request).map_err(failed(&request.part))
}

fn mount_volume(request: &MakeVolumeRequest, folder: &Path) -> io::Result<()> {
    let kind = if request.huge_page_bytes == 0 {
        "tmpfs"
    } else {
        allow_on_demand(request.huge_page_bytes).map_err(io::Error::other)?;
        "hugetlbfs"
    };
    let options = CString::new(options(request)).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(kind, folder, kind, flags, options.as_c_str())?)
}

/// Options of tmpfs and hugetlbfs (Documentation/filesystems/tmpfs.rst,
/// Documentation/admin-guide/mm/hugetlbpage.rst).
fn options(request: &MakeVolumeRequest) -> String {
    let Ownership { mode, uid, gid } = request.root.unwrap_or_default();
    let mut options = format!("mode={mode:o},uid={uid},gid={gid}");
    if request.size_bytes != 0 {
        options.push_str(&format!(",size={}", request.size_bytes));
    }
    if request.huge_page_bytes != 0 {
        options.push_str(&format!(",pagesize={}", request.huge_page_bytes));
    }
    options
}

/// Makes the folders that lead to the part, and the part itself. What is there is left as it is,
/// whatever it is.
fn make_part(folder: &Path, request: &MakeVolumeRequest) -> io::Result<()> {
    let mut names = request.part.split('/').filter(|name| !name.is_empty());
    let Some(mut name) = names.next() else {
        return Ok(());
    };
    let mut here = open_directory(rustix::fs::CWD, folder)?;
    for next in names {
        here = make_folder(here.as_fd(), name)?.0;
        name = next;
    }
    match make_folder(here.as_fd(), name) {
        Ok((part, true)) => own(part.as_fd(), request.part_ownership.unwrap_or_default()),
        Ok((_, false)) | Err(Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A folder, and whether it is new.
fn make_folder(parent: BorrowedFd<'_>, name: &str) -> Result<(OwnedFd, bool), Errno> {
    let is_new = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    Ok((folder, is_new))
}

fn own(folder: BorrowedFd<'_>, ownership: Ownership) -> io::Result<()> {
    let Ownership { mode, uid, gid } = ownership;
    // The owner first: changing it clears set-id bits.
    rustix::fs::fchown(folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(
        folder,
        Mode::from_raw_mode(mode & 0o7777),
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn request(part: &str) -> MakeVolumeRequest {
        let ownership = Ownership {
            mode: 0o2777,
            uid: 0,
            gid: 7,
        };
        MakeVolumeRequest {
            volume_id: "volume-1".to_owned(),
            size_bytes: 1 << 20,
            root: Some(ownership),
            part: part.to_owned(),
            part_ownership: Some(Ownership {
                mode: 0o750,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            }),
            ..MakeVolumeRequest::default()
        }
    }

    #[test]
    fn options_say_owner_size_and_pages() {
        let mut huge = request("");
        assert_eq!(options(&huge), "mode=2777,uid=0,gid=7,size=1048576");
        huge.size_bytes = 0;
        huge.huge_page_bytes = 2 << 20;
        assert_eq!(options(&huge), "mode=2777,uid=0,gid=7,pagesize=2097152");
    }

    #[test]
    fn a_missing_part_is_made_and_an_existing_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        make_part(folder.path(), &request("a/b")).unwrap();
        let mode = |path: &str| {
            let metadata = fs::metadata(folder.path().join(path)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!(mode("a/b"), 0o750);
        let changed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path().join("a/b"), changed).unwrap();
        make_part(folder.path(), &request("a/b")).unwrap();
        assert_eq!(mode("a/b"), 0o700);
        fs::write(folder.path().join("a/file"), "").unwrap();
        make_part(folder.path(), &request("a/file")).unwrap();
    }

    #[test]
    fn a_part_behind_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/", folder.path().join("out")).unwrap();
        assert!(make_part(folder.path(), &request("out/tmp")).is_err());
    }
}
