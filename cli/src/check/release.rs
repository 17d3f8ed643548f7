//! The files of a release: shim, kernel and initial image side by side.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Check;

const SHIM: &str = "containerd-shim-podvisor-v2";
/// Where containerd's own PATH usually leads, whatever this process's is.
const FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// Beside the shim: file and what it is.
const FILES: [(&str, &str); 2] = [
    ("vmlinux", "the guest's kernel"),
    ("initrd.cpio", "the guest's initial image with the agent"),
];

/// Whether containerd finds the shim, and the shim its files.
pub fn checks() -> Vec<Check> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    look(folders)
}

fn look(mut folders: impl Iterator<Item = PathBuf>) -> Vec<Check> {
    // The shim looks beside its own file, links resolved.
    let found = folders.find_map(|folder| {
        let file = fs::canonicalize(folder.join(SHIM)).ok()?;
        is_executable(&file).then_some(file)
    });
    let Some(shim) = found else {
        let remedy = format!("link {SHIM} of the release's folder into /usr/local/bin");
        return vec![Check::bad("shim", format!("no {SHIM} in PATH"), remedy)];
    };
    let folder = shim.parent().unwrap_or(Path::new("/"));
    let mut checks = vec![Check::good("shim", shim.display().to_string())];
    checks.extend(FILES.iter().map(|(file, what)| beside(folder, file, what)));
    checks
}

fn beside(folder: &Path, file: &str, what: &str) -> Check {
    let path = folder.join(file);
    let name = format!("release: {file}");
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Check::good(
            name,
            format!("{}, {} KiB", path.display(), metadata.len() / 1024),
        ),
        Ok(_) => Check::bad(
            name,
            format!("{} is empty", path.display()),
            "install it again",
        ),
        Err(error) => Check::bad(
            name,
            format!("{}: {error}", path.display()),
            format!("install the whole folder of the release: {what} belongs beside the shim"),
        ),
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_files_lie_beside_the_shim_that_the_link_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let (release, bin) = (folder.path().join("release"), folder.path().join("bin"));
        fs::create_dir(&release).unwrap();
        fs::create_dir(&bin).unwrap();
        let look = || look([PathBuf::from("/nowhere"), bin.clone()].into_iter());
        assert!(!look()[0].ok);
        fs::write(release.join(SHIM), "x").unwrap();
        fs::set_permissions(release.join(SHIM), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(release.join(SHIM), bin.join(SHIM)).unwrap();
        fs::write(release.join("vmlinux"), "x").unwrap();
        let ok: Vec<bool> = look().iter().map(|check| check.ok).collect();
        assert_eq!(ok, [true, true, false]);
    }
}
