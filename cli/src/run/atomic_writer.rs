//! Files of a ConfigMap or Secret, laid out as the kubelet's AtomicWriter does it
//! (pkg/volume/util/atomic_writer.go of Kubernetes): the files lie in a folder of their own, `..data`
//! points to it, and what containers open are links through `..data`. An update is one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

/// The link that an update replaces.
const DATA: &str = "..data";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Fills an empty folder with `files`, by their paths in the volume.
pub fn write(folder: &Path, files: &BTreeMap<String, Projected>) -> io::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(io::Error::other)?;
    let version = format!("..{}_{:09}", now.as_secs(), now.subsec_nanos());
    let versioned = folder.join(&version);
    // The folders shall have the modes that they are given.
    fs::create_dir(&versioned)?;
    fs::set_permissions(&versioned, Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = versioned.join(path);
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
        }
        let mut written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        written.write_all(&file.content)?;
        written.set_permissions(Permissions::from_mode(file.mode))?;
    }
    let fresh = folder.join("..data_tmp");
    symlink(&version, &fresh)?;
    fs::rename(&fresh, folder.join(DATA))?;
    for name in top_level(files.keys()) {
        symlink(Path::new(DATA).join(name), folder.join(name))?;
    }
    Ok(())
}

/// The first component of every path, once.
fn top_level<'a>(paths: impl Iterator<Item = &'a String>) -> BTreeSet<&'a Path> {
    let first = |path: &'a String| match Path::new(path).components().next() {
        Some(Component::Normal(name)) => Some(Path::new(name)),
        _ => None,
    };
    paths.filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str, mode: u32) -> Projected {
        Projected {
            content: content.into(),
            mode,
        }
    }

    #[test]
    fn files_are_reached_through_the_data_link() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("app.conf".to_owned(), file("a", 0o644)),
            ("sub/deep/b".to_owned(), file("b", 0o400)),
            ("sub/c".to_owned(), file("c", 0o644)),
        ];
        write(folder.path(), &files.into()).unwrap();
        let link = |name: &str| fs::read_link(folder.path().join(name)).unwrap();
        assert_eq!(link("app.conf"), Path::new("..data/app.conf"));
        assert_eq!(link("sub"), Path::new("..data/sub"));
        assert!(link(DATA).to_str().unwrap().starts_with(".."));
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("app.conf"), read("sub/deep/b"), read("sub/c")),
            ("a".into(), "b".into(), "c".into())
        );
        let mode = fs::metadata(folder.path().join("sub/deep/b"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn an_empty_source_still_has_its_data_link() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &BTreeMap::new()).unwrap();
        assert!(folder.path().join(DATA).is_dir());
    }
}
