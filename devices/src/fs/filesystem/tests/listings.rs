//! Listing directories, in pieces, with and without lookups.

use std::collections::BTreeSet;

use super::*;

/// Lists a directory as a guest does, `room` entries at a time.
fn list(host: &Host, inode: u64, room: usize) -> Vec<(String, u64)> {
    let (handle, _) = host.tree.opendir(&USER, inode, 0).unwrap();
    let handle = handle.unwrap_or(0);
    let mut listed = Vec::new();
    let mut offset = 0;
    loop {
        let before = listed.len();
        let mut left = room;
        host.tree
            .readdir(&USER, inode, handle, 4096, offset, &mut |entry| {
                if left == 0 {
                    return Ok(0);
                }
                left -= 1;
                offset = entry.offset;
                let name = String::from_utf8(entry.name.to_vec()).unwrap();
                listed.push((name, entry.ino));
                Ok(1)
            })
            .unwrap();
        if listed.len() == before {
            host.tree.releasedir(&USER, inode, 0, handle).unwrap();
            return listed;
        }
    }
}

#[test]
fn every_entry_is_listed_once_whatever_the_room() {
    let (host, root) = Host::with_export();
    let mut expected: BTreeSet<String> = (0..500).map(|index| format!("file{index}")).collect();
    for name in &expected {
        write(host.path("data").join(name), "");
    }
    expected.extend([".".to_owned(), "..".to_owned()]);
    for room in [1, 7, 10_000] {
        let listed = list(&host, root, room);
        assert_eq!(listed.len(), expected.len(), "{room} at a time");
        let names: BTreeSet<_> = listed.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected, "{room} at a time");
    }
}

#[test]
fn listed_numbers_are_those_of_lookups() {
    let (host, root) = Host::with_export();
    write(host.path("data/file"), "");
    let listed = list(&host, root, 100);
    let ino = |name: &str| listed.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(ino("file"), host.look_up(root, "file").unwrap().attr.st_ino);
    assert_eq!(ino("."), host.look_up(ROOT_ID, "data").unwrap().attr.st_ino);
    assert_eq!(ino(".."), 1);
}

#[test]
fn the_root_lists_exports_as_they_are() {
    let (host, _) = Host::with_export();
    host.export("second", Writes::Everything);
    host.export("third", Writes::Everything);
    let names = || -> Vec<String> {
        let listed = list(&host, ROOT_ID, 1).into_iter();
        listed.map(|(name, _)| name).collect()
    };
    assert_eq!(names(), [".", "..", "data", "second", "third"]);
    host.exports.remove("second").unwrap();
    assert_eq!(names(), [".", "..", "data", "third"]);
    assert_eq!(host.exports.list(), ["data", "third"]);
    let listed = list(&host, ROOT_ID, 9);
    let data = host.look_up(ROOT_ID, "data").unwrap();
    assert!(listed.contains(&("data".to_owned(), data.attr.st_ino)));
}

#[test]
fn a_listing_with_lookups_counts_only_what_the_guest_gets() {
    let (host, root) = Host::with_export();
    for index in 0..50 {
        write(host.path("data").join(format!("file{index}")), "");
    }
    let known = host.tree.inodes.len();
    let (handle, _) = host.tree.opendir(&USER, root, 0).unwrap();
    let mut given = Vec::new();
    host.tree
        .readdirplus(
            &USER,
            root,
            handle.unwrap(),
            4096,
            0,
            &mut |entry, found| {
                if given.len() == 10 {
                    return Ok(0);
                }
                let dots = entry.name == b"." || entry.name == b"..";
                assert_eq!(found.inode == 0, dots);
                if !dots {
                    assert_eq!(entry.ino, found.attr.st_ino);
                    given.push((found.inode, 1));
                }
                Ok(1)
            },
        )
        .unwrap();
    assert_eq!(host.tree.inodes.len(), known + 10);
    host.tree.batch_forget(&USER, given);
    assert_eq!(host.tree.inodes.len(), known);
}
