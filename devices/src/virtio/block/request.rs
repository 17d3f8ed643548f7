//! Block requests as the driver lays them out (virtio 1.2, 5.2.6).

use super::backend::{DiskOperation, Iovecs};
use crate::GuestMemory;
use crate::virtio::chain::{Buffers, ChainError, Parts};

/// The unit of addresses and lengths, whatever the disk's own blocks are.
pub const SECTOR_LEN: u64 = 512;
/// Length of a disk's serial number.
pub const ID_LEN: usize = 20;

const HEADER_LEN: usize = 16;
const SEGMENT_LEN: usize = 16;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const FLAG_UNMAP: u32 = 1;

/// What the device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The disk failed, or the request is none it could do.
    IoError = 1,
    /// The disk does not do such requests.
    Unsupported = 2,
}

/// What of a disk decides about requests.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Length in bytes.
    pub len: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a request asks for.
#[derive(Debug)]
pub enum Action {
    /// An operation for the backend.
    Start(DiskOperation),
    /// The disk's serial number, written there.
    Identify(Buffers),
    /// Nothing but this answer.
    Answer(Status),
}

/// A request taken apart.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// Where the one byte of the status goes.
    pub status: Buffers,
    /// How many bytes are written before the status when all goes well.
    pub data_len: u32,
}

impl Request {
    /// Reads a request. One that can be answered is no error, however wrong it is.
    ///
    /// # Errors
    /// [`ChainError`] when there is no header or no room for a status.
    pub fn parse(parts: Parts, disk: Disk, memory: &GuestMemory) -> Result<Self, ChainError> {
        let Parts { readable, writable } = parts;
        let data_len = writable.len().checked_sub(1).ok_or(ChainError::TooShort)?;
        let (input, status) = writable.split_at(data_len)?;
        let (header, output) = readable.split_at(HEADER_LEN as u64)?;
        let mut bytes = [0; HEADER_LEN];
        header.read(memory, &mut bytes)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = bytes;
        let sector = u64::from_le_bytes(sector);
        let written = u32::try_from(data_len).map_err(|_| ChainError::TooLong)?;
        let (action, data_len) = match u32::from_le_bytes([t0, t1, t2, t3]) {
            TYPE_IN => (read(disk, sector, &input, memory), written),
            TYPE_OUT => (write(disk, sector, &output, memory), 0),
            TYPE_FLUSH => (Action::Start(DiskOperation::Flush), 0),
            TYPE_GET_ID if input.len() >= ID_LEN as u64 => {
                (Action::Identify(input), u32::try_from(ID_LEN).unwrap_or(0))
            }
            TYPE_GET_ID => (Action::Answer(Status::IoError), 0),
            TYPE_DISCARD => (free(disk, &output, memory, false), 0),
            TYPE_WRITE_ZEROES => (free(disk, &output, memory, true), 0),
            _ => (Action::Answer(Status::Unsupported), 0),
        };
        Ok(Self {
            action,
            status,
            data_len,
        })
    }
}

fn read(disk: Disk, sector: u64, input: &Buffers, memory: &GuestMemory) -> Action {
    match (range(disk, sector, input.len()), Iovecs::new(memory, input)) {
        (Some(_), _) if input.is_empty() => Action::Answer(Status::Ok),
        (Some(offset), Ok(buffers)) => Action::Start(DiskOperation::Read { offset, buffers }),
        _ => Action::Answer(Status::IoError),
    }
}

fn write(disk: Disk, sector: u64, output: &Buffers, memory: &GuestMemory) -> Action {
    match (
        range(disk, sector, output.len()),
        Iovecs::new(memory, output),
    ) {
        _ if disk.read_only => Action::Answer(Status::IoError),
        (Some(_), _) if output.is_empty() => Action::Answer(Status::Ok),
        (Some(offset), Ok(buffers)) => Action::Start(DiskOperation::Write { offset, buffers }),
        _ => Action::Answer(Status::IoError),
    }
}

