//! A writer of images that shares nothing with the reader, and a check of what the writer left:
//! for tests and fuzz targets.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a harness for tests: a broken one has to stop the test"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use miniz_oxide::deflate::compress_to_vec;

/// What an image has for a cluster.
#[derive(Clone, Debug)]
pub enum Content {
    /// These data.
    Data(Vec<u8>),
    /// As the data of an image with an internal snapshot: referred to twice.
    Shared(Vec<u8>),
    /// These data, compressed.
    Compressed(Vec<u8>),
    /// Zeros.
    Zero,
    /// Zeros, with room for data that is full of something else.
    ZeroWithRoom,
}

/// An image to be.
#[derive(Clone, Debug)]
pub struct Builder {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// 0 to 6.
    pub refcount_order: u32,
    /// In bytes.
    pub disk_len: u64,
    /// Name and format of the file that it lies on.
    pub backing: Option<(String, Option<String>)>,
    /// What it has, by position in clusters.
    pub clusters: BTreeMap<u64, Content>,
}

impl Builder {
    /// An empty image of version 3.
    #[must_use]
    pub fn new(cluster_bits: u32, disk_len: u64) -> Self {
        Self {
            version: 3,
            cluster_bits,
            refcount_order: 4,
            disk_len,
            backing: None,
            clusters: BTreeMap::new(),
        }
    }

    fn cluster_len(&self) -> usize {
        1 << self.cluster_bits
    }

