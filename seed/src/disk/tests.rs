//! Disks are read back by a reader of its own, written after the specification (Microsoft, FAT: General
//! Overview of On-Disk Format, 1.03).

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

struct Reader<'a> {
    disk: &'a [u8],
    fat: usize,
    data: usize,
    is_fat16: bool,
    cluster_len: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

impl<'a> Reader<'a> {
    /// The reader, and the bytes of the root folder.
    fn new(disk: &'a [u8]) -> (Self, &'a [u8]) {
        let sector = u16_at(disk, 11);
        let cluster_len = usize::from(disk[13]) * sector;
        let fat = u16_at(disk, 14) * sector;
        let root = fat + usize::from(disk[16]) * u16_at(disk, 22) * sector;
        let data = root + u16_at(disk, 17) * 32;
        let sectors = match u16_at(disk, 19) {
            0 => u32::from_le_bytes(disk[32..36].try_into().unwrap()) as usize,
            small => small,
        };
        assert!(sectors * sector <= disk.len(), "the disk is cut off");
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        let clusters = (sectors * sector - data) / cluster_len;
        let reader = Self {
            disk,
            fat,
            data,
            is_fat16: clusters >= 4085,
            cluster_len,
        };
        (reader, &disk[root..data])
    }

    fn next(&self, cluster: usize) -> Option<usize> {
        let next = if self.is_fat16 {
            u16_at(self.disk, self.fat + 2 * cluster)
        } else {
            let pair = u16_at(self.disk, self.fat + cluster + cluster / 2);
            if cluster % 2 == 1 {
                pair >> 4
            } else {
                pair & 0xfff
            }
        };
        let last = if self.is_fat16 { 0xfff8 } else { 0xff8 };
        assert!(next >= 2, "a chain leads to a free cluster");
        (next < last).then_some(next)
    }

    fn chain(&self, first: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut cluster = (first != 0).then_some(first);
        while let Some(number) = cluster {
            let start = self.data + (number - 2) * self.cluster_len;
            bytes.extend_from_slice(&self.disk[start..start + self.cluster_len]);
            cluster = self.next(number);
        }
        bytes
    }

    fn folder(&self, folder: &[u8], prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
        let mut name = Vec::new();
        for entry in folder.chunks(32).take_while(|entry| entry[0] != 0) {
            match entry[11] {
                // A piece of a name, the last one first.
                0x0f => {
                    let units = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
                    let units = units
                        .chunks(2)
                        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                    let piece: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
                    name = [piece, name].concat();
                }
                0x08 => assert_eq!(prefix, "", "the label is in the root"),
                kind => {
                    let first = u16_at(entry, 26);
                    let path = format!("{prefix}{}", String::from_utf16(&name).unwrap());
                    name.clear();
                    if kind & 0x10 == 0 {
                        let len = u32::from_le_bytes(entry[28..32].try_into().unwrap());
                        let mut content = self.chain(first);
                        assert!(content.len() >= len as usize);
                        content.truncate(len as usize);
                        files.insert(path, content);
                    } else if entry[0] != b'.' {
                        self.folder(&self.chain(first), &format!("{path}/"), files);
                    }
                }
            }
        }
    }
}

/// All files of a disk.
pub(crate) fn read_back(disk: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (reader, root) = Reader::new(disk);
    let mut files = BTreeMap::new();
    reader.folder(root, "", &mut files);
    files
}

fn made(files: &[(&str, &[u8])]) -> Result<Vec<u8>, DiskError> {
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| DiskFile::new(path, content))
        .collect();
    image(Label::try_from("CONFIG-0").unwrap(), &files)
}

#[test]
fn a_label_is_in_the_boot_sector_and_in_the_root() {
    let disk = made(&[("a", b"1")]).unwrap();
    assert_eq!(&disk[43..54], b"CONFIG-0   ");
    let (_, root) = Reader::new(&disk);
    assert_eq!((&root[..11], root[11]), (&b"CONFIG-0   "[..], 8));
    for wrong in ["", "lower", "TWELVE-BYTES"] {
        assert!(Label::try_from(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn folders_and_the_case_of_names_are_kept() {
    let files: [(&str, &[u8]); 4] = [
        ("Upper.CRT", b"1"),
        ("a.very.long-name_of-a-key.yaml", b"2"),
        ("folder/inner/x", b"3"),
        ("folder/y", b""),
    ];
    let read = read_back(&made(&files).unwrap());
    let expected: BTreeMap<_, _> = files
        .iter()
        .map(|(path, content)| ((*path).to_owned(), content.to_vec()))
        .collect();
    assert_eq!(read, expected);
}

#[test]
fn a_disk_is_as_large_as_its_content_needs() {
    assert!(made(&[("a", b"1")]).unwrap().len() <= 16 << 10);
    let large = vec![7; 20 << 20];
    let disk = made(&[("a", &large)]).unwrap();
    assert!(disk.len() < large.len() + (256 << 10));
    assert_eq!(read_back(&disk)["a"], large);
}

#[test]
fn sizes_between_fat12_and_fat16_are_no_trouble() {
    for clusters in [3999, 4000, 4084, 4085, 4199, 4200, 4201] {
        let content = vec![0xa5; clusters * CLUSTER_LEN];
        let read = read_back(&made(&[("a", &content)]).unwrap());
        assert!(read["a"] == content, "{clusters}");
    }
}

#[test]
fn a_full_folder_fits() {
    let names: Vec<String> = (0..400).map(|n| format!("key-number-{n}.conf")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &b"x"[..]))
        .collect();
    assert_eq!(read_back(&made(&files).unwrap()).len(), 400);
}

#[test]
fn what_no_disk_can_have_is_named() {
    let error = |files: &[(&str, &[u8])]| made(files).unwrap_err().to_string();
    assert!(error(&[("Key", b""), ("kEY", b"")]).contains("\"kEY\" is there twice"));
    for name in ["", "a/", "/a", "a.", "a:b", "a/../b", "new\nline"] {
        assert!(
            error(&[(name, b"")]).contains(&format!("{name:?}:")),
            "{name}"
        );
    }
    let large = vec![0; CONTENT_LEN_MAX + 1];
    assert!(error(&[("a", &large)]).contains("67108865 bytes"));
    let names: Vec<String> = (0..=FILES_MAX).map(|n| n.to_string()).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert!(error(&files).contains("1025 files"));
}

proptest! {
    #[test]
    fn what_is_put_on_a_disk_is_on_it(
        files in prop::collection::btree_map("[a-z0-9_-]{1,20}(/[a-zA-Z0-9._-]{0,20}[a-z])?", prop::collection::vec(any::<u8>(), 0..5000), 0..12)
    ) {
        let list: Vec<(&str, &[u8])> = files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
        match made(&list) {
            Ok(disk) => prop_assert_eq!(read_back(&disk), files),
            Err(error) => prop_assert!(matches!(error, DiskError::Twice(_)), "{}", error),
        }
    }
}
