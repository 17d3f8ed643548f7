//! A block device as a disk. It has no names to tell its states by, so its content does: zeros at
//! its begin mean that it is empty, a mark there that a fill was begun. The begin is written last. Its end
//! has the record; after the device has grown that is looked for where the end may have been.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, fallocate};

use super::fill::{Content, Fill, PIECE_LEN, Progress, copy};
use super::{BLOCK, Found, Origin, Record, StoreError, StoredDisk, failed};

/// What a fill writes first, and a record begins with.
const FILL_MARK: &[u8; 16] = b"podvisor filling";
const RECORD_MARK: &[u8; 16] = b"podvisor origin\0";
/// How much of a device is looked at: boot records, partition tables and all common file systems have
/// something in it.
const HEAD_LEN: usize = 1 << 20;
/// What a device writes as a whole or not at all.
const SECTOR_LEN: usize = 512;
/// The end of a filled device that is kept from the guest, for the record.
const TAIL_LEN: u64 = 1 << 20;
/// The record's place is so far from the device's end.
const RECORD_LEN: usize = 4096;
/// Where a device that has grown may have ended: at multiples of the first, so far below its end. Volumes
/// are whole GiB as a rule, and a device without any record is looked through at every start.
const FORMER_ENDS: [(u64, u64); 2] = [(1 << 20, 1 << 30), (1 << 30, 8 << 40)];

/// The fill of an empty block device.
#[derive(Debug)]
pub struct BlockFill {
    device: File,
    device_len: u64,
    origin: Origin,
}

/// Looks at what is on a device.
pub(super) fn open(
    mut device: File,
    read_only: bool,
    origin: Option<Origin>,
) -> Result<Found, StoreError> {
    let looking = failed(BLOCK, "read");
    let device_len = device.seek(SeekFrom::End(0)).map_err(looking.clone())?;
    let mut head = vec![0; HEAD_LEN.min(usize::try_from(device_len).unwrap_or(HEAD_LEN))];
    device
        .read_exact_at(&mut head, 0)
        .map_err(looking.clone())?;
    let is_empty = head.starts_with(FILL_MARK) || head.iter().all(|byte| *byte == 0);
    if !is_empty {
        let record = find_record(&device, device_len, read_only)?;
        let tail = if record.is_some() { TAIL_LEN } else { 0 };
        return Ok(Found::Disk(StoredDisk {
            file: device,
            len: device_len - tail,
            read_only,
            record,
        }));
    }
    match origin {
        None => Err(StoreError::Empty { volume: BLOCK }),
        Some(_) if read_only => Err(StoreError::ReadOnly { volume: BLOCK }),
        Some(origin) => Ok(Found::Empty(Fill::Block(BlockFill {
            device,
            device_len,
            origin,
        }))),
    }
}

/// Where the record of a device lies; None on one that is too small to have one.
fn record_offset(device_len: u64) -> Option<u64> {
    device_len.checked_sub(TAIL_LEN)?;
    device_len.checked_sub(RECORD_LEN as u64)
}

/// The record of a device. That of one which has grown is noted at its new end.
fn find_record(
    device: &File,
    device_len: u64,
    read_only: bool,
) -> Result<Option<Record>, StoreError> {
    let looking = failed(BLOCK, "read");
    let found = read_record(device, device_len).map_err(looking.clone())?;
    let is_of_this = |record: &Record| record.device_len.is_none_or(|len| len == device_len);
    if let Some(record) = found.filter(is_of_this) {
        return Ok(Some(record));
    }
    let former = former_ends(device_len).find_map(|len| match read_record(device, len) {
        Ok(record) => record
            .filter(|record| record.device_len == Some(len))
            .map(Ok),
        Err(error) => Some(Err(error)),
    });
    let Some(mut record) = former.transpose().map_err(looking)? else {
        return Ok(None);
    };
    if !read_only {
        record.device_len = Some(device_len);
        let written = write_record(device, device_len, &record);
        let written = written.and_then(|()| device.sync_data());
        written.map_err(failed(BLOCK, "note the growth of"))?;
    }
    Ok(Some(record))
}

/// Lengths that a device of `device_len` may have had, the longest of each kind first.
fn former_ends(device_len: u64) -> impl Iterator<Item = u64> {
    FORMER_ENDS.into_iter().flat_map(move |(step, depth)| {
        let last = (device_len.saturating_sub(1) / step) * step;
        let ends = (0..depth / step).map_while(move |count| last.checked_sub(count * step));
        ends.take_while(|end| *end > 0)
    })
}

