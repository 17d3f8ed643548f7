//! Attributes and extended attributes.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use fuse_backend_rs::abi::fuse_abi::{FOPEN_IN_KILL_SUIDGID, SetattrValid};
use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};

use super::super::super::attr::no_attributes;
use super::*;

fn set(host: &Host, inode: u64, valid: SetattrValid, change: impl FnOnce(&mut libc::stat64)) {
    let mut wanted = no_attributes();
    change(&mut wanted);
    host.tree
        .setattr(&ROOT_USER, inode, wanted, None, valid)
        .unwrap();
}

#[test]
fn owner_mode_size_and_times_are_set() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "content");
    let file = host.look_up(root, "file").unwrap().inode;
    let owner_and_mode = SetattrValid::UID | SetattrValid::GID | SetattrValid::MODE;
    set(&host, file, owner_and_mode, |wanted| {
        (wanted.st_uid, wanted.st_gid, wanted.st_mode) = (5, 6, 0o4750);
    });
    set(&host, file, SetattrValid::SIZE, |wanted| wanted.st_size = 3);
    set(&host, file, SetattrValid::MTIME, |wanted| {
        (wanted.st_mtime, wanted.st_mtime_nsec) = (1_000_000, 7);
    });
    let metadata = std::fs::metadata(host.path("data/file")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (5, 6));
    assert_eq!(metadata.len(), 3);
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000, 7));
    // Truncating as a privileged process leaves set-user-ID; as another one it does not.
    assert_eq!(metadata.mode() & 0o7777, 0o4750);
    let unprivileged = SetattrValid::SIZE | SetattrValid::KILL_SUIDGID;
    set(&host, file, unprivileged, |wanted| wanted.st_size = 2);
    let metadata = std::fs::metadata(host.path("data/file")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o750);
}

#[test]
fn an_unprivileged_truncating_open_takes_set_user_id_off() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "content");
    let set_user_id = PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(host.path("data/file"), set_user_id).unwrap();
    let file = host.look_up(root, "file").unwrap().inode;
    let flags = u32::try_from(libc::O_WRONLY | libc::O_TRUNC).unwrap();
    let mode = || std::fs::metadata(host.path("data/file")).unwrap().mode() & 0o7777;
    host.tree.open(&USER, file, flags, 0).unwrap();
    assert_eq!(mode(), 0o4755);
    host.tree
        .open(&USER, file, flags, FOPEN_IN_KILL_SUIDGID)
        .unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn a_symbolic_links_own_owner_and_times_are_set() {
    let (host, root) = Host::with_export();
    write(host.path("target"), "");
    symlink("../target", host.path("data/link")).unwrap();
    let link = host.look_up(root, "link").unwrap().inode;
    set(&host, link, SetattrValid::UID, |wanted| wanted.st_uid = 9);
    set(&host, link, SetattrValid::MTIME, |wanted| {
        wanted.st_mtime = 5
    });
    let metadata = std::fs::symlink_metadata(host.path("data/link")).unwrap();
    assert_eq!((metadata.uid(), metadata.mtime()), (9, 5));
    assert_eq!(std::fs::metadata(host.path("target")).unwrap().uid(), 0);
}

#[test]
fn attributes_of_a_removed_open_file_are_still_there() {
    let (host, root) = Host::with_export();
    let (entry, handle) = host.create(&USER, root, "file", creation(0, 0)).unwrap();
    host.tree.unlink(&USER, root, c"file").unwrap();
    let (attributes, _) = host.tree.getattr(&USER, entry.inode, Some(handle)).unwrap();
    assert_eq!(attributes.st_nlink, 0);
}

#[test]
fn only_the_guests_extended_attributes_are_served() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "");
    let file = host.look_up(root, "file").unwrap().inode;
    let tree = &host.tree;
    for name in [
        c"security.selinux",
        c"system.posix_acl_access",
        c"security.ima",
    ] {
        let set = tree.setxattr(&ROOT_USER, file, name, b"x", 0);
        assert_eq!(code(set), libc::EOPNOTSUPP);
        let got = tree.getxattr(&ROOT_USER, file, name, 0);
        assert_eq!(code(got.map(|_| ())), libc::EOPNOTSUPP);
    }
    tree.setxattr(&ROOT_USER, file, c"trusted.mine", b"value", 0)
        .unwrap();
    let got = tree
        .getxattr(&ROOT_USER, file, c"trusted.mine", 100)
        .unwrap();
    assert!(matches!(got, GetxattrReply::Value(value) if value == b"value"));
    let got = tree.getxattr(&ROOT_USER, file, c"trusted.mine", 0).unwrap();
    assert!(matches!(got, GetxattrReply::Count(5)));
    let short = tree.getxattr(&ROOT_USER, file, c"trusted.mine", 2);
    assert_eq!(code(short.map(|_| ())), libc::ERANGE);
    let names = tree.listxattr(&ROOT_USER, file, 100).unwrap();
    assert!(matches!(names, ListxattrReply::Names(names) if names == b"trusted.mine\0"));
    tree.removexattr(&ROOT_USER, file, c"trusted.mine").unwrap();
    let gone = tree.getxattr(&ROOT_USER, file, c"trusted.mine", 9);
    assert_eq!(code(gone.map(|_| ())), libc::ENODATA);
    let root_of_tree = tree.listxattr(&ROOT_USER, ROOT_ID, 100).unwrap();
    assert!(matches!(root_of_tree, ListxattrReply::Names(names) if names.is_empty()));
}

#[test]
fn file_system_statistics_are_the_exports() {
    let (host, root) = Host::with_export();
    assert!(host.tree.statfs(&USER, root).unwrap().f_blocks > 0);
    assert_eq!(host.tree.statfs(&USER, ROOT_ID).unwrap().f_blocks, 0);
}
