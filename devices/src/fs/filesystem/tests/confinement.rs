//! No request leads out of the export it starts in, or around what the guest may do there.

use std::os::unix::fs::{FileTypeExt, symlink};

use super::*;

#[test]
fn names_of_more_than_one_component_are_refused_everywhere() {
    let (host, root) = Host::with_export();
    write(host.path("secret"), "secret");
    for name in ["../secret", "a/b", "/etc/passwd", "/", ""] {
        let name = c(name);
        let tree = &host.tree;
        assert_eq!(code(tree.lookup(&USER, root, &name)), libc::EINVAL);
        assert_eq!(code(tree.lookup(&USER, ROOT_ID, &name)), libc::EINVAL);
        assert_eq!(code(tree.mkdir(&USER, root, &name, 0o777, 0)), libc::EINVAL);
        let regular = libc::S_IFREG | 0o644;
        let made = tree.mknod(&USER, root, &name, regular, 0, 0);
        assert_eq!(code(made), libc::EINVAL);
        let linked = tree.symlink(&USER, c"target", root, &name);
        assert_eq!(code(linked), libc::EINVAL);
        assert_eq!(code(tree.unlink(&USER, root, &name)), libc::EINVAL);
        assert_eq!(code(tree.rmdir(&USER, root, &name)), libc::EINVAL);
        let renamed = tree.rename(&USER, root, &name, root, c"new", 0);
        assert_eq!(code(renamed), libc::EINVAL);
        let created = tree.create(&USER, root, &name, creation(0, 0));
        assert_eq!(code(created), libc::EINVAL);
    }
}

#[test]
fn the_parent_of_an_export_is_the_trees_root() {
    let (host, root) = Host::with_export();
    assert_eq!(host.look_up(root, "..").unwrap().inode, ROOT_ID);
    assert_eq!(host.look_up(ROOT_ID, "..").unwrap().inode, ROOT_ID);
    assert_eq!(host.look_up(root, ".").unwrap().inode, root);
}

#[test]
fn the_parent_of_a_directory_is_not_asked_of_the_host() {
    let (host, root) = Host::with_export();
    std::fs::create_dir(host.path("data/sub")).unwrap();
    let sub = host.look_up(root, "sub").unwrap().inode;
    std::fs::rename(host.path("data/sub"), host.path("outside")).unwrap();
    assert_eq!(code(host.look_up(sub, "..")), libc::EINVAL);
}

#[test]
fn a_symbolic_link_is_shown_and_never_followed() {
    let (host, root) = Host::with_export();
    symlink("/", host.path("data/link")).unwrap();
    let link = host.look_up(root, "link").unwrap();
    assert_eq!(link.attr.st_mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(host.tree.readlink(&USER, link.inode).unwrap(), b"/");
    assert_eq!(code(host.look_up(link.inode, "etc")), libc::ENOTDIR);
    assert_eq!(code(host.tree.open(&USER, link.inode, 0, 0)), libc::ELOOP);
    let listed = host.tree.opendir(&USER, link.inode, 0);
    assert_eq!(code(listed.map(|_| ())), libc::ENOTDIR);
}

#[test]
fn creating_through_a_symbolic_link_fails() {
    let (host, root) = Host::with_export();
    write(host.path("outside"), "kept");
    symlink(host.path("outside"), host.path("data/link")).unwrap();
    let truncating = creation(libc::O_TRUNC, 0);
    assert_eq!(
        host.create(&USER, root, "link", truncating).err(),
        Some(libc::ELOOP)
    );
    assert_eq!(content(&host.path("outside")), b"kept");
}

#[test]
fn nothing_moves_between_exports() {
    let (host, data) = Host::with_export();
    let other = host.export("other", Writes::Everything);
    write(host.path("data/file"), "");
    let file = host.look_up(data, "file").unwrap().inode;
    let renamed = host
        .tree
        .rename(&ROOT_USER, data, c"file", other, c"file", 0);
    assert_eq!(code(renamed), libc::EXDEV);
    let linked = host.tree.link(&ROOT_USER, file, other, c"file");
    assert_eq!(code(linked), libc::EXDEV);
    assert!(host.path("data/file").exists());
}

#[test]
fn the_trees_root_cannot_be_changed() {
    let (host, data) = Host::with_export();
    let tree = &host.tree;
    assert_eq!(
        code(tree.mkdir(&ROOT_USER, ROOT_ID, c"new", 0o777, 0)),
        libc::EROFS
    );
    assert_eq!(code(tree.rmdir(&ROOT_USER, ROOT_ID, c"data")), libc::EROFS);
    let renamed = tree.rename(&ROOT_USER, ROOT_ID, c"data", data, c"data", 0);
    assert_eq!(code(renamed), libc::EROFS);
}

#[test]
fn every_change_of_a_read_only_export_fails() {
    let host = Host::new();
    std::fs::create_dir_all(host.path("image/dir")).unwrap();
    write(host.path("image/file"), "content");
    let root = host.export("image", Writes::Nothing);
    let file = host.look_up(root, "file").unwrap().inode;
    let tree = &host.tree;
    let read_only = libc::EROFS;
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC] {
        let flags = u32::try_from(flags).unwrap();
        assert_eq!(code(tree.open(&ROOT_USER, file, flags, 0)), read_only);
    }
    let mode = fuse_backend_rs::abi::fuse_abi::SetattrValid::MODE;
    let attributes = host.look_up(root, "file").unwrap().attr;
    let changed = tree.setattr(&ROOT_USER, file, attributes, None, mode);
    assert_eq!(code(changed), read_only);
    assert_eq!(code(tree.unlink(&ROOT_USER, root, c"file")), read_only);
    assert_eq!(code(tree.rmdir(&ROOT_USER, root, c"dir")), read_only);
    let made = tree.mkdir(&ROOT_USER, root, c"new", 0o777, 0);
    assert_eq!(code(made), read_only);
    let set = tree.setxattr(&ROOT_USER, file, c"user.a", b"b", 0);
    assert_eq!(code(set), read_only);
    let removed = tree.removexattr(&ROOT_USER, file, c"user.a");
    assert_eq!(code(removed), read_only);
    let linked = tree.link(&ROOT_USER, file, root, c"new");
    assert_eq!(code(linked), read_only);
    let renamed = tree.rename(&ROOT_USER, root, c"file", root, c"new", 0);
    assert_eq!(code(renamed), read_only);
    let created = host.create(&ROOT_USER, root, "new", creation(0, 0));
    assert_eq!(created.err(), Some(read_only));
    assert!(tree.open(&ROOT_USER, file, 0, 0).is_ok());
}