/// The record at the end of a device that is, or was, of this length.
fn read_record(device: &File, device_len: u64) -> io::Result<Option<Record>> {
    let Some(offset) = record_offset(device_len) else {
        return Ok(None);
    };
    let mut place = [0; RECORD_LEN];
    device.read_exact_at(&mut place, offset)?;
    let json = place.strip_prefix(RECORD_MARK).map(|json| {
        let end = json.iter().position(|byte| *byte == 0);
        json.get(..end.unwrap_or(json.len())).unwrap_or_default()
    });
    Ok(json.and_then(|json| serde_json::from_slice(json).ok()))
}

fn write_record(device: &File, device_len: u64, record: &Record) -> io::Result<()> {
    let Some(offset) = record_offset(device_len) else {
        return Ok(());
    };
    let mut place = [RECORD_MARK.as_slice(), &record.to_json()].concat();
    place.resize(RECORD_LEN, 0);
    device.write_all_at(&place, offset)
}

/// Writes a piece of a disk. As long as the device `zeroes` ranges by itself, it does so with pieces of zeros.
fn write_piece(device: &File, data: &[u8], offset: u64, zeroes: &mut bool) -> io::Result<()> {
    if *zeroes && data.iter().all(|byte| *byte == 0) {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        *zeroes = fallocate(device, flags, offset, data.len() as u64).is_ok();
        if *zeroes {
            return Ok(());
        }
    }
    device.write_all_at(data, offset)
}

impl BlockFill {
    pub(super) fn run(
        self,
        content: &mut dyn Content,
        progress: Progress<'_>,
    ) -> Result<StoredDisk, StoreError> {
        let (room, needed) = (self.device_len, content.disk_len());
        if needed > room {
            return Err(StoreError::TooSmall {
                volume: BLOCK,
                room,
                needed,
            });
        }
        let record = Record::new(self.origin.clone());
        let mut record = record.map_err(failed(BLOCK, "number the disk on"))?;
        record.device_len = Some(room);
        // A volume of exactly the disk's size has no room for a record.
        let has_record = needed + TAIL_LEN <= room;
        let written = self.write(content, has_record.then_some(&record), progress);
        written.map_err(failed(BLOCK, "fill"))?;
        Ok(StoredDisk {
            file: self.device,
            len: if has_record { room - TAIL_LEN } else { room },
            read_only: false,
            record: has_record.then_some(record),
        })
    }

    fn write(
        &self,
        content: &mut dyn Content,
        record: Option<&Record>,
        progress: Progress<'_>,
    ) -> io::Result<()> {
        let device = &self.device;
        let mut mark = [0; SECTOR_LEN];
        if let Some(place) = mark.get_mut(..FILL_MARK.len()) {
            place.copy_from_slice(FILL_MARK);
        }
        device.write_all_at(&mark, 0)?;
        device.sync_data()?;
        // What the device holds beyond its begin is unknown: zeros are written, too.
        let mut zeroes = true;
        copy(content, PIECE_LEN, true, progress, &mut |data, offset| {
            write_piece(device, data, offset, &mut zeroes)
        })?;
        if let Some(record) = record {
            write_record(device, self.device_len, record)?;
        }
        let head_len = HEAD_LEN.min(usize::try_from(content.disk_len()).map_err(io::Error::other)?);
        let mut head = vec![0; head_len];
        content.read_at(&mut head, 0)?;
        let (first, rest) = head.split_at(SECTOR_LEN.min(head.len()));
        device.write_all_at(rest, SECTOR_LEN as u64)?;
        device.sync_data()?;
        device.write_all_at(first, 0)?;
        device.sync_data()
    }
}

const _: () = assert!(PIECE_LEN == HEAD_LEN as u64);

#[cfg(test)]
mod tests {
    use super::super::fill::tests::Bytes;
    use super::*;

    fn origin() -> Origin {
        Origin {
            image: "debian".to_owned(),
            file: "debian.qcow2".to_owned(),
            file_len: 7,
            modified: 1,
        }
    }

    fn device(len: u64) -> File {
        let device = tempfile::tempfile().unwrap();
        device.set_len(len).unwrap();
        device
    }

    fn look(device: &File) -> Found {
        open(device.try_clone().unwrap(), false, Some(origin())).unwrap()
    }

