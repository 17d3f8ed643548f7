//! The installed release: one folder with this program, the guest's kernel and initial image.

use std::io;
use std::path::PathBuf;

/// The folder this program was started from, links resolved: an upgrade that moves the link does
/// not move a running pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    folder: PathBuf,
}

impl Release {
    /// The release of the running program.
    ///
    /// # Errors
    /// When /proc does not tell where the program is.
    pub fn of_this_program() -> io::Result<Self> {
        let program = std::fs::read_link("/proc/self/exe")?;
        let folder = program.parent().map(PathBuf::from);
        folder
            .map(|folder| Self { folder })
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The release in `folder`.
    #[cfg(test)]
    pub fn at(folder: &std::path::Path) -> Self {
        let folder = folder.to_owned();
        Self { folder }
    }

    /// The guest's kernel, an ELF `vmlinux`.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The guest's initial image, whose `/init` is the agent.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.cpio")
    }

    /// The initial image of a machine's boot stage: the agent, and modules of the kernel.
    pub fn machine_initrd(&self) -> PathBuf {
        self.folder.join("machine-initrd.cpio")
    }

    /// The agent by itself, for machines that run it as a service.
    pub fn agent(&self) -> PathBuf {
        self.folder.join("podvisor-agent")
    }
}
