//! Images that are not what they should be.

use std::os::unix::fs::FileExt as _;

use super::*;

/// A good image with one data cluster of 64 KiB at 64 KiB, its L2 table at 128 KiB, its L1 table at
/// 192 KiB, one refcount block at 256 KiB and its table at 320 KiB.
fn good() -> Builder {
    let mut builder = Builder::new(16, 1 << 20);
    builder.clusters.insert(0, Content::Data(vec![7; 1 << 16]));
    builder
}

const L2: u64 = 2 << 16;
const L1: u64 = 3 << 16;
const REFCOUNT_TABLE: u64 = 5 << 16;

/// What is said about the good image with `bytes` at `offset`.
fn refusal(offset: u64, bytes: &[u8]) -> String {
    let file = file_of(&good());
    file.write_all_at(bytes, offset).unwrap();
    let error = try_open(&file, None, false).err().expect("it is opened");
    chain(&error)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[test]
fn the_good_image_is_good() {
    let file = file_of(&good());
    Model::new(try_open(&file, None, false).unwrap(), good().disk(&[])).check();
    assert_eq!(check(&file).wrong_counts, []);
}

#[test]
fn wrong_headers_are_refused_with_what_is_wrong() {
    let entry = |value: u64| value.to_be_bytes();
    let cases: [(u64, &[u8], &str); 21] = [
        (0, b"QCOW", "does not begin as a qcow2"),
        (4, &[0, 0, 0, 4], "version 4"),
        (20, &[0, 0, 0, 8], "cluster bits 8"),
        (20, &[0, 0, 0, 22], "cluster bits 22"),
        (20, &[0xff; 4], "cluster bits"),
        (24, &[0xff; 8], "disk size"),
        (24, &entry(1 << 40), "L1 size 1"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (36, &[0, 0, 0, 0], "L1 size 0"),
        (36, &[0x7f, 0, 0, 0], "L1 table is of"),
        (40, &entry(u64::MAX), "L1 table has the entry"),
        (
            40,
            &entry(1 << 40),
            "L1 table at 0x10000000000 lies outside",
        ),
        (40, &entry(0), "L1 table has the entry"),
        (48, &entry(L1), "refcount table has the entry"),
        (48, &entry(1 << 50), "refcount table at"),
        (56, &[0, 1, 0, 0], "refcount table is of"),
        (72, &entry(4), "'external data file'"),
        (72, &entry(8), "'compression type'"),
        (72, &entry(16), "'extended L2 entries'"),
        (72, &entry(1 << 40), "feature number 40"),
        (96, &[0, 0, 0, 7], "refcount order 7"),
    ];
    for (offset, bytes, expected) in cases {
        let text = refusal(offset, bytes);
        assert!(text.contains(expected), "{offset} {bytes:?}: {text}");
    }
    assert!(refusal(72, &entry(2)).contains("marked as corrupt"));
    assert!(refusal(60, &[0, 0, 0, 1]).contains("internal snapshots"));
    assert!(refusal(100, &[0, 0, 0, 72]).contains("header length 72"));
    assert!(refusal(100, &[0, 2, 0, 0]).contains("header length"));
}

#[test]
fn tables_that_lead_astray_are_refused() {
    let entry = |value: u64| value.to_be_bytes();
    for (offset, value, expected) in [
        (L1, 1 << 40, "L2 table at 0x10000000000 lies outside"),
        (L1, 0x123, "L1 table has the entry 0x123"),
        (L1, L1, "L1 table and its L2 table"),
        (L1, REFCOUNT_TABLE, "refcount table and its L2 table"),
        (L1, 6 << 16, "lies outside"),
        (REFCOUNT_TABLE, 1 << 40, "refcount block at"),
        (REFCOUNT_TABLE, L2, "L2 table and its refcount block"),
        (
            REFCOUNT_TABLE,
            REFCOUNT_TABLE,
            "refcount table and its refcount block",
        ),
        (REFCOUNT_TABLE, 1 << 63, "refcount table has the entry"),
    ] {
        let text = refusal(offset, &entry(value));
        assert!(text.contains(expected), "{offset:#x} {value:#x}: {text}");
    }
    // Two L1 entries for one table.
    let mut builder = Builder::new(9, 1 << 16);
    builder.clusters.insert(0, Content::Data(vec![1; 512]));
    builder.clusters.insert(64, Content::Data(vec![2; 512]));
    let file = file_of(&builder);
    let mut table = [0; 8];
    let mut l1 = [0; 8];
    file.read_exact_at(&mut l1, 40).unwrap();
    let l1 = u64::from_be_bytes(l1);
    file.read_exact_at(&mut table, l1).unwrap();
    file.write_all_at(&table, l1 + 8).unwrap();
    let error = try_open(&file, None, true).err().unwrap();
    assert!(
        chain(&error).contains("L2 table and its L2 table"),
        "{error}"
    );
}

#[test]
fn entries_that_lead_astray_fail_the_requests_that_need_them() {
    for (entry, expected) in [
        (1 << 40 | 1 << 63, "lie outside of its file"),
        (L2 | 1 << 63, "where its L2 table is"),
        (L1, "where its L1 table is"),
        (1 << 63, "is wrong"),
        (0x1_0000 | 1 << 62 | 1 << 63, "is wrong"),
        (0x1_0000 | 2, "is wrong"),
        (0x1_0200, "is wrong"),
        (1 << 50 | 1 << 62, "lie outside of its file"),
        (0x1_0000 | 1 << 62, "is damaged"),
    ] {
        let file = file_of(&good());
        file.write_all_at(&u64::to_be_bytes(entry), L2).unwrap();
        let mut model = Model::new(try_open(&file, None, false).unwrap(), good().disk(&[]));
        let buffers = Iovecs::zeros(512);
        let error = model
            .ask(DiskOperation::Read { offset: 0, buffers })
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{entry:#x}: {error}");
        assert!(model.write(0, &[1; 512]).is_err(), "{entry:#x}");
        model.write(1 << 17, &[1; 512]).unwrap();
        assert_eq!(model.read(1 << 17, 512), [1; 512]);
    }
}

#[test]
fn truncated_images_are_refused() {
    let image = good().bytes();
    for (len, expected) in [
        (0, "does not begin"),
        (3, "does not begin"),
        (50, "ends within its header"),
        (100, "ends within its header"),
        (200, "L1 table at"),
        (3 << 16, "L1 table at"),
        (4 << 16, "refcount table at"),
        (6 << 16, ""),
    ] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&image[..len]).unwrap();
        match try_open(&file, None, true) {
            Ok(_) => assert_eq!(expected, "", "{len} bytes are enough"),
            Err(error) => {
                let text = chain(&error);
                assert!(
                    !expected.is_empty() && text.contains(expected),
                    "{len}: {text}"
                );
            }
        }
    }
    // Tables first and then data that are cut: the reference counts tell.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file.write_all_at(&[0, 1], (4 << 16) + 2 * 9).unwrap();
    let error = try_open(&file, None, true).err().unwrap();
    assert!(chain(&error).contains("ends within its data"), "{error}");
}

/// An image in `folder` that lies on `name`.
fn opened_on(name: &str, format: Option<&str>, folder: &Path) -> String {
    let mut builder = good();
    builder.backing = Some((name.to_owned(), format.map(str::to_owned)));
    std::fs::write(folder.join("top"), builder.bytes()).unwrap();
    let file = File::open(folder.join("top")).unwrap();
    match try_open(&file, Some(folder), true) {
        Ok(_) => "opened".to_owned(),
        Err(error) => chain(&error),
    }
}

#[test]
fn an_image_lies_on_files_of_its_own_folder_only() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), [0; 512]).unwrap();
    let folder = tempfile::tempdir_in(outside.path()).unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("sub")).unwrap();
    for name in ["base", "sub/base"] {
        std::fs::write(folder.join(name), [1; 4096]).unwrap();
        assert_eq!(opened_on(name, Some("raw"), folder), "opened");
        assert_eq!(opened_on(name, None, folder), "opened");
    }
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    let absolute = outside.path().join("secret").display().to_string();
    for (name, expected) in [
        ("../secret", "not one above it"),
        ("sub/../base", "not one above it"),
        (&absolute, "absolute path"),
        ("json:{\"driver\":\"file\"}", "JSON"),
        ("nbd://host/disk", "protocol"),
        ("file:base", "protocol"),
        ("link", "cannot be opened"),
        ("up/secret", "cannot be opened"),
        ("none", "No such file"),
        ("sub", "not a regular file"),
    ] {
        let text = opened_on(name, Some("raw"), folder);
        assert!(text.contains(expected), "{name}: {text}");
    }
    assert!(opened_on("base", Some("vmdk"), folder).contains("format 'vmdk'"));
    assert!(opened_on("base", Some("qcow2"), folder).contains("does not begin"));
    let mut builder = good();
    builder.backing = Some(("base".to_owned(), None));
    let error = try_open(&file_of(&builder), None, true).err().unwrap();
    assert!(chain(&error).contains("may not lie on another file"));
}

#[test]
fn chains_that_never_end_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let image = |name: &str, on: &str| {
        let mut builder = good();
        builder.backing = Some((on.to_owned(), Some("qcow2".to_owned())));
        std::fs::write(folder.join(name), builder.bytes()).unwrap();
    };
    image("one", "two");
    image("two", "three");
    image("three", "one");
    assert!(opened_on("one", Some("qcow2"), folder).contains("lies on itself"));
    for number in 0..12 {
        image(&format!("long{number}"), &format!("long{}", number + 1));
    }
    assert!(opened_on("long0", Some("qcow2"), folder).contains("more than 8"));
}
