//! Copy-on-write disks beside a vector of bytes.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use proptest::prelude::*;

use super::model::{Model, Random, byte_at};
use super::{CowLayer, LayeredDisk, RawLayer, Stack, Top};
use crate::virtio::block::backend::{DiskOperation, Iovecs};
use crate::virtio::block::transfer::{self, CacheMode, DiskFile, FileId};

/// A file of `len` bytes that repeat every 251.
fn base(len: usize) -> (File, Vec<u8>) {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..len).map(byte_at).collect();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

struct Cow {
    base: File,
    layer: File,
    model: Model,
}

/// A copy-on-write disk over a file of `len` bytes, with `io_uring` or without.
fn cow(len: usize, is_plain: bool) -> Cow {
    let (base, bytes) = base(len);
    let layer = tempfile::tempfile().unwrap();
    layer.set_len(len as u64).unwrap();
    let file =
        |file: &File| DiskFile::new(file.try_clone().unwrap(), CacheMode::Writeback).unwrap();
    let files = vec![file(&layer), file(&base)];
    let transfers = match is_plain {
        true => transfer::open_plain(files).unwrap(),
        false => transfer::open(files).unwrap(),
    };
    let top = CowLayer::new(FileId(0), len as u64).unwrap();
    let below = RawLayer::new(FileId(1), len as u64);
    let stack = Stack::new(Top::Writable(Box::new(top)), vec![Box::new(below)]);
    let disk = LayeredDisk::new(transfers, stack, CacheMode::Writeback);
    Cow {
        base,
        layer,
        model: Model::new(Box::new(disk), bytes),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_copy_on_write_disk_is_like_a_vector_of_bytes(
        seed in 1_u64..,
        sectors in 1_usize..700,
        is_plain: bool,
    ) {
        let Cow { base, mut model, .. } = cow(sectors * 512, is_plain);
        let mut random = Random(seed);
        for _ in 0..40 {
            model.step(&mut random, true);
        }
        model.check();
        let mut untouched = vec![0; sectors * 512];
        base.read_exact_at(&mut untouched, 0).unwrap();
        prop_assert!((0..untouched.len()).all(|at| untouched[at] == byte_at(at)));
    }
}

#[test]
fn parts_of_one_cluster_that_are_written_at_once_are_all_there() {
    for is_plain in [false, true] {
        let Cow { mut model, .. } = cow(1 << 16, is_plain);
        let mut random = Random(7);
        // Every sector of a cluster by an operation of its own, all in flight together.
        let mut tags = 0;
        for sector in (0..8).filter(|sector| sector % 3 != 1) {
            let mut buffers = Iovecs::zeros(512);
            let byte = u8::try_from(100 + sector).unwrap();
            buffers.copy_in(&[byte; 512]);
            let offset = 4096 + sector * 512;
            model
                .disk
                .start(tags, DiskOperation::Write { offset, buffers });
            model.bytes[usize::try_from(offset).unwrap()..][..512].fill(byte);
            tags += 1;
        }
        let mut finished = Vec::new();
        while finished.len() < tags {
            model.disk.submit();
            model.disk.wait().unwrap();
            model.disk.take_completions(&mut finished);
        }
        assert!(finished.iter().all(|done| done.result.is_ok()));
        model.check();
        model.step(&mut random, false);
        model.check();
    }
}

#[test]
fn only_what_is_written_takes_room_and_discards_give_it_back() {
    let Cow {
        layer, mut model, ..
    } = cow(4 << 20, false);
    assert_eq!(layer.metadata().unwrap().blocks(), 0);
    model.write(1 << 20, &[1; 1 << 20]).unwrap();
    let written = layer.metadata().unwrap().blocks();
    assert!((2048..2200).contains(&written), "{written} blocks");
    let discard = DiskOperation::Discard {
        offset: 1 << 20,
        len: 1 << 20,
    };
    model.ask(discard).unwrap();
    model.bytes[1 << 20..2 << 20].fill(0);
    model.check();
    assert!(layer.metadata().unwrap().blocks() < 100);
}

#[test]
fn a_base_that_shrinks_fails_reads_and_nothing_else() {
    let Cow {
        base, mut model, ..
    } = cow(1 << 20, false);
    model.write(4096, &[9; 4096]).unwrap();
    base.set_len(6000).unwrap();
    let mut read = |offset, len| {
        let buffers = Iovecs::zeros(len);
        model.ask(DiskOperation::Read { offset, buffers })
    };
    assert_eq!(
        read(1 << 19, 512).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    read(0, 8192).unwrap();
    // A write to a part of a cluster needs the rest of it from the base.
    let error = model.write(1 << 19, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    model.write(1 << 19, &[1; 4096]).unwrap();
    assert_eq!(model.read(1 << 19, 4096), [1; 4096]);
}

/// `/dev/full` answers every write as a full file system does.
#[test]
fn a_full_layer_fails_the_write_and_keeps_what_was_there() {
    let (base, bytes) = base(1 << 16);
    let full = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let files = [full, base].map(|file| DiskFile::new(file, CacheMode::Writeback).unwrap());
    let top = CowLayer::new(FileId(0), 1 << 16).unwrap();
    let below = RawLayer::new(FileId(1), 1 << 16);
    let stack = Stack::new(Top::Writable(Box::new(top)), vec![Box::new(below)]);
    let transfers = transfer::open(files.into()).unwrap();
    let disk = LayeredDisk::new(transfers, stack, CacheMode::Writeback);
    let mut model = Model::new(Box::new(disk), bytes);
    for (offset, len) in [(0, 512), (8192, 4096), (100 * 512, 10 * 512)] {
        let error = model.write(offset, &vec![7; len]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    model.ask(DiskOperation::Flush).unwrap();
    model.check();
}
