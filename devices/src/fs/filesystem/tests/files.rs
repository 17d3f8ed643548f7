//! Files and names: made by the right owner, found again, renamed, linked.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fuse_backend_rs::abi::fuse_abi::OpenOptions;

use super::*;

#[test]
fn what_a_process_creates_belongs_to_it() {
    let (host, root) = Host::with_export();
    // Nobody but root may write here as far as the host is concerned: the guest decides.
    std::fs::set_permissions(host.path("data"), PermissionsExt::from_mode(0o700)).unwrap();
    let tree = &host.tree;
    host.create(&USER, root, "file", creation(0, 0o022))
        .unwrap();
    tree.mkdir(&USER, root, c"dir", 0o777, 0o027).unwrap();
    tree.symlink(&USER, c"file", root, c"link").unwrap();
    tree.mknod(&USER, root, c"node", libc::S_IFREG | 0o666, 0, 0)
        .unwrap();
    for name in ["file", "dir", "link", "node"] {
        let metadata = std::fs::symlink_metadata(host.path("data").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 2000), "{name}");
    }
    let mode = |name| std::fs::metadata(host.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("data/file"), 0o644);
    assert_eq!(mode("data/dir"), 0o750);
    assert_eq!(mode("data/node"), 0o666);
    host.create(&ROOT_USER, root, "again", creation(0, 0))
        .unwrap();
    let metadata = std::fs::metadata(host.path("data/again")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    let (host, root) = Host::with_export();
    std::os::unix::fs::chown(host.path("data"), Some(0), Some(3000)).unwrap();
    std::fs::set_permissions(host.path("data"), PermissionsExt::from_mode(0o2775)).unwrap();
    host.create(&USER, root, "file", creation(0, 0)).unwrap();
    let entry = host.tree.mkdir(&USER, root, c"dir", 0o755, 0).unwrap();
    assert_eq!(
        std::fs::metadata(host.path("data/file")).unwrap().gid(),
        3000
    );
    assert_eq!(entry.attr.st_gid, 3000);
    assert_eq!(entry.attr.st_mode & 0o7777, 0o2755);
}

#[test]
fn a_caller_without_identity_creates_nothing() {
    let (host, root) = Host::with_export();
    let nobody = Context {
        uid: u32::MAX,
        ..USER
    };
    assert_eq!(
        host.create(&nobody, root, "file", creation(0, 0)).err(),
        Some(libc::EINVAL)
    );
    assert!(!host.path("data/file").exists());
}

#[test]
fn an_existing_file_is_opened_by_create_unless_it_is_exclusive() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "content");
    let exclusive = creation(libc::O_EXCL, 0);
    let failed = host.create(&USER, root, "file", exclusive);
    assert_eq!(failed.err(), Some(libc::EEXIST));
    let (entry, _) = host.create(&USER, root, "file", creation(0, 0)).unwrap();
    assert_eq!(entry.attr.st_size, 7);
    let truncating = creation(libc::O_TRUNC, 0);
    host.create(&USER, root, "file", truncating).unwrap();
    assert_eq!(content(&host.path("data/file")), b"");
}

#[test]
fn hard_links_are_one_file() {
    let (host, root) = Host::with_export();
    write(host.path("data/a"), "");
    let a = host.look_up(root, "a").unwrap();
    let b = host.tree.link(&ROOT_USER, a.inode, root, c"b").unwrap();
    assert_eq!((b.inode, b.attr.st_ino), (a.inode, a.attr.st_ino));
    assert_eq!(b.attr.st_nlink, 2);
}

#[test]
fn the_same_file_in_two_exports_has_two_inode_numbers() {
    let (host, data) = Host::with_export();
    write(host.path("data/file"), "");
    let again = host.export_path(
        "again",
        &host.path("data"),
        Writes::Everything,
        CachePolicy::Always,
    );
    let a = host.look_up(data, "file").unwrap();
    let b = host.look_up(again, "file").unwrap();
    assert_ne!(a.inode, b.inode);
    assert_ne!(a.attr.st_ino, b.attr.st_ino);
}

#[test]
fn a_single_file_is_an_export() {
    let host = Host::new();
    write(host.path("hosts"), "127.0.0.1 localhost");
    let file = host.export_path("hosts", &host.path("hosts"), Writes::Nothing, second());
    let (handle, ..) = host.tree.open(&USER, file, 0, 0).unwrap();
    let (attributes, timeout) = host.tree.getattr(&USER, file, handle).unwrap();
    assert_eq!(attributes.st_size, 19);
    assert_eq!(timeout, Duration::from_secs(1));
    assert_eq!(host.look_up(file, "..").unwrap().inode, ROOT_ID);
}

#[test]
fn what_the_hosts_kernel_makes_up_is_read_past_the_cache() {
    let host = Host::new();
    let proc = host.export_path("proc", Path::new("/proc"), Writes::Nothing, second());
    let uptime = host.look_up(proc, "uptime").unwrap();
    assert_eq!(uptime.attr.st_size, 0);
    let options = |inode| host.tree.open(&USER, inode, 0, 0).unwrap().1;
    assert!(options(uptime.inode).contains(OpenOptions::DIRECT_IO));
    write(host.path("empty"), "");
    let empty = host.export_path("empty", &host.path("empty"), Writes::Nothing, second());
    assert!(!options(empty).contains(OpenOptions::DIRECT_IO));
}

#[test]
fn renames_keep_the_file_and_obey_their_flags() {
    let (host, root) = Host::with_export();
    write(host.path("data/a"), "a");
    write(host.path("data/b"), "b");
    let a = host.look_up(root, "a").unwrap().inode;
    let rename = |flags| host.tree.rename(&ROOT_USER, root, c"a", root, c"b", flags);
    assert_eq!(code(rename(libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename(libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(host.look_up(root, "b").unwrap().inode, a);
    assert_eq!(content(&host.path("data/b")), b"a");
    assert_eq!(code(rename(1 << 31)), libc::EINVAL);
}

#[test]
fn a_missing_name_may_be_cached_in_an_export_and_not_in_the_root() {
    let (host, root) = Host::with_export();
    let missing = host.tree.lookup(&USER, root, c"missing").unwrap();
    assert_eq!(missing.inode, 0);
    assert!(missing.entry_timeout > Duration::from_secs(3600));
    let missing = host.tree.lookup(&USER, ROOT_ID, c"missing");
    assert_eq!(code(missing), libc::ENOENT);
    let export = host.look_up(ROOT_ID, "data").unwrap();
    assert_eq!(export.entry_timeout, Duration::ZERO);
}

#[test]
fn special_files_of_no_use_are_refused_by_flag() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "");
    let file = host.look_up(root, "file").unwrap().inode;
    assert_eq!(code(host.tree.open(&USER, file, 3, 0)), libc::EINVAL);
    assert_eq!(code(host.tree.open(&USER, root, 0, 0)), libc::EISDIR);
    // O_TMPFILE, O_PATH and O_CREAT mean nothing here.
    let flags = u32::try_from(libc::O_TMPFILE | libc::O_PATH | libc::O_CREAT).unwrap();
    assert!(host.tree.open(&USER, file, flags, 0).is_ok());
}
