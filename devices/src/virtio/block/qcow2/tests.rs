//! Images made by the tests' own writer, read and written through the disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::testing::{Builder, Content, check};
use crate::virtio::block::backend::{DiskBackend, DiskOperation, Iovecs};
use crate::virtio::block::image::{
    self, BackingFiles, CacheMode, ImageError, ImageFormat, ImageOptions, ImageSource,
};
use crate::virtio::block::layers::model::{Model, Random, byte_at};

mod fixtures;
mod hostile;
mod writing;

/// The image in a file.
fn file_of(builder: &Builder) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&builder.bytes()).unwrap();
    file
}

fn source(file: &File, backing: BackingFiles) -> ImageSource {
    ImageSource {
        file: file.try_clone().unwrap(),
        format: ImageFormat::Qcow2,
        backing,
    }
}

fn try_open(
    file: &File,
    folder: Option<&Path>,
    read_only: bool,
) -> Result<Box<dyn DiskBackend>, ImageError> {
    let backing = folder.map_or(BackingFiles::Refused, |folder| {
        BackingFiles::in_folder(folder).unwrap()
    });
    let cache = CacheMode::Writeback;
    image::open(source(file, backing), ImageOptions { read_only, cache })
}

/// An image with some of each kind of cluster.
fn some_image(version: u32, cluster_bits: u32, disk_len: u64, random: &mut Random) -> Builder {
    let mut builder = Builder::new(cluster_bits, disk_len);
    builder.version = version;
    let len = 1_usize << cluster_bits;
    for cluster in 0..disk_len.div_ceil(len as u64) {
        let byte = u8::try_from(random.below(256)).unwrap();
        let data: Vec<u8> = (0..len).map(|at| byte ^ byte_at(at / 300)).collect();
        let content = match random.below(12) {
            0..3 => Content::Data(data),
            3 => Content::Compressed(data),
            4 => Content::Shared(data),
            5 if version == 3 => Content::Zero,
            6 if version == 3 => Content::ZeroWithRoom,
            _ => continue,
        };
        builder.clusters.insert(cluster, content);
    }
    builder
}

fn bytes_below(len: usize) -> Vec<u8> {
    (0..len).map(|at| byte_at(at + 17)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn an_image_on_another_reads_as_both_say(
        seed in 1_u64..,
        cluster_bits in 9_u32..=14,
        is_v3: bool,
        below in 1_usize..900,
        sectors in 1_u64..900,
        raw: bool,
    ) {
        let mut random = Random(seed);
        let folder = tempfile::tempdir().unwrap();
        let lowest = bytes_below(below * 512);
        let base = some_image(3, 12, below as u64 * 512, &mut random);
        let (bytes, format, below) = match raw {
            true => (lowest.clone(), "raw", lowest),
            false => (base.bytes(), "qcow2", base.disk(&[])),
        };
        std::fs::write(folder.path().join("base"), bytes).unwrap();
        let version = if is_v3 { 3 } else { 2 };
        let mut builder = some_image(version, cluster_bits, sectors * 512, &mut random);
        builder.backing = Some(("base".to_owned(), Some(format.to_owned())));
        let disk = try_open(&file_of(&builder), Some(folder.path()), true).unwrap();
        Model::new(disk, builder.disk(&below)).check();
    }
}

#[test]
fn an_image_without_tables_is_zeros() {
    for disk_len in [0, 512, 1 << 30] {
        let builder = Builder::new(16, disk_len);
        let mut disk = try_open(&file_of(&builder), None, true).unwrap();
        assert_eq!(disk.disk_len(), disk_len);
        disk.start(0, DiskOperation::Flush);
        let mut finished = Vec::new();
        disk.take_completions(&mut finished);
        assert!(finished.pop().unwrap().result.is_ok());
    }
}

#[test]
fn the_last_cluster_may_be_cut_where_its_data_end() {
    let mut builder = Builder::new(16, 1 << 17);
    builder.clusters.insert(1, Content::Data(vec![7; 1 << 16]));
    let mut bytes = builder.bytes();
    // The data cluster, at 64 KiB, is copied to the end, and its entry (the second of the only L2
    // table, at 128 KiB) follows.
    let end = bytes.len() as u64;
    bytes.extend_from_within(1 << 16..(1 << 16) + 5000);
    bytes[(2 << 16) + 8..][..8].copy_from_slice(&(end | 1 << 63).to_be_bytes());
    let mut moved = tempfile::tempfile().unwrap();
    moved.write_all(&bytes).unwrap();
    let disk = try_open(&moved, None, true).unwrap();
    let mut expected = vec![0; 1 << 17];
    expected[1 << 16..][..5000].fill(7);
    Model::new(disk, expected.clone()).check();
    // A writer makes the cluster whole first.
    let mut model = Model::new(try_open(&moved, None, false).unwrap(), expected);
    model.write((1 << 16) + 8192, &[5; 512]).unwrap();
    model.check();
}