    /// What a disk over `below` has.
    #[must_use]
    pub fn disk(&self, below: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(self.disk_len).unwrap()];
        let same = disk.len().min(below.len());
        disk[..same].copy_from_slice(&below[..same]);
        for (&cluster, content) in &self.clusters {
            let start = usize::try_from(cluster).unwrap() * self.cluster_len();
            let end = disk.len().min(start + self.cluster_len());
            match content {
                Content::Data(data) | Content::Shared(data) | Content::Compressed(data) => {
                    disk[start..end].copy_from_slice(&data[..end - start]);
                }
                Content::Zero | Content::ZeroWithRoom => disk[start..end].fill(0),
            }
        }
        disk
    }

    /// The image. Tables are behind the data.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let len = self.cluster_len();
        let mut image = vec![0; len];
        let mut counts: BTreeMap<usize, u64> = BTreeMap::from([(0, 1)]);
        let entries = len as u64 / 8;
        let tables = usize::try_from(self.disk_len.div_ceil(entries * len as u64)).unwrap();
        let mut l2 = vec![None::<Vec<u64>>; tables];
        for (&cluster, content) in &self.clusters {
            let table = l2[usize::try_from(cluster / entries).unwrap()]
                .get_or_insert_with(|| vec![0; usize::try_from(entries).unwrap()]);
            table[usize::try_from(cluster % entries).unwrap()] =
                self.place(&mut image, &mut counts, content);
        }
        let mut l1 = Vec::new();
        for table in l2 {
            l1.push(table.map_or(0, |table| {
                let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                add(&mut image, &mut counts, len, &bytes, 1) as u64 | 1 << 63
            }));
        }
        let l1_bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let l1_offset = add(&mut image, &mut counts, len, &l1_bytes, 1);
        let (table_offset, table_clusters) = self.add_refcounts(&mut image, counts);
        let header = self.header(l1_offset, l1.len(), table_offset, table_clusters);
        image[..header.len()].copy_from_slice(&header);
        image
    }

    /// Adds a cluster's data and returns its entry.
    fn place(
        &self,
        image: &mut Vec<u8>,
        counts: &mut BTreeMap<usize, u64>,
        content: &Content,
    ) -> u64 {
        let len = self.cluster_len();
        match content {
            Content::Data(data) => add(image, counts, len, data, 1) as u64 | 1 << 63,
            Content::Shared(data) => add(image, counts, len, data, 2) as u64,
            Content::Zero => 1,
            Content::ZeroWithRoom => {
                add(image, counts, len, &vec![0xee; len], 1) as u64 | 1 << 63 | 1
            }
            Content::Compressed(data) => {
                let compressed = compress_to_vec(data, 6);
                // Not at the beginning of a sector.
                let bytes = [vec![0; 300], compressed].concat();
                let offset = add(image, counts, len, &bytes, 1) + 300;
                let end = offset + bytes.len() - 300;
                let sectors = (end - 1) / 512 - offset / 512;
                let shift = 62 - (self.cluster_bits - 8);
                offset as u64 | (sectors as u64) << shift | 1 << 62
            }
        }
    }

    fn add_refcounts(
        &self,
        image: &mut Vec<u8>,
        mut counts: BTreeMap<usize, u64>,
    ) -> (usize, usize) {
        let len = self.cluster_len();
        let per_block = (len * 8) >> self.refcount_order;
        let used = image.len() / len;
        let (mut blocks, mut table_clusters) = (0, 0);
        while blocks * per_block < used + blocks + table_clusters {
            blocks += 1;
            table_clusters = (blocks * 8).div_ceil(len);
        }
        for cluster in used..used + blocks + table_clusters {
            counts.insert(cluster, 1);
        }
        let mut table = Vec::new();
        for block in 0..blocks {
            let mut bytes = vec![0; len];
            for (cluster, count) in counts.range(block * per_block..(block + 1) * per_block) {
                write_count(
                    &mut bytes,
                    self.refcount_order,
                    cluster % per_block,
                    // One bit counts to one.
                    (*count).min((1 << (1 << self.refcount_order.min(5))) - 1),
                );
            }
            table.extend((image.len() as u64).to_be_bytes());
            image.extend(bytes);
        }
        let table_offset = image.len();
        table.resize(table_clusters * len, 0);
        image.extend(table);
        (table_offset, table_clusters)
    }

    fn header(&self, l1: usize, l1_entries: usize, table: usize, table_clusters: usize) -> Vec<u8> {
        let u32 = |value: usize| u32::try_from(value).unwrap().to_be_bytes();
        let u64 = |value: usize| (value as u64).to_be_bytes();
        let mut header = [b"QFI\xfb".as_slice(), &self.version.to_be_bytes()].concat();
        let mut extensions = Vec::new();
        let mut name = Vec::new();
        if let Some((text, format)) = &self.backing {
            if let Some(format) = format {
                extensions.extend(0xe279_2aca_u32.to_be_bytes());
                extensions.extend(u32(format.len()));
                extensions.extend(format.as_bytes());
                extensions.resize(extensions.len().next_multiple_of(8), 0);
            }
            name.extend(text.as_bytes());
        }
        extensions.extend([0; 8]);
        let fixed = if self.version == 2 { 72 } else { 104 };
        let name_offset = if name.is_empty() {
            0
        } else {
            fixed + extensions.len()
        };
        header.extend(u64(name_offset));
        header.extend(u32(name.len()));
        header.extend(self.cluster_bits.to_be_bytes());
        header.extend(self.disk_len.to_be_bytes());
        header.extend([0; 4]);
        header.extend(u32(l1_entries));
        header.extend(u64(l1));
        header.extend(u64(table));
        header.extend(u32(table_clusters));
        header.extend([0; 12]);
        if self.version == 3 {
            header.extend([0; 24]);
            header.extend(self.refcount_order.to_be_bytes());
            header.extend(104_u32.to_be_bytes());
        }
        assert_eq!(header.len(), fixed);
        [header, extensions, name].concat()
    }
}

/// Adds `bytes` at the image's end, in whole clusters.
fn add(
    image: &mut Vec<u8>,
    counts: &mut BTreeMap<usize, u64>,
    cluster_len: usize,
    bytes: &[u8],
    count: u64,
) -> usize {
    let offset = image.len();
    image.extend(bytes);
    image.resize(image.len().next_multiple_of(cluster_len), 0);
    for cluster in offset / cluster_len..image.len() / cluster_len {
        counts.insert(cluster, count);
    }
    offset
}

