//! Volumes are mirrored into a temporary folder.

use super::*;

fn entry(path: &str, mode: u32, data: &str) -> VolumeEntry {
    // The test may run unprivileged, so entries belong to its user.
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    VolumeEntry {
        path: path.to_owned(),
        mode,
        uid,
        gid,
        data: data.as_bytes().to_vec(),
    }
}

fn version(folder: &str, value: &str) -> Vec<VolumeEntry> {
    vec![
        entry("", 0o40777, ""),
        entry(folder, 0o40755, ""),
        entry(&format!("{folder}/key"), 0o100_644, value),
        entry("..data", 0o120_777, folder),
        entry("key", 0o120_777, "..data/key"),
    ]
}

#[test]
fn a_volume_appears_and_changes_over_to_a_new_version() {
    let parent = tempfile::tempdir().unwrap();
    apply_in(parent.path(), "config", &version("..1", "one")).unwrap();
    let key = parent.path().join("config/key");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "one");
    apply_in(parent.path(), "config", &version("..2", "two")).unwrap();
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "two");
    assert!(!parent.path().join("config/..1").exists());
}

#[test]
fn applying_the_same_again_changes_nothing() {
    use std::os::unix::fs::MetadataExt as _;
    let parent = tempfile::tempdir().unwrap();
    apply_in(parent.path(), "config", &version("..1", "one")).unwrap();
    let inode = || {
        std::fs::metadata(parent.path().join("config/key"))
            .unwrap()
            .ino()
    };
    let before = inode();
    apply_in(parent.path(), "config", &version("..1", "one")).unwrap();
    assert_eq!(inode(), before);
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    let parent = tempfile::tempdir().unwrap();
    apply_in(parent.path(), "config", &version("..1", "one")).unwrap();
    remove_in(parent.path(), "config").unwrap();
    remove_in(parent.path(), "config").unwrap();
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    for id in ["", ".", "..", "a/b", "/a", "a/"] {
        assert!(
            matches!(
                apply_in(parent.path(), id, &[]),
                Err(VolumeError::Name { .. })
            ),
            "{id}"
        );
    }
    for path in ["/etc", "../x", "a/../b", "a//b", "a/./b", "a/"] {
        let entries = [entry(path, 0o100_644, "x")];
        assert!(
            matches!(
                apply_in(parent.path(), "v", &entries),
                Err(VolumeError::Name { .. })
            ),
            "{path}"
        );
    }
}

#[test]
fn a_link_planted_by_a_container_is_not_followed() {
    let parent = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    apply_in(parent.path(), "v", &[]).unwrap();
    std::os::unix::fs::symlink(outside.path(), parent.path().join("v/folder")).unwrap();
    let entries = [entry("folder/file", 0o100_644, "x")];
    assert!(apply_in(parent.path(), "v", &entries).is_err());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_device_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let entries = [entry("null", 0o020_666, "")];
    assert!(matches!(
        apply_in(parent.path(), "v", &entries),
        Err(VolumeError::Entry { .. })
    ));
}
