//! Images made by qemu-img 7.2 and qemu-io, in `fixtures/`:
//!
//! ```text
//! qemu-img create -f qcow2 -o cluster_size=512,compat=1.1 v3.qcow2 100K
//!   write -P 0x11 0 5000; write -P 0x22 20480 10240; write -z 2048 1024; write -P 0x33 100352 2048
//! qemu-img create -f qcow2 -o cluster_size=4096,compat=0.10 v2.qcow2 100K
//!   write -P 0x44 0 5120; write -P 0x55 50176 1024; write -c -P 0x66 8192 4096
//! qemu-img create -f qcow2 -o cluster_size=1024 -b v3.qcow2 -F qcow2 top.qcow2 120K
//!   write -P 0x77 20992 512; write -z 4096 1024; write -c -P 0x88 30720 1024
//! qemu-img create -f qcow2 -o cluster_size=512,refcount_bits=1 narrow.qcow2 64K
//!   write -P 0x99 1024 1024
//! snapshot.qcow2: v3.qcow2, then qemu-img snapshot -c one; write -P 0xaa 512 512
//! ```

use super::*;

const V2: &[u8] = include_bytes!("../fixtures/v2.qcow2");
const V3: &[u8] = include_bytes!("../fixtures/v3.qcow2");
const TOP: &[u8] = include_bytes!("../fixtures/top.qcow2");
const NARROW: &[u8] = include_bytes!("../fixtures/narrow.qcow2");
const SNAPSHOT: &[u8] = include_bytes!("../fixtures/snapshot.qcow2");

/// Bytes of a disk: each pattern's byte, offset and length, over `below`.
fn patterns(len: usize, below: &[u8], patterns: &[(u8, usize, usize)]) -> Vec<u8> {
    let mut disk = below.to_vec();
    disk.resize(len, 0);
    for &(byte, offset, len) in patterns {
        disk[offset..offset + len].fill(byte);
    }
    disk
}

fn v3() -> Vec<u8> {
    patterns(
        100 << 10,
        &[],
        &[
            (0x11, 0, 5000),
            (0x22, 20480, 10240),
            (0, 2048, 1024),
            (0x33, 100_352, 2048),
        ],
    )
}

fn v2() -> Vec<u8> {
    patterns(
        100 << 10,
        &[],
        &[(0x44, 0, 5120), (0x55, 50176, 1024), (0x66, 8192, 4096)],
    )
}

fn narrow() -> Vec<u8> {
    patterns(64 << 10, &[], &[(0x99, 1024, 1024)])
}

fn file(image: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    file
}

#[test]
fn images_of_another_program_are_read() {
    for (image, disk) in [
        (V3, v3()),
        (V2, v2()),
        (NARROW, narrow()),
        (SNAPSHOT, patterns(100 << 10, &v3(), &[(0xaa, 512, 512)])),
    ] {
        Model::new(try_open(&file(image), None, true).unwrap(), disk).check();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("v3.qcow2"), V3).unwrap();
    let disk = patterns(
        120 << 10,
        &v3(),
        &[(0x77, 20992, 512), (0, 4096, 1024), (0x88, 30720, 1024)],
    );
    let opened = try_open(&file(TOP), Some(folder.path()), true).unwrap();
    Model::new(opened, disk).check();
}

#[test]
fn images_of_another_program_are_written_to_and_stay_sound() {
    for (image, disk) in [(V3, v3()), (V2, v2()), (NARROW, narrow())] {
        let file = file(image);
        let mut model = Model::new(try_open(&file, None, false).unwrap(), disk);
        let mut random = Random(image.len() as u64);
        for _ in 0..20 {
            model.step(&mut random, true);
        }
        model.check();
        let Model { disk, bytes } = model;
        drop(disk);
        for (cluster, found, count) in check(&file).wrong_counts {
            assert!(found < count, "cluster {cluster}: {found}, counted {count}");
        }
        Model::new(try_open(&file, None, true).unwrap(), bytes).check();
    }
}

#[test]
fn an_image_with_internal_snapshots_is_not_written_to() {
    let error = try_open(&file(SNAPSHOT), None, false).err().unwrap();
    let ImageError::Qcow2(error) = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("internal snapshots"), "{error}");
}
