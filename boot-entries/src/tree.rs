//! Reading a volume's files.

use std::io;

/// Longest configuration file that is read. The longest of distributions, a GRUB configuration
/// with dozens of kernels, has some 50 KiB.
pub const MAX_CONFIG_LEN: usize = 1 << 20;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file of this length.
    File(u64),
    /// A folder.
    Folder,
}

/// The files of a volume. Paths are absolute; symbolic links are followed, and none leads out of
/// the volume.
pub trait FileTree {
    /// What `path` names; `None` for nothing, or nothing of the two kinds.
    fn kind(&self, path: &str) -> Option<FileKind>;

    /// Reads up to `len` bytes from `offset` on; fewer come back at the file's end only.
    ///
    /// # Errors
    ///
    /// What the file system said.
    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// The names in a folder, sorted, a bounded number of them; none when there is no such folder.
    fn list(&self, path: &str) -> Vec<String>;

    /// Whether `path` names a regular file.
    fn has_file(&self, path: &str) -> bool {
        matches!(self.kind(path), Some(FileKind::File(_)))
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refuses.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// Longer than any configuration.
    #[error("is longer than {MAX_CONFIG_LEN} bytes")]
    TooLong,
}

/// Reads a configuration file; `None` when there is none. Bytes that are not UTF-8 are replaced.
///
/// # Errors
///
/// [`ReadError`].
pub fn read_config(tree: &dyn FileTree, path: &str) -> Result<Option<String>, ReadError> {
    let Some(FileKind::File(len)) = tree.kind(path) else {
        return Ok(None);
    };
    if len > MAX_CONFIG_LEN as u64 {
        return Err(ReadError::TooLong);
    }
    let bytes = tree.read(path, 0, MAX_CONFIG_LEN)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
