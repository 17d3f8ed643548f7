//! The boot stage of a machine: finds what a machine's disks, or its tree, boot, and starts that
//! kernel in place of its own. Nothing of it is left in the machine.
//!
//! ```text
//! BootMachine ─► sources ─► disks, volumes ─► boot-entries ─► kexec: load
//!                        └► tree ─────────────────────────────┘
//! StartMachine ─► unmount, reset the devices ─► kexec: jump
//! ```
//!
//! Whatever a disk holds is untrusted: it is mounted read-only, and its paths never lead out of
//! it. What a hostile file system can do to this kernel, it does to its own machine.

mod block;
mod command_line;
mod device_mapper;
mod images;
mod initial_image;
mod kernel_modules;
mod kexec;
mod logical;
mod mounted;
mod prepare;
pub mod root_stage;
mod service;
mod sources;
mod start;
mod tree;

pub use prepare::prepare;
pub use service::BootService;

use std::io;
use std::path::Path;

/// What the initial image of a boot stage has, and no other.
pub const MODULES: &str = "/modules";

/// Whether this guest is a boot stage.
#[must_use]
pub fn is_one() -> bool {
    Path::new(MODULES).is_dir()
}

/// Why a machine cannot be booted, or not prepared for it.
#[derive(Debug, thiserror::Error)]
pub enum BootStageError {
    /// A step failed that no disk is to blame for.
    #[error("{what}")]
    Step {
        /// Which.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No source can be booted; each says why.
    #[error("nothing to boot: {}", .0.join("; "))]
    Nothing(Vec<String>),
    /// The request makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// No kernel was loaded.
    #[error("no kernel is loaded: BootMachine comes before StartMachine")]
    NotLoaded,
}

/// Names a failed step, for `map_err`.
fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> BootStageError {
    move |source| BootStageError::Step {
        what: what.into(),
        source: source.into(),
    }
}
