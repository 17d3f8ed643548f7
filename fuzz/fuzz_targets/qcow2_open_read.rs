//! Any bytes as a qcow2 image: opened, read, written to, flushed, opened again.
//!
//! The first byte says how the image is used, the rest is the image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podvisor_devices::virtio::block::backend::{Completion, DiskBackend, DiskOperation, Iovecs};
use podvisor_devices::virtio::block::image::testing::{Builder, Content};
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, CacheMode, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_fuzz::{file_of, seeds};

/// How much of a disk is read, in pieces that begin at as many places.
const READ_LEN: u64 = 64 << 10;
const PLACES: u64 = 16;

fuzz_target!(init: seeds(images), |data: &[u8]| {
    let Some((mode, image)) = data.split_first() else {
        return;
    };
    let file = file_of(image);
    let open = |read_only| {
        let source = ImageSource {
            file: file.try_clone().unwrap(),
            format: ImageFormat::Qcow2,
            backing: BackingFiles::Refused,
        };
        let cache = CacheMode::Writeback;
        image::open_without_ring(source, ImageOptions { read_only, cache })
    };
    let Ok(mut disk) = open(mode & 1 == 1) else {
        return;
    };
    use_disk(disk.as_mut(), *mode);
    drop(disk);
    // What the writer leaves is not worse than what it found.
    if mode & 1 == 0 {
        let mut disk = open(false).expect("an image that was written to can be opened");
        use_disk(disk.as_mut(), *mode);
    }
});

fn use_disk(disk: &mut dyn DiskBackend, mode: u8) {
    let len = disk.disk_len();
    for place in 0..PLACES {
        let offset = (len / PLACES * place) & !511;
        let rest = READ_LEN.min(len - offset);
        let buffers = Iovecs::zeros(usize::try_from(rest).unwrap());
        let _ = ask(disk, DiskOperation::Read { offset, buffers });
        if mode & 2 == 2 && rest >= 1536 {
            write(disk, offset + 512, 1024, place);
        }
        if mode & 4 == 4 {
            let len = (len - offset).min(1 << 20);
            let _ = ask(disk, DiskOperation::Discard { offset, len });
        }
        if mode & 8 == 8 {
            let (len, unmap) = ((len - offset).min(3 << 10), mode & 16 == 16);
            let _ = ask(disk, DiskOperation::WriteZeroes { offset, len, unmap });
        }
    }
    let _ = ask(disk, DiskOperation::Flush);
}

/// Writes and reads again: what was written without an error is there.
fn write(disk: &mut dyn DiskBackend, offset: u64, len: usize, place: u64) {
    let data = vec![u8::try_from(place).unwrap() + 1; len];
    let mut buffers = Iovecs::zeros(len);
    buffers.copy_in(&data);
    if ask(disk, DiskOperation::Write { offset, buffers }).is_err() {
        return;
    }
    let buffers = Iovecs::zeros(len);
    let memory = buffers.part(0, len as u64);
    ask(disk, DiskOperation::Read { offset, buffers }).expect("what was written can be read");
    assert_eq!(memory.bytes(), data);
}

fn ask(disk: &mut dyn DiskBackend, operation: DiskOperation) -> std::io::Result<()> {
    disk.start(0, operation);
    let mut finished = Vec::new();
    for _ in 0..100_000 {
        disk.submit();
        disk.wait().unwrap();
        disk.take_completions(&mut finished);
        if let Some(Completion { result, .. }) = finished.pop() {
            return result;
        }
    }
    panic!("an operation does not end");
}

/// Good images of both versions, small clusters first, used in every way.
fn images() -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for (cluster_bits, version, refcount_order) in [
        (9, 3, 4),
        (9, 2, 4),
        (9, 3, 0),
        (9, 3, 6),
        (10, 3, 3),
        (12, 3, 4),
    ] {
        let len = 1_usize << cluster_bits;
        let mut builder = Builder::new(cluster_bits, 40 * len as u64);
        (builder.version, builder.refcount_order) = (version, refcount_order);
        let text: Vec<u8> = (0..len).map(|at| b"a good image "[at % 13]).collect();
        builder.clusters.insert(0, Content::Data(text.clone()));
        builder
            .clusters
            .insert(3, Content::Compressed(text.clone()));
        builder.clusters.insert(9, Content::Data(text.clone()));
        if refcount_order > 0 {
            builder.clusters.insert(5, Content::Shared(text));
        }
        if version == 3 {
            builder.clusters.insert(10, Content::Zero);
            builder.clusters.insert(11, Content::ZeroWithRoom);
        }
        for mode in [1, 2, 4, 8, 14, 30] {
            images.push([&[mode], builder.bytes().as_slice()].concat());
        }
    }
    images
}
