//! A disk beside a vector of bytes that it must be like, whatever is asked of both.

use std::collections::BTreeMap;

use crate::virtio::block::backend::{DiskBackend, DiskOperation, Iovecs};

/// The unit of offsets and lengths of requests.
const SECTOR: u64 = 512;

/// A byte that depends on its place.
pub fn byte_at(place: usize) -> u8 {
    let [low, ..] = (place % 251).to_le_bytes();
    low
}

/// Random numbers that repeat (xorshift64*).
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end.max(1)
    }
}

/// The disk and what it must contain.
pub struct Model {
    pub disk: Box<dyn DiskBackend>,
    pub bytes: Vec<u8>,
}

/// What was asked for with a tag.
enum Asked {
    Read(u64, Iovecs),
    Write(u64, Vec<u8>),
    Zeros(u64, u64),
    Discard(u64, u64),
    Flush,
}

impl Model {
    /// `disk`, which contains `bytes`.
    pub fn new(disk: Box<dyn DiskBackend>, bytes: Vec<u8>) -> Self {
        assert_eq!(disk.disk_len(), bytes.len() as u64);
        Self { disk, bytes }
    }

    /// Asks for one thing and returns whether it was done.
    pub fn ask(&mut self, operation: DiskOperation) -> std::io::Result<()> {
        self.disk.start(0, operation);
        self.finish(1).remove(&0).unwrap()
    }

    /// Waits for `count` operations.
    fn finish(&mut self, count: usize) -> BTreeMap<usize, std::io::Result<()>> {
        let mut results = BTreeMap::new();
        let mut finished = Vec::new();
        while results.len() < count {
            self.disk.submit();
            self.disk.wait().unwrap();
            self.disk.take_completions(&mut finished);
            for completion in finished.drain(..) {
                assert!(results.insert(completion.tag, completion.result).is_none());
            }
        }
        results
    }

    /// Reads a range.
    pub fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let buffers = Iovecs::zeros(usize::try_from(len).unwrap());
        let memory = buffers.part(0, len);
        self.ask(DiskOperation::Read { offset, buffers }).unwrap();
        memory.bytes()
    }

    /// Writes at `offset`, here and there.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut buffers = Iovecs::zeros(data.len());
        buffers.copy_in(data);
        self.ask(DiskOperation::Write { offset, buffers })?;
        let start = usize::try_from(offset).unwrap();
        self.bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    /// Compares all bytes.
    pub fn check(&mut self) {
        let (mut at, len) = (0, self.bytes.len());
        while at < len {
            let now = (len - at).min(1 << 20);
            let read = self.read(at as u64, now as u64);
            if let Some(wrong) = (0..now).find(|&i| read[i] != self.bytes[at + i]) {
                let (found, wanted) = (read[wrong], self.bytes[at + wrong]);
                panic!("byte {:#x} is {found:#x}, not {wanted:#x}", at + wrong);
            }
            at += now;
        }
    }

    /// Ranges that do not touch each other, whole sectors each.
    fn ranges(&self, random: &mut Random) -> Vec<(u64, u64)> {
        let sectors = self.bytes.len() as u64 / SECTOR;
        let count = 1 + random.below(12);
        let mut cuts: Vec<u64> = (0..2 * count).map(|_| random.below(sectors + 1)).collect();
        // Most requests are short and many are neighbours.
        let near = random.below(sectors);
        let some = cuts.len() / 2;
        for cut in cuts.iter_mut().take(some) {
            *cut = (near + random.below(40)).min(sectors);
        }
        cuts.sort_unstable();
        let (pairs, _) = cuts.as_chunks::<2>();
        let ranges = pairs.iter().filter(|[start, end]| start < end);
        ranges
            .map(|[start, end]| (start * SECTOR, (end - start) * SECTOR))
            .collect()
    }

    /// Asks for several things at once, in any order, and compares what is read.
    pub fn step(&mut self, random: &mut Random, discards: bool) {
        let mut asked: Vec<Asked> = Vec::new();
        for (offset, len) in self.ranges(random) {
            asked.push(match random.below(10) {
                0..3 => Asked::Read(offset, Iovecs::zeros(usize::try_from(len).unwrap())),
                3..8 => {
                    let byte = u8::try_from(1 + random.below(255)).unwrap();
                    Asked::Write(offset, vec![byte; usize::try_from(len).unwrap()])
                }
                8 if discards => Asked::Discard(offset, len),
                _ => Asked::Zeros(offset, len),
            });
        }
        if random.below(4) == 0 {
            asked.push(Asked::Flush);
        }
        for index in (1..asked.len()).rev() {
            let other = usize::try_from(random.below(index as u64 + 1)).unwrap();
            asked.swap(index, other);
        }
        asked.truncate(self.disk.max_in_flight());
        for (tag, asked) in asked.iter().enumerate() {
            self.disk.start(tag, operation(asked, random));
        }
        for (tag, result) in self.finish(asked.len()) {
            result.unwrap_or_else(|error| panic!("operation {tag} failed: {error:?}"));
        }
        for asked in asked {
            self.settle(asked);
        }
    }

    fn settle(&mut self, asked: Asked) {
        let place = |offset: u64, len: u64| {
            usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
        };
        match asked {
            Asked::Read(offset, memory) => {
                let wanted = &self.bytes[place(offset, memory.len())];
                assert!(memory.bytes() == wanted, "read at {offset:#x}");
            }
            Asked::Write(offset, data) => {
                self.bytes[place(offset, data.len() as u64)].copy_from_slice(&data);
            }
            Asked::Zeros(offset, len) => self.bytes[place(offset, len)].fill(0),
            Asked::Discard(offset, len) => {
                // What was discarded is zero or as it was.
                let now = self.read(offset, len);
                let before = &mut self.bytes[place(offset, len)];
                for (before, now) in before.iter_mut().zip(now) {
                    assert!(now == 0 || now == *before, "discard at {offset:#x}");
                    *before = now;
                }
            }
            Asked::Flush => {}
        }
    }
}

fn operation(asked: &Asked, random: &mut Random) -> DiskOperation {
    match asked {
        Asked::Read(offset, memory) => DiskOperation::Read {
            offset: *offset,
            buffers: memory.part(0, memory.len()),
        },
        Asked::Write(offset, data) => {
            // Two vectors, as a driver might have them.
            let cut = usize::try_from(random.below(data.len() as u64)).unwrap();
            let mut buffers = Iovecs::zeros(cut);
            buffers.append(Iovecs::zeros(data.len() - cut));
            buffers.copy_in(data);
            DiskOperation::Write {
                offset: *offset,
                buffers,
            }
        }
        Asked::Zeros(offset, len) => DiskOperation::WriteZeroes {
            offset: *offset,
            len: *len,
            unmap: true,
        },
        Asked::Discard(offset, len) => DiskOperation::Discard {
            offset: *offset,
            len: *len,
        },
        Asked::Flush => DiskOperation::Flush,
    }
}