fn write_count(block: &mut [u8], order: u32, index: usize, count: u64) {
    let bits = 1_usize << order;
    if bits < 8 {
        block[index * bits / 8] |= u8::try_from(count).unwrap() << (index * bits % 8);
    } else {
        let width = bits / 8;
        block[index * width..(index + 1) * width]
            .copy_from_slice(&count.to_be_bytes()[8 - width..]);
    }
}

/// An image's file looked through from scratch.
pub struct Checked {
    /// References found to each cluster, and what its count says; where they differ.
    pub wrong_counts: Vec<(u64, u64, u64)>,
}

struct Reader<'a> {
    file: &'a File,
    found: BTreeMap<u64, u64>,
    len: u64,
}

impl Reader<'_> {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn u64s(&self, offset: u64, count: usize) -> Vec<u64> {
        let bytes = self.read(offset, count * 8);
        let (chunks, _) = bytes.as_chunks();
        chunks
            .iter()
            .map(|chunk| u64::from_be_bytes(*chunk))
            .collect()
    }

    /// A reference to each cluster of a range.
    fn refer(&mut self, offset: u64, len: u64) {
        for cluster in offset / self.len..(offset + len).div_ceil(self.len) {
            *self.found.entry(cluster).or_default() += 1;
        }
    }
}

/// Compares an image's reference counts with the references that there are.
#[must_use]
pub fn check(file: &File) -> Checked {
    let number = |offset, len: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes[8 - len..], offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    let len = 1 << number(20, 4);
    let order = if number(4, 4) == 2 { 4 } else { number(96, 4) };
    let mut reader = Reader {
        file,
        found: BTreeMap::new(),
        len,
    };
    reader.refer(0, len);
    let (l1, l1_entries) = (number(40, 8), usize::try_from(number(36, 4)).unwrap());
    reader.refer(l1, l1_entries as u64 * 8);
    let offset_mask = 0x00ff_ffff_ffff_fe00;
    for table in reader.u64s(l1, l1_entries) {
        let table = table & offset_mask;
        if table == 0 {
            continue;
        }
        reader.refer(table, len);
        for entry in reader.u64s(table, usize::try_from(len / 8).unwrap()) {
            if entry & 1 << 62 != 0 {
                let shift = 62 - (number(20, 4) - 8);
                let offset = entry & ((1 << shift) - 1);
                let sectors = (entry & !(3 << 62)) >> shift;
                reader.refer(offset, (sectors + 1) * 512 - offset % 512);
            } else if entry & offset_mask != 0 {
                reader.refer(entry & offset_mask, len);
            }
        }
    }
    let (table, clusters) = (number(48, 8), number(56, 4));
    reader.refer(table, clusters * len);
    let per_block = usize::try_from((len * 8) >> order).unwrap();
    let mut counts = BTreeMap::new();
    let blocks = reader.u64s(table, usize::try_from(clusters * len / 8).unwrap());
    for (index, block) in blocks
        .into_iter()
        .enumerate()
        .filter(|(_, block)| *block != 0)
    {
        reader.refer(block, len);
        let bytes = reader.read(block, usize::try_from(len).unwrap());
        for position in 0..per_block {
            let count = read_count(&bytes, u32::try_from(order).unwrap(), position);
            if count != 0 {
                counts.insert((index * per_block + position) as u64, count);
            }
        }
    }
    let all = reader.found.keys().chain(counts.keys());
    let mut wrong_counts: Vec<_> = all
        .map(|&cluster| {
            let found = reader.found.get(&cluster).copied().unwrap_or(0);
            (cluster, found, counts.get(&cluster).copied().unwrap_or(0))
        })
        .filter(|(_, found, count)| found != count)
        .collect();
    wrong_counts.sort_unstable();
    wrong_counts.dedup();
    Checked { wrong_counts }
}

fn read_count(block: &[u8], order: u32, index: usize) -> u64 {
    let bits = 1_usize << order;
    if bits < 8 {
        u64::from(block[index * bits / 8] >> (index * bits % 8) & ((1 << bits) - 1))
    } else {
        let width = bits / 8;
        let count = block[index * width..(index + 1) * width].iter();
        count.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }
}
