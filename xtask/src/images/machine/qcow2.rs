//! Writes qcow2 images (QEMU, docs/interop/qcow2.rst): version 3, no backing file, no compression. Clusters of zeroes are left out.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const CLUSTER_BITS: u32 = 16;
const CLUSTER_LEN: usize = 1 << CLUSTER_BITS;
/// Reference counts have two bytes (order 4).
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER_LEN as u64 / 2;
/// Table entries have eight.
const ENTRIES_PER_TABLE: usize = CLUSTER_LEN / 8;
const HEADER_LEN: u32 = 104;
/// "Refcount is exactly one", which says that nobody else has the cluster.
const COPIED: u64 = 1 << 63;

/// Writes the raw disk `raw` as the qcow2 image `image`.
///
/// # Errors
/// One of the files cannot be read or written, or the disk is larger than one table of references describes.
pub fn write(raw: &Path, image: &Path) -> Result<()> {
    let source = File::open(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let disk_len = source.metadata()?.len();
    let mut image = Image::create(image)?;
    let mapping = image.add_disk(BufReader::with_capacity(1 << 20, source))?;
    image.finish(disk_len, &mapping)
}

/// An image in the making: clusters are appended, and the first one is written last.
struct Image {
    file: File,
    clusters: u64,
}

impl Image {
    fn create(path: &Path) -> Result<Self> {
        let mut file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        file.seek(SeekFrom::Start(CLUSTER_LEN as u64))?;
        Ok(Self { file, clusters: 1 })
    }

    /// Appends a cluster and returns its offset in the file.
    fn append(&mut self, cluster: &[u8]) -> Result<u64> {
        self.file.write_all(cluster)?;
        let offset = self.clusters << CLUSTER_BITS;
        self.clusters += 1;
        Ok(offset)
    }

    /// Appends what is not zero of the disk; returns where each of its clusters is, zero for those that are nowhere.
    fn add_disk(&mut self, mut disk: impl Read) -> Result<Vec<u64>> {
        let mut mapping = Vec::new();
        let mut cluster = Vec::with_capacity(CLUSTER_LEN);
        loop {
            cluster.clear();
            disk.by_ref()
                .take(CLUSTER_LEN as u64)
                .read_to_end(&mut cluster)?;
            if cluster.is_empty() {
                return Ok(mapping);
            }
            cluster.resize(CLUSTER_LEN, 0);
            let is_zero = cluster.iter().all(|byte| *byte == 0);
            mapping.push(if is_zero { 0 } else { self.append(&cluster)? });
        }
    }

    /// Appends a table of 64-bit numbers, filled up with zeroes to whole clusters.
    fn append_table(&mut self, entries: &[u64]) -> Result<u64> {
        let mut bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        bytes.resize(bytes.len().next_multiple_of(CLUSTER_LEN), 0);
        let offset = self.clusters << CLUSTER_BITS;
        for cluster in bytes.chunks(CLUSTER_LEN) {
            self.append(cluster)?;
        }
        Ok(offset)
    }

    /// Writes the tables that lead to the clusters, the reference counts and the header.
    fn finish(mut self, disk_len: u64, mapping: &[u64]) -> Result<()> {
        let mut l1 = Vec::new();
        for clusters in mapping.chunks(ENTRIES_PER_TABLE) {
            let copied = |offset: &u64| if *offset == 0 { 0 } else { offset | COPIED };
            let l2: Vec<u64> = clusters.iter().map(copied).collect();
            let is_empty = l2.iter().all(|entry| *entry == 0);
            l1.push(if is_empty {
                0
            } else {
                self.append_table(&l2)? | COPIED
            });
        }
        let l1_offset = self.append_table(&l1)?;
        let refcounts_offset = self.append_refcounts()?;
        let header = header(
            disk_len,
            u32::try_from(l1.len())?,
            l1_offset,
            refcounts_offset,
        );
        self.file.rewind()?;
        self.file.write_all(&header)?;
        self.file.set_len(self.clusters << CLUSTER_BITS)?;
        Ok(())
    }

    /// Appends the reference counts of all clusters, their own among them, and returns the offset of their table.
    fn append_refcounts(&mut self) -> Result<u64> {
        const TABLE: u64 = 1;
        let mut blocks = 0;
        while (self.clusters + blocks + TABLE).div_ceil(REFCOUNTS_PER_BLOCK) > blocks {
            blocks += 1;
        }
        ensure!(blocks <= ENTRIES_PER_TABLE as u64, "the disk is too large");
        let total = self.clusters + blocks + TABLE;
        let mut table = Vec::new();
        for block in 0..blocks {
            let first = block * REFCOUNTS_PER_BLOCK;
            let counts = (first..first + REFCOUNTS_PER_BLOCK)
                .flat_map(|cluster| u16::from(cluster < total).to_be_bytes());
            table.push(self.append(&counts.collect::<Vec<u8>>())?);
        }
        self.append_table(&table)
    }
}

/// The header's fields in their order; what is not named here is zero.
fn header(disk_len: u64, l1_entries: u32, l1_offset: u64, refcounts_offset: u64) -> Vec<u8> {
    const VERSION: u32 = 3;
    const REFCOUNT_TABLE_CLUSTERS: u32 = 1;
    const REFCOUNT_ORDER: u32 = 4;
    let mut header = b"QFI\xfb".to_vec();
    header.extend(VERSION.to_be_bytes());
    // No backing file: offset and length.
    header.extend([0; 12]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(disk_len.to_be_bytes());
    // No encryption.
    header.extend([0; 4]);
    header.extend(l1_entries.to_be_bytes());
    header.extend(l1_offset.to_be_bytes());
    header.extend(refcounts_offset.to_be_bytes());
    header.extend(REFCOUNT_TABLE_CLUSTERS.to_be_bytes());
    // No snapshots (number and offset), no feature bits (three words).
    header.extend([0; 12 + 24]);
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend(HEADER_LEN.to_be_bytes());
    // No header extensions.
    header.extend([0; 8]);
    header
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn number(image: &[u8], offset: usize, len: usize) -> usize {
        image[offset..offset + len]
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    /// The disk as the image's tables describe it.
    fn read(image: &[u8]) -> Vec<u8> {
        assert_eq!(&image[..8], b"QFI\xfb\0\0\0\x03");
        let (len, l1) = (number(image, 24, 8), number(image, 40, 8));
        let mut disk = Vec::new();
        for cluster in 0..len.div_ceil(CLUSTER_LEN) {
            let offset =
                |table: usize, index: usize| number(image, table + index * 8, 8) & !(1_usize << 63);
            let l2 = offset(l1, cluster / ENTRIES_PER_TABLE);
            let data = match l2 {
                0 => 0,
                table => offset(table, cluster % ENTRIES_PER_TABLE),
            };
            match data {
                0 => disk.extend([0; CLUSTER_LEN]),
                data => disk.extend(&image[data..data + CLUSTER_LEN]),
            }
        }
        disk.truncate(len);
        disk
    }

    #[test]
    fn an_image_leads_to_what_the_disk_holds() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, image) = (folder.path().join("raw"), folder.path().join("qcow2"));
        // Over two tables of the second level, the last cluster half full.
        let len = (ENTRIES_PER_TABLE + 2) * CLUSTER_LEN + 512;
        let mut disk = vec![0; len];
        for (offset, byte) in [(0, 1), (3 * CLUSTER_LEN + 5, 2), (len - 1, 3)] {
            disk[offset] = byte;
        }
        fs::write(&raw, &disk).unwrap();
        write(&raw, &image).unwrap();
        let written = fs::read(&image).unwrap();
        assert!(read(&written) == disk);
        // Header, three clusters of data, three tables, reference counts and their table.
        assert_eq!(written.len(), 9 * CLUSTER_LEN);
        let block = number(&written, number(&written, 48, 8), 8);
        let counts: Vec<usize> = (0..10)
            .map(|index| number(&written, block + index * 2, 2))
            .collect();
        assert_eq!(counts, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }
}
