//! Images that are written to.

use std::os::unix::fs::MetadataExt as _;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn an_image_is_like_a_vector_of_bytes_and_stays_sound(
        seed in 1_u64..,
        cluster_bits in 9_u32..=13,
        refcount_order in 1_u32..=6,
        is_v3: bool,
        has_backing: bool,
        sectors in 1_u64..1500,
    ) {
        let mut random = Random(seed);
        let folder = tempfile::tempdir().unwrap();
        let below = bytes_below(if has_backing { 300 * 512 } else { 0 });
        std::fs::write(folder.path().join("base"), &below).unwrap();
        let version = if is_v3 { 3 } else { 2 };
        let mut builder = some_image(version, cluster_bits, sectors * 512, &mut random);
        builder.refcount_order = if is_v3 { refcount_order } else { 4 };
        if has_backing {
            builder.backing = Some(("base".to_owned(), Some("raw".to_owned())));
        }
        let file = file_of(&builder);
        let mut bytes = builder.disk(&below);
        for _ in 0..3 {
            let disk = try_open(&file, Some(folder.path()), false).unwrap();
            let mut model = Model::new(disk, bytes);
            for _ in 0..15 {
                model.step(&mut random, true);
            }
            model.check();
            let Model { disk, bytes: after } = model;
            drop(disk);
            bytes = after;
            // What is not referred to any more may still be counted: nothing else is wrong.
            for (cluster, found, count) in check(&file).wrong_counts {
                prop_assert!(found < count, "cluster {cluster}: {found} references, counted {count}");
            }
        }
        let disk = try_open(&file, Some(folder.path()), true).unwrap();
        Model::new(disk, bytes).check();
    }
}

/// An image whose clusters are all its own leaves nothing counted that it does not use.
#[test]
fn no_cluster_is_lost_when_an_image_grows_beyond_its_refcount_table() {
    for (cluster_bits, refcount_order) in [(9, 6), (9, 0), (9, 4), (10, 5), (12, 4)] {
        let mut builder = Builder::new(cluster_bits, 12 << 20);
        builder.refcount_order = refcount_order;
        let file = file_of(&builder);
        let disk = try_open(&file, None, false).unwrap();
        let mut model = Model::new(disk, builder.disk(&[]));
        for piece in 0..24 {
            model
                .write(
                    piece << 19,
                    &vec![1 + u8::try_from(piece).unwrap(); 1 << 19],
                )
                .unwrap();
            if piece % 5 == 0 {
                model.ask(DiskOperation::Flush).unwrap();
            }
        }
        model.check();
        let Model { disk, bytes } = model;
        drop(disk);
        assert_eq!(
            check(&file).wrong_counts,
            [],
            "{cluster_bits} {refcount_order}"
        );
        Model::new(try_open(&file, None, true).unwrap(), bytes).check();
    }
}

#[test]
fn what_was_flushed_is_there_though_the_writer_never_came_to_its_end() {
    let builder = Builder::new(16, 64 << 20);
    let file = file_of(&builder);
    let mut model = Model::new(try_open(&file, None, false).unwrap(), builder.disk(&[]));
    model.write(1 << 20, &[3; 1 << 20]).unwrap();
    model.ask(DiskOperation::Flush).unwrap();
    let flushed = model.bytes.clone();
    model.write(9 << 20, &[4; 1 << 20]).unwrap();
    // Another reader sees what is in the file now.
    let disk = try_open(&file, None, true).unwrap();
    let mut other = Model::new(disk, flushed);
    other.check();
    for (_, found, count) in check(&file).wrong_counts {
        assert!(found < count);
    }
}

#[test]
fn discards_and_zeros_reach_the_file() {
    let builder = Builder::new(16, 64 << 20);
    let file = file_of(&builder);
    let mut model = Model::new(try_open(&file, None, false).unwrap(), builder.disk(&[]));
    let blocks = || file.metadata().unwrap().blocks();
    model.write(0, &vec![3; 8 << 20]).unwrap();
    model.ask(DiskOperation::Flush).unwrap();
    let full = blocks();
    let (offset, len) = (1 << 20, 4 << 20);
    model.ask(DiskOperation::Discard { offset, len }).unwrap();
    model.bytes[1 << 20..5 << 20].fill(0);
    assert!(blocks() + (4 << 11) <= full + 64, "{} of {full}", blocks());
    let unmap = true;
    let (offset, len) = (6 << 20, 4 << 20);
    model
        .ask(DiskOperation::WriteZeroes { offset, len, unmap })
        .unwrap();
    model.bytes[6 << 20..10 << 20].fill(0);
    assert!(blocks() + (6 << 11) <= full + 64, "{} of {full}", blocks());
    model.check();
}

#[test]
fn a_file_that_shrinks_fails_requests_and_nothing_else() {
    let mut builder = Builder::new(12, 1 << 20);
    for cluster in 0..256 {
        let data = vec![u8::try_from(cluster).unwrap(); 4096];
        builder.clusters.insert(cluster, Content::Data(data));
    }
    let file = file_of(&builder);
    let mut model = Model::new(try_open(&file, None, true).unwrap(), builder.disk(&[]));
    model.check();
    file.set_len(100_000).unwrap();
    let mut read = |offset| {
        let buffers = Iovecs::zeros(4096);
        model.ask(DiskOperation::Read { offset, buffers })
    };
    assert!(read(1 << 19).is_err());
    assert!(read(0).is_ok());
}