#[test]
fn an_export_that_another_container_may_write_becomes_writable() {
    let host = Host::new();
    let root = host.export("volume", Writes::Nothing);
    assert!(
        host.create(&ROOT_USER, root, "new", creation(0, 0))
            .is_err()
    );
    host.exports
        .allow_writes("volume", Writes::Everything)
        .unwrap();
    assert!(host.create(&ROOT_USER, root, "new", creation(0, 0)).is_ok());
    host.exports
        .allow_writes("volume", Writes::Nothing)
        .unwrap();
    assert!(
        host.create(&ROOT_USER, root, "more", creation(0, 0))
            .is_ok()
    );
}

#[test]
fn device_nodes_are_neither_made_nor_opened() {
    let (host, root) = Host::with_export();
    let tree = &host.tree;
    let device = |kind| tree.mknod(&ROOT_USER, root, c"device", kind | 0o666, 0x0803, 0);
    assert_eq!(code(device(libc::S_IFBLK)), libc::EPERM);
    assert_eq!(code(device(libc::S_IFCHR)), libc::EPERM);
    let white_out = tree.mknod(&ROOT_USER, root, c"gone", libc::S_IFCHR, 0, 0);
    let white_out = white_out.unwrap();
    assert_eq!(white_out.attr.st_rdev, 0);
    assert_eq!(
        code(tree.open(&ROOT_USER, white_out.inode, 0, 0)),
        libc::EACCES
    );
}

#[test]
fn opening_a_fifo_fails_instead_of_waiting() {
    let (host, root) = Host::with_export();
    let fifo = host
        .tree
        .mknod(&USER, root, c"fifo", libc::S_IFIFO | 0o666, 0, 0)
        .unwrap();
    assert_eq!(code(host.tree.open(&USER, fifo.inode, 0, 0)), libc::EACCES);
    let created = host.create(&USER, root, "fifo", creation(0, 0));
    assert_eq!(created.err(), Some(libc::EACCES));
    let kind = std::fs::symlink_metadata(host.path("data/fifo")).unwrap();
    assert!(kind.file_type().is_fifo());
}

#[test]
fn numbers_never_given_out_are_stale() {
    let (host, _) = Host::with_export();
    for inode in [0, 77, u64::MAX] {
        assert_eq!(code(host.look_up(inode, "a")), libc::ESTALE);
        assert_eq!(code(host.tree.open(&USER, inode, 0, 0)), libc::ESTALE);
        host.tree.forget(&USER, inode, u64::MAX);
        assert_eq!(code(host.tree.fsync(&USER, inode, false, 9)), libc::EBADF);
    }
}
