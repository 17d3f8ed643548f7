//! Compressed clusters, expanded.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

/// Expanded clusters that are kept: a guest reads one in several requests.
const MAX_KEPT_LEN: u64 = 4 << 20;
const MAX_KEPT: usize = 16;

/// The clusters expanded last.
#[derive(Default)]
pub struct Expanded {
    kept: VecDeque<(u64, Arc<[u8]>)>,
}

impl Expanded {
    /// The cluster of `cluster_len` bytes whose compressed data are the `len` bytes at `offset`,
    /// or fewer. The caller bounds both lengths.
    ///
    /// # Errors
    /// The file cannot be read, or holds no such cluster.
    pub fn get(
        &mut self,
        file: &File,
        offset: u64,
        len: u64,
        cluster_len: u64,
    ) -> io::Result<Arc<[u8]>> {
        if let Some((_, bytes)) = self.kept.iter().find(|(kept, _)| *kept == offset) {
            return Ok(Arc::clone(bytes));
        }
        let to_usize = |len: u64| usize::try_from(len).map_err(io::Error::other);
        let mut compressed = vec![0; to_usize(len)?];
        file.read_exact_at(&mut compressed, offset)?;
        let mut bytes = vec![0; to_usize(cluster_len)?];
        let pieces = std::iter::once(compressed.as_slice());
        match decompress_slice_iter_to_slice(&mut bytes, pieces, false, true) {
            Ok(len) if len == bytes.len() => {}
            _ => {
                let text = format!("the compressed cluster at {offset:#x} is damaged");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        let bytes: Arc<[u8]> = bytes.into();
        let most = to_usize(MAX_KEPT_LEN / cluster_len)?.clamp(1, MAX_KEPT);
        while self.kept.len() >= most {
            self.kept.pop_front();
        }
        self.kept.push_back((offset, Arc::clone(&bytes)));
        Ok(bytes)
    }
}