    fn fill(device: &File, content: &mut Bytes) -> Result<StoredDisk, StoreError> {
        match look(device) {
            Found::Empty(fill) => fill.run(content, &mut |_, _| {}),
            Found::Disk(disk) => panic!("not empty: {disk:?}"),
        }
    }

    fn content(device: &File, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        device.read_exact_at(&mut data, 0).unwrap();
        data
    }

    #[test]
    fn an_empty_device_is_filled_once() {
        let (device, mut bytes) = (device(8 << 20), Bytes::new(3 << 20));
        // Rests of former use.
        device.write_all_at(&[7; 4096], (3 << 20) / 2).unwrap();
        let filled = fill(&device, &mut bytes).unwrap();
        assert_eq!(filled.len, 7 << 20);
        let Found::Disk(found) = look(&device) else {
            panic!("empty");
        };
        assert_eq!((found.len, found.record), (filled.len, filled.record));
        assert!(content(&device, 3 << 20) == bytes.data);
    }

    #[test]
    fn a_device_that_has_grown_is_the_same_disk() {
        let (device, mut bytes) = (device(8 << 20), Bytes::new(3 << 20));
        let filled = fill(&device, &mut bytes).unwrap();
        let generation = filled.record.unwrap().generation;
        for len in [8_u64 << 20, 11 << 20, 1 << 30, (3 << 30) + 4096] {
            device.set_len(len).unwrap();
            for read_only in [true, false, false] {
                let found = open(device.try_clone().unwrap(), read_only, None).unwrap();
                let Found::Disk(found) = found else {
                    panic!("empty");
                };
                assert_eq!(found.len, len - TAIL_LEN);
                assert_eq!(found.record.unwrap().generation, generation);
            }
        }
        assert!(content(&device, 3 << 20) == bytes.data);
    }

    #[test]
    fn a_record_of_another_device_is_none() {
        let (inner, mut bytes) = (device(4 << 20), Bytes::new(2 << 20));
        fill(&inner, &mut bytes).unwrap();
        // A device that somebody has filled otherwise, with that one as a part of its data.
        let outer = device(16 << 20);
        outer
            .write_all_at(&content(&inner, 4 << 20), 2 << 20)
            .unwrap();
        outer.write_all_at(b"somebody's", 0).unwrap();
        let Found::Disk(found) = look(&outer) else {
            panic!("empty");
        };
        assert_eq!((found.len, found.record), (16 << 20, None));
    }

    #[test]
    fn ends_that_a_device_may_have_had_are_below_its_own() {
        let ends: Vec<u64> = former_ends((3 << 20) + 1).collect();
        assert_eq!(ends, [3 << 20, 2 << 20, 1 << 20]);
        assert_eq!(former_ends(1 << 20).count(), 0);
        let ends: Vec<u64> = former_ends(5 << 30).collect();
        assert_eq!(ends.len(), 1024 + 4);
        assert_eq!(ends.last(), Some(&(1 << 30)));
        assert!(former_ends(1 << 60).count() <= 1024 + 8192);
    }

    #[test]
    fn an_interrupted_fill_is_done_again() {
        let (device, mut bytes) = (device(4 << 20), Bytes::new(3 << 20));
        bytes.broken_at = 2 << 20;
        assert!(matches!(
            fill(&device, &mut bytes),
            Err(StoreError::Io { .. })
        ));
        bytes.broken_at = u64::MAX;
        fill(&device, &mut bytes).unwrap();
        assert!(content(&device, 3 << 20) == bytes.data);
    }

    #[test]
    fn a_device_of_just_the_size_has_no_record() {
        let (device, mut bytes) = (device(3 << 20), Bytes::new(3 << 20));
        let filled = fill(&device, &mut bytes).unwrap();
        assert_eq!((filled.len, filled.record), (3 << 20, None));
        let Found::Disk(found) = look(&device) else {
            panic!("empty");
        };
        assert_eq!((found.len, found.record), (3 << 20, None));
    }

    #[test]
    fn a_small_device_is_refused_with_both_sizes() {
        let (device, mut bytes) = (device(2 << 20), Bytes::new(3 << 20));
        let error = fill(&device, &mut bytes).unwrap_err().to_string();
        assert!(
            error.contains("2097152") && error.contains("3145728"),
            "{error}"
        );
        assert!(content(&device, 4096).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_holds_data_is_left_alone() {
        let device = device(2 << 20);
        device.write_all_at(b"somebody's", 1 << 18).unwrap();
        assert!(matches!(
            look(&device),
            Found::Disk(StoredDisk { record: None, .. })
        ));
    }
}
