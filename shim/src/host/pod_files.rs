//! Writes the files that a pod's containers share.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::pod::files::{HOSTNAME, HOSTS, PodFiles, RESOLV_CONF};

/// Everybody may read them, whoever a container's user is.
const MODE: u32 = 0o644;

/// Why a pod does not have its files.
#[derive(Debug, Error)]
#[error("cannot {action} {path}")]
pub struct PodFilesError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes a pod's files. What the pod does not say is as on the host.
pub(super) fn write(files: &PodFiles) -> Result<(), PodFilesError> {
    let folder = &files.folder;
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    let hostname = format!("{}\n", files.hostname);
    write_one(&folder.join(HOSTNAME), hostname.as_bytes())?;
    write_one(&folder.join(HOSTS), &of_host("/etc/hosts")?)?;
    let resolv_conf = match &files.resolv_conf {
        Some(content) => content.clone().into_bytes(),
        None => of_host("/etc/resolv.conf")?,
    };
    write_one(&folder.join(RESOLV_CONF), &resolv_conf)
}

/// A file of the host; one that it does not have is empty.
fn of_host(path: &str) -> Result<Vec<u8>, PodFilesError> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(failed("read", Path::new(path))),
    }
}

fn write_one(path: &Path, content: &[u8]) -> Result<(), PodFilesError> {
    fs::write(path, content).map_err(failed("write", path))?;
    let mode = fs::Permissions::from_mode(MODE);
    fs::set_permissions(path, mode).map_err(failed("open up", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PodFilesError {
    let path = path.to_owned();
    move |source| PodFilesError {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pod_says_is_written_and_the_rest_is_the_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let files = PodFiles {
            folder: folder.path().join("files"),
            hostname: "web".into(),
            resolv_conf: Some("nameserver 10.96.0.10\n".into()),
        };
        write(&files).unwrap();
        let read = |name| fs::read(files.folder.join(name)).unwrap();
        assert_eq!(read(HOSTNAME), b"web\n");
        assert_eq!(read(RESOLV_CONF), b"nameserver 10.96.0.10\n");
        assert_eq!(read(HOSTS), of_host("/etc/hosts").unwrap());
    }
}
