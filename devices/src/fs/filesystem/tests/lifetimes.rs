//! How long descriptors, inodes and exports live.

use super::super::super::export::CachePolicy;
use super::*;

/// A budget so small that file handles are used at once where the host's file system has them.
fn handles_only() -> OpenFileBudget {
    OpenFileBudget {
        held_early: 0,
        held: 2,
        opened: 4,
    }
}

/// A temporary directory on a file system with file handles.
fn host_with_handles(budget: OpenFileBudget) -> Host {
    let mut host = Host::with_budget(budget);
    host.directory = tempfile::tempdir_in("/dev/shm").unwrap();
    host
}

#[test]
fn lookups_and_forgets_leave_no_descriptor() {
    let (host, root) = Host::with_export();
    for index in 0..100 {
        write(host.path("data").join(format!("file{index}")), "");
    }
    let before = descriptors_below(host.directory.path());
    for _ in 0..1000 {
        let mut found = Vec::new();
        for index in 0..100 {
            let entry = host.look_up(root, &format!("file{index}")).unwrap();
            found.push((entry.inode, 1));
        }
        host.tree.batch_forget(&USER, found);
    }
    assert_eq!(descriptors_below(host.directory.path()), before);
    assert_eq!(host.tree.inodes.len(), 1);
}

#[test]
fn past_the_budget_files_cost_no_descriptor() {
    let host = host_with_handles(handles_only());
    let root = host.export("data", Writes::Everything);
    let mut files = Vec::new();
    for index in 0..300 {
        write(host.path("data").join(format!("file{index}")), "x");
        files.push(host.look_up(root, &format!("file{index}")).unwrap().inode);
    }
    assert!(descriptors_below(host.directory.path()) < 10);
    for (index, file) in files.iter().enumerate() {
        let name = format!("file{index}");
        assert_eq!(host.look_up(root, &name).unwrap().inode, *file);
        let (handle, ..) = host.tree.open(&USER, *file, 0, 0).unwrap();
        assert_eq!(
            host.tree.getattr(&USER, *file, handle).unwrap().0.st_size,
            1
        );
        host.tree
            .release(&USER, *file, 0, handle.unwrap(), false, false, None)
            .unwrap();
    }
}

#[test]
fn a_handle_of_a_removed_file_is_stale_and_never_another_file() {
    let host = host_with_handles(handles_only());
    let root = host.export("data", Writes::Everything);
    write(host.path("data/file"), "first");
    let first = host.look_up(root, "file").unwrap().inode;
    std::fs::remove_file(host.path("data/file")).unwrap();
    assert_eq!(code(host.tree.getattr(&USER, first, None)), libc::ESTALE);
    write(host.path("data/file"), "second");
    let second = host.look_up(root, "file").unwrap().inode;
    assert_ne!(first, second);
    assert_eq!(code(host.tree.getattr(&USER, first, None)), libc::ESTALE);
    assert_eq!(host.tree.getattr(&USER, second, None).unwrap().0.st_size, 6);
}

#[test]
fn open_files_are_bounded() {
    let budget = OpenFileBudget {
        held_early: 8,
        held: 8,
        opened: 4,
    };
    let host = Host::with_budget(budget);
    let root = host.export("data", Writes::Everything);
    write(host.path("data/file"), "");
    let file = host.look_up(root, "file").unwrap().inode;
    let opened: Vec<_> = (0..4)
        .map(|_| host.tree.open(&USER, file, 0, 0).unwrap().0.unwrap())
        .collect();
    assert_eq!(code(host.tree.open(&USER, file, 0, 0)), libc::ENFILE);
    assert_eq!(
        host.create(&USER, root, "new", creation(0, 0)).err(),
        Some(libc::ENFILE)
    );
    assert!(!host.path("data/new").exists());
    for handle in opened {
        host.tree
            .release(&USER, file, 0, handle, false, false, None)
            .unwrap();
    }
    assert!(host.tree.open(&USER, file, 0, 0).is_ok());
}

#[test]
fn a_removed_export_is_gone_and_leaves_no_descriptor() {
    let (host, root) = Host::with_export();
    let other = host.export("other", Writes::Everything);
    write(host.path("data/file"), "");
    let file = host.look_up(root, "file").unwrap().inode;
    let (handle, ..) = host.tree.open(&USER, file, 0, 0).unwrap();
    host.tree.opendir(&USER, root, 0).unwrap();
    host.exports.remove("data").unwrap();
    assert_eq!(descriptors_below(&host.path("data")), 0);
    assert_eq!(code(host.look_up(ROOT_ID, "data")), libc::ENOENT);
    assert_eq!(code(host.look_up(root, "file")), libc::ESTALE);
    assert_eq!(code(host.tree.getattr(&USER, file, None)), libc::ESTALE);
    assert_eq!(
        code(host.tree.fsync(&USER, file, false, handle.unwrap())),
        libc::EBADF
    );
    assert!(host.tree.getattr(&USER, other, None).is_ok());
    // The name is free again, for another thing.
    let again = host.export("data", Writes::Everything);
    assert_ne!(again, root);
}

#[test]
fn removing_waits_for_requests_under_way() {
    let (host, root) = Host::with_export();
    let under_way = host.tree.inodes.get(root).unwrap();
    let request = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(under_way);
    });
    host.exports.remove("data").unwrap();
    assert_eq!(descriptors_below(&host.path("data")), 0);
    request.join().unwrap();
}

#[test]
fn exports_have_good_and_different_names() {
    let (host, _) = Host::with_export();
    let add = |name: &str| {
        let options = ExportOptions {
            writes: Writes::Everything,
            cache: CachePolicy::Always,
        };
        host.exports
            .add(name, path_fd(host.directory.path()), options)
    };
    for name in ["", ".", "..", "a/b", "nul\0", &"x".repeat(256)] {
        assert!(add(name).is_err(), "{name:?}");
    }
    assert!(add("data").is_err());
    assert!(add("other").is_ok());
    assert!(host.exports.remove("missing").is_err());
}

#[test]
fn a_new_mount_starts_from_nothing() {
    let (host, root) = Host::with_export();
    let (entry, handle) = host.create(&USER, root, "file", creation(0, 0)).unwrap();
    host.tree
        .init(fuse_backend_rs::abi::fuse_abi::FsOptions::all())
        .unwrap();
    assert_eq!(
        code(host.tree.getattr(&USER, entry.inode, None)),
        libc::ESTALE
    );
    assert_eq!(
        code(host.tree.flush(&USER, entry.inode, handle, 0)),
        libc::EBADF
    );
    assert_eq!(descriptors_below(&host.path("data")), 1);
    assert!(host.look_up(ROOT_ID, "data").is_ok());
}
