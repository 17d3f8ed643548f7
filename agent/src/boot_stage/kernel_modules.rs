//! Modules of the boot stage's own kernel, which lie in one folder of the initial image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use podvisor_boot_entries::modules::Modules;

use super::{BootStageError, MODULES, step};

/// MODULE_INIT_COMPRESSED_FILE (linux/module.h).
const COMPRESSED: libc::c_int = 4;

/// The modules, and which of them are loaded.
#[derive(Debug)]
pub struct KernelModules {
    known: Modules,
    loaded: BTreeSet<String>,
}

impl KernelModules {
    /// Reads which modules there are.
    ///
    /// # Errors
    ///
    /// [`BootStageError::Step`].
    pub fn new() -> Result<Self, BootStageError> {
        let path = format!("{MODULES}/modules.dep");
        let dependencies = std::fs::read_to_string(&path).map_err(step(path))?;
        Ok(Self {
            known: Modules::parse(&dependencies, ""),
            loaded: BTreeSet::new(),
        })
    }

    /// Loads a module and what it needs.
    ///
    /// # Errors
    ///
    /// [`BootStageError::Step`] naming the file.
    pub fn load(&mut self, name: &str) -> Result<(), BootStageError> {
        let order = self.known.order(name).map_err(io::Error::other);
        for file in order.map_err(step("look for a module"))? {
            if self.loaded.contains(&file) {
                continue;
            }
            let path = format!("{MODULES}/{file}");
            insert(&path).map_err(step(format!("load {path}")))?;
            self.loaded.insert(file);
        }
        Ok(())
    }
}

/// Loads the module of a file, compressed or not (finit_module(2)). One that is loaded already is
/// no error.
///
/// # Errors
///
/// What the kernel said.
pub fn insert(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
    // SAFETY: a descriptor, a C string that lives as long as the call, and flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}
