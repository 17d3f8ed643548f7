//! A file tree in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::tree::{FileKind, FileTree};
use crate::volume::Volume;

/// Files by absolute path.
#[derive(Debug, Clone, Default)]
pub struct MemoryTree {
    files: BTreeMap<String, Vec<u8>>,
}

impl MemoryTree {
    /// A tree of these files; their folders exist.
    #[must_use]
    pub fn new<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Self {
        let files = files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), content.as_ref().to_vec()));
        Self {
            files: files.collect(),
        }
    }

    /// A volume with these files.
    #[must_use]
    pub fn into_volume(self, device: &str, uuid: &str) -> Volume {
        Volume {
            device: device.to_owned(),
            grub_names: vec![device.to_owned()],
            uuid: Some(uuid.to_owned()),
            label: None,
            partition_uuid: None,
            root_flags: None,
            tree: Box::new(self),
        }
    }
}

impl FileTree for MemoryTree {
    fn kind(&self, path: &str) -> Option<FileKind> {
        if let Some(content) = self.files.get(path) {
            return Some(FileKind::File(content.len() as u64));
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        let is_folder = self.files.keys().any(|file| file.starts_with(&folder));
        is_folder.then_some(FileKind::Folder)
    }

    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let content = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = content.get(start..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest).to_vec())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let folder = format!("{}/", path.trim_end_matches('/'));
        let names = self.files.keys().filter_map(|file| {
            let name = file.strip_prefix(&folder)?.split('/').next()?;
            Some(name.to_owned())
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }
}
