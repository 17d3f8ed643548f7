//! Mounts, control groups, and what lies in containerd's state folder.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{LeftoversError, names_a_pod};

/// Files of containerd's state folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) sockets: usize,
    pub(super) fifos: usize,
    pub(super) bundles: usize,
}

/// Mounts of this process's mount namespace.
pub(super) fn mounts() -> Result<usize, LeftoversError> {
    let file = Path::new("/proc/self/mountinfo");
    Ok(fs::read_to_string(file)
        .map_err(LeftoversError::read(file))?
        .lines()
        .count())
}

/// Control groups of pods, without the levels above them, which stay: the kubelet's, and the one of
/// containerd's namespace for pods that name no parent.
pub(super) fn cgroups_of_pods(root: &Path) -> Result<usize, LeftoversError> {
    let mut count = 0;
    walk(root, &mut |path, kind| {
        let below_root = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
        let level = matches!(
            &*below_root,
            "kubepods" | "kubepods/burstable" | "kubepods/besteffort" | "kubepods.slice" | "k8s.io"
        );
        count += usize::from(kind.is_dir() && !level && names_a_pod(&below_root));
    })?;
    Ok(count)
}

/// What containerd and its shims keep below `root`; mounted root file systems are not entered.
pub(super) fn state(root: &Path) -> Result<State, LeftoversError> {
    let mut state = State::default();
    walk(root, &mut |path, kind| {
        state.sockets += usize::from(kind.is_socket());
        state.fifos += usize::from(kind.is_fifo());
        state.bundles += usize::from(kind.is_dir() && is_bundle(root, path));
    })?;
    Ok(state)
}

/// `io.containerd.runtime.v2.task/NAMESPACE/ID`.
fn is_bundle(root: &Path, path: &Path) -> bool {
    let mut components = path.strip_prefix(root).unwrap_or(path).components();
    let first = components
        .next()
        .is_some_and(|c| c.as_os_str() == "io.containerd.runtime.v2.task");
    first && components.count() == 2
}

/// Visits what is below `folder`, staying on its file system. What vanishes meanwhile is no error.
fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, fs::FileType)) -> Result<(), LeftoversError> {
    let device = match fs::metadata(folder) {
        Ok(metadata) => metadata.dev(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LeftoversError::read(folder)(error)),
    };
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LeftoversError::read(&folder)(error)),
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.dev() != device {
                continue;
            }
            visit(&entry.path(), metadata.file_type());
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_fifos_and_bundles_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder
            .path()
            .join("io.containerd.runtime.v2.task/k8s.io/abc");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::create_dir(folder.path().join("s")).unwrap();
        let _listener = UnixListener::bind(folder.path().join("s/socket")).unwrap();
        nix::unistd::mkfifo(&bundle.join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let counted = state(folder.path()).unwrap();
        assert_eq!(
            counted,
            State {
                sockets: 1,
                fifos: 1,
                bundles: 1
            }
        );
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        assert_eq!(
            state(Path::new("/nowhere/at/all")).unwrap(),
            State::default()
        );
    }

    #[test]
    fn the_kubelets_levels_are_no_pods() {
        let folder = tempfile::tempdir().unwrap();
        for group in [
            "kubepods/burstable/pod1/abc",
            "k8s.io/podvisor-1",
            "system.slice/ssh.service",
        ] {
            fs::create_dir_all(folder.path().join(group)).unwrap();
        }
        assert_eq!(cgroups_of_pods(folder.path()).unwrap(), 3);
    }
}
