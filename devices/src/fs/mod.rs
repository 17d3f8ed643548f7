//! Virtio file system (virtio 1.2, section 5.11), served in process.
//!
//! ```text
//! guest driver ─► device ─► worker (fs0…) ─► session: queues ─► FUSE server ─► filesystem/ ─► host files
//!                                                                    tree: exports, inodes, handles
//! ```
//!
//! One tree a guest. Its root holds [`Exports`], each a directory or a file of the host that comes
//! and goes while the guest runs.

mod attr;
mod credentials;
mod device;
mod export;
mod exports;
mod file_handle;
mod filesystem;
mod fuse;
mod handles;
mod inode;
mod inodes;
mod limits;
mod pool;
mod proc_fd;
mod session;
mod sys;
#[cfg(test)]
mod tests;

pub use device::{FsConfig, FsError, FsTag, VirtioFs};
pub use export::{CachePolicy, ExportOptions, Writes};
pub use exports::{ExportError, Exports};
pub use limits::raise_open_files_limit;
pub use pool::ThreadStart;
