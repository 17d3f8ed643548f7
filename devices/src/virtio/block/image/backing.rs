//! The files that an image may lie on: those of one folder, and no others.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use thiserror::Error;

/// Where the names in an image lead.
#[derive(Clone, Debug)]
pub enum BackingFiles {
    /// Nowhere: an image that lies on another one is refused.
    Refused,
    /// To the files of this folder and its folders. Symbolic links are refused.
    Folder(Arc<OwnedFd>),
}

/// Why a backing file is not to be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// This image may lie on none.
    #[error("this disk's image may not lie on another file")]
    Refused,
    /// The name is more than that of a file in the folder.
    #[error("a backing file may only be a file in the image's own folder, not {0}")]
    Name(&'static str),
    /// It is no regular file.
    #[error("it is not a regular file")]
    Kind,
    /// It cannot be opened; `ELOOP` says that there is a symbolic link, `EXDEV` that the name
    /// leads out of the folder.
    #[error("cannot open it")]
    Open(#[source] io::Error),
}

impl BackingFiles {
    /// The files in `folder`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn in_folder(folder: &Path) -> io::Result<Self> {
        Ok(Self::Folder(Arc::new(File::open(folder)?.into())))
    }

    /// Opens the file called `name` for reading, and says where the names in it lead.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, name: &str) -> Result<(File, Self), BackingError> {
        let Self::Folder(folder) = self else {
            return Err(BackingError::Refused);
        };
        check(name)?;
        // What is no regular file must neither block nor act when it is opened.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let within =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(folder.as_ref(), name, flags, Mode::empty(), within);
        let file = opened.map_err(|error| BackingError::Open(error.into()))?;
        let status = fstat(&file).map_err(|error| BackingError::Open(error.into()))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(BackingError::Kind);
        }
        Ok((file.into(), self.clone()))
    }
}

/// Refuses names that mean more than a file in a folder, by what they mean.
fn check(name: &str) -> Result<(), BackingError> {
    if name.starts_with("json:") {
        return Err(BackingError::Name("a description in JSON"));
    }
    let first = name.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err(BackingError::Name("something reached by a protocol"));
    }
    for component in Path::new(name).components() {
        match component {
            Component::Normal(_) | Component::CurDir => {}
            Component::ParentDir => return Err(BackingError::Name("one above it")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(BackingError::Name("one with an absolute path"));
            }
        }
    }
    Ok(())
}
