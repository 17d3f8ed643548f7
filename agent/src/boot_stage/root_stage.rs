//! PID 1 of a tree's own kernel: mounts the tree and becomes its init.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::path::Path;

use podvisor_proto::agent::FS_TAG;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use super::kernel_modules::insert;
use super::{BootStageError, step};

/// The file of the initial image that has the tree's name.
pub const TREE: &str = "/tree";
/// The folder of it that has the modules to load, by the order of their names.
pub const MODULES: &str = "/tree-modules";

/// Where the host's exports are mounted, and where the tree is before it is the root.
const SHARED: &str = "/shared";
const ROOT: &str = "/root";
/// The root's init where the command line names none.
const INIT: &str = "/sbin/init";
/// File systems that the tree's init finds mounted, as after any initial image.
const FILE_SYSTEMS: &[(&str, &str)] = &[("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// Whether this is the first program of a tree's kernel.
#[must_use]
pub fn is_one() -> bool {
    Path::new(TREE).is_file()
}

/// Becomes the tree's init. Comes back with an error only.
///
/// # Errors
///
/// [`BootStageError::Step`].
pub fn run() -> Result<Infallible, BootStageError> {
    let name = fs::read_to_string(TREE).map_err(step(TREE))?;
    for (kind, target) in FILE_SYSTEMS {
        fs::create_dir_all(target).map_err(step(*target))?;
        let flags = MountFlags::NOSUID;
        mount(*kind, *target, *kind, flags, c"").map_err(step(*target))?;
    }
    load_modules()?;
    for folder in [SHARED, ROOT] {
        fs::create_dir_all(folder).map_err(step(folder))?;
    }
    mount(FS_TAG, SHARED, "virtiofs", MountFlags::empty(), c"")
        .map_err(step(format!("mount virtio-fs {FS_TAG}")))?;
    let tree = Path::new(SHARED).join(&name);
    mount_bind(&tree, ROOT).map_err(step(format!("bind {}", tree.display())))?;
    let init = init();
    switch_root()?;
    execute(&init).map_err(step(format!("exec {init}")))
}

fn load_modules() -> Result<(), BootStageError> {
    let mut paths: Vec<_> = fs::read_dir(MODULES)
        .map_err(step(MODULES))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let path = path.to_string_lossy();
        insert(&path).map_err(step(format!("load {path}")))?;
        // Its memory is of use to nobody any more.
        let _ = fs::remove_file(&*path);
    }
    Ok(())
}

/// `init=` of the command line.
fn init() -> String {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let named = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("init="));
    named.unwrap_or(INIT).to_owned()
}

/// Makes the tree the root, with the file systems that are mounted already.
fn switch_root() -> Result<(), BootStageError> {
    for (_, target) in FILE_SYSTEMS {
        let inside = format!("{ROOT}{target}");
        // A tree without the folder has its own idea of it.
        if Path::new(&inside).is_dir() {
            mount_move(*target, &*inside).map_err(step(inside))?;
        }
    }
    for file in [TREE, "/init"] {
        let _ = fs::remove_file(file);
    }
    rustix::process::chdir(ROOT).map_err(step("enter the tree"))?;
    mount_move(".", "/").map_err(step("make the tree the root"))?;
    rustix::process::chroot(".").map_err(step("chroot"))?;
    rustix::process::chdir("/").map_err(step("chdir /"))
}

fn execute(init: &str) -> io::Result<Infallible> {
    let program = CString::new(init)?;
    let arguments = [program.as_ptr(), std::ptr::null()];
    let environment = [c"HOME=/", c"TERM=linux"];
    let [home, term] = environment.map(CStr::as_ptr);
    crate::sys::signal::restore_defaults();
    let environment = [home, term, std::ptr::null()];
    // SAFETY: both arrays are NULL-terminated and of C strings that live as long as the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}