/// Discard and write-zeroes. The device says that it takes one segment a request.
fn free(disk: Disk, output: &Buffers, memory: &GuestMemory, zeroes: bool) -> Action {
    let mut segment = [0; SEGMENT_LEN];
    if disk.read_only
        || output.len() != SEGMENT_LEN as u64
        || output.read(memory, &mut segment).is_err()
    {
        return Action::Answer(Status::IoError);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = segment;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR_LEN;
    let flags = u32::from_le_bytes(flags);
    let known = if zeroes { FLAG_UNMAP } else { 0 };
    if flags & !known != 0 {
        return Action::Answer(Status::Unsupported);
    }
    match range(disk, sector, len) {
        None => Action::Answer(Status::IoError),
        Some(_) if len == 0 => Action::Answer(Status::Ok),
        Some(offset) if zeroes => {
            let unmap = flags & FLAG_UNMAP != 0;
            Action::Start(DiskOperation::WriteZeroes { offset, len, unmap })
        }
        Some(offset) => Action::Start(DiskOperation::Discard { offset, len }),
    }
}

/// The offset in bytes of a range of whole sectors that lies on the disk.
fn range(disk: Disk, sector: u64, len: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_LEN)?;
    let end = offset.checked_add(len)?;
    let whole_sectors = disk.len - disk.len % SECTOR_LEN;
    (len.is_multiple_of(SECTOR_LEN) && end <= whole_sectors).then_some(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueT as _;

    use super::*;
    use crate::virtio::testing::TestDriver;

    #[test]
    fn only_whole_sectors_on_the_disk_are_a_range() {
        let disk = Disk {
            len: 10 * SECTOR_LEN + 100,
            read_only: false,
        };
        assert_eq!(range(disk, 0, 10 * SECTOR_LEN), Some(0));
        assert_eq!(range(disk, 9, SECTOR_LEN), Some(9 * SECTOR_LEN));
        assert_eq!(range(disk, 10, 0), Some(10 * SECTOR_LEN));
        for (sector, len) in [
            (10, SECTOR_LEN),
            (0, 100),
            (u64::MAX, SECTOR_LEN),
            (1 << 55, 512),
        ] {
            assert_eq!(range(disk, sector, len), None, "{sector}+{len}");
        }
    }

    /// Where an operation begins and ends, and whether it changes the disk.
    fn reach(operation: &DiskOperation) -> (u64, u64, bool) {
        let (offset, len, writes) = match operation {
            DiskOperation::Read { offset, buffers } => (*offset, buffers.len(), false),
            DiskOperation::Write { offset, buffers } => (*offset, buffers.len(), true),
            DiskOperation::Flush => (0, 0, false),
            DiskOperation::Discard { offset, len }
            | DiskOperation::WriteZeroes { offset, len, .. } => (*offset, *len, true),
        };
        (offset, offset.checked_add(len).unwrap(), writes)
    }

    proptest! {
        #[test]
        fn no_request_leaves_the_disk_or_writes_to_a_read_only_one(
            kind in prop_oneof![0_u32..16, any::<u32>()],
            sector in prop_oneof![0_u64..40, any::<u64>()],
            output in prop::collection::vec(any::<u8>(), 0..40),
            sectors in 0_usize..4,
            input_len in 0_u32..1100,
            read_only: bool,
        ) {
            let mut driver = TestDriver::new(1 << 16, &[8]);
            let header = kind.to_le_bytes().into_iter().chain([0; 4]).chain(sector.to_le_bytes());
            let readable: Vec<u8> = header.chain(output).chain(vec![0; 512 * sectors]).collect();
            driver.request(0, &readable, input_len);
            let mut queue = driver.queues[0].handle(0, false).queue;
            let chain = queue.pop_descriptor_chain(driver.memory.as_ref()).unwrap();
            let parts = Parts::of(chain, 8).unwrap();
            let disk = Disk { len: 32 * SECTOR_LEN, read_only };
            match Request::parse(parts, disk, &driver.memory) {
                Ok(request) => {
                    prop_assert_eq!(request.status.len(), 1);
                    prop_assert!(request.data_len < input_len);
                    if let Action::Start(operation) = request.action {
                        let (start, end, writes) = reach(&operation);
                        prop_assert!(start <= end && end <= disk.len);
                        prop_assert!(!(writes && read_only));
                    }
                }
                Err(_) => prop_assert_eq!(input_len, 0),
            }
        }

        #[test]
        fn a_range_never_leaves_the_disk(disk_len: u64, sector: u64, len: u64) {
            let disk = Disk { len: disk_len, read_only: false };
            if let Some(offset) = range(disk, sector, len) {
                prop_assert!(offset.checked_add(len).unwrap() <= disk_len);
            }
        }
    }
}
