//! The block device with a driver in front of it, over both ways to a file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Completion, DiskOperation};
use super::image::{BackingFiles, CacheMode, ImageFormat, ImageOptions, ImageSource};
use super::raw::{RawDisk, len_of};
use super::transfer::DiskFile;
use super::*;
use crate::virtio::testing::{Buffer, Completion as Finished, TestDriver};

mod options;

const DISK_LEN: usize = 1 << 20;
const EVENT_IDX: u64 = 1 << 29;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

type Open = fn(File) -> Box<dyn DiskBackend>;

fn both_ways() -> [Open; 2] {
    [open_raw, open_plain]
}

fn open_raw(file: File) -> Box<dyn DiskBackend> {
    let source = ImageSource {
        file,
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    image::open(source, ImageOptions::default()).unwrap()
}

/// The disk in `file` as on a host without `io_uring`.
fn open_plain(file: File) -> Box<dyn DiskBackend> {
    let len = len_of(&file).unwrap();
    let file = DiskFile::new(file, CacheMode::Writeback).unwrap();
    let transfers = transfer::open_plain(vec![file]).unwrap();
    Box::new(RawDisk::new(transfers, len, CacheMode::Writeback))
}

/// An image whose bytes are the low bytes of their sector numbers plus one.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..DISK_LEN / 512 {
        file.write_all(&[u8::try_from(sector % 255).unwrap() + 1; 512])
            .unwrap();
    }
    file
}

struct Fixture {
    block: Block,
    driver: TestDriver,
    file: File,
}

impl Fixture {
    fn with(open: Open, config: BlockConfig) -> Self {
        let file = image();
        let backend = open(file.try_clone().unwrap());
        let thread = EventLoop::spawn("test-disk", Box::new(|| Ok(()))).unwrap();
        let mut block = Block::new(config, backend, thread).unwrap();
        let driver = TestDriver::new(8 << 20, block.queue_max_sizes());
        driver.start(&mut block, EVENT_IDX);
        Self {
            block,
            driver,
            file,
        }
    }

    fn new(open: Open) -> Self {
        Self::with(open, config(false))
    }

    /// Sends a request and returns its data and status.
    fn ask(&mut self, kind: u32, sector: u64, output: &[u8], input_len: u32) -> (Vec<u8>, u8) {
        let finished = self.finish(kind, sector, output, input_len);
        let (status, data) = finished.writable.split_last().unwrap();
        (data.to_vec(), *status)
    }

    fn finish(&mut self, kind: u32, sector: u64, output: &[u8], input_len: u32) -> Finished {
        self.driver
            .request(0, &header(kind, sector, output), input_len + 1);
        self.driver.complete(0)
    }

    fn byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }
}

fn config(read_only: bool) -> BlockConfig {
    BlockConfig {
        read_only,
        serial: BlockSerial::try_from("disk-7").unwrap(),
        ..BlockConfig::default()
    }
}

fn header(kind: u32, sector: u64, output: &[u8]) -> Vec<u8> {
    let header = kind
        .to_le_bytes()
        .into_iter()
        .chain([0; 4])
        .chain(sector.to_le_bytes());
    header.chain(output.iter().copied()).collect()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let segment = sector
        .to_le_bytes()
        .into_iter()
        .chain(sectors.to_le_bytes());
    segment.chain(flags.to_le_bytes()).collect()
}

#[test]
fn sectors_are_read_and_written_where_they_belong() {
    for open in both_ways() {
        let mut fixture = Fixture::new(open);
        let read = fixture.finish(IN, 3, &[], 1024);
        assert_eq!(read.len, 1025);
        assert_eq!(
            read.writable,
            [[4; 512].as_slice(), &[5; 512], &[0]].concat()
        );
        assert_eq!(fixture.ask(OUT, 9, &[0xaa; 1024], 0), (vec![], 0));
        assert_eq!(
            [4607, 4608, 5631, 5632].map(|at| fixture.byte(at)),
            [9, 0xaa, 0xaa, 12]
        );
        assert_eq!(fixture.ask(FLUSH, 0, &[], 0), (vec![], 0));
        fixture
            .driver
            .interrupt
            .wait_until(|seen| seen.queues.contains_key(&0));
    }
}

#[test]
fn scattered_and_indirect_buffers_are_one_request() {
    for open in both_ways() {
        let mut fixture = Fixture::new(open);
        let driver = &mut fixture.driver;
        let table = driver.allocate(1024, 16);
        let at = driver.allocate(4096, 16);
        driver
            .memory
            .write_slice(&header(IN, 1, &[]), GuestAddress(at))
            .unwrap();
        let buffer = |offset, len, writable| Buffer {
            address: at + offset,
            len,
            writable,
        };
        let buffers = [
            buffer(0, 5, false),
            buffer(5, 11, false),
            buffer(100, 300, true),
            buffer(1000, 200, true),
            buffer(2000, 13, true),
        ];
        driver.queues[0].add_indirect(&buffers, table);
        driver.queues[0].kick();
        assert_eq!(driver.complete(0).len, 513);
        let byte = |offset| {
            driver
                .memory
                .read_obj::<u8>(GuestAddress(at + offset))
                .unwrap()
        };
        assert_eq!([99, 100, 399, 400].map(byte), [0, 2, 2, 0]);
        assert_eq!(
            [1000, 1199, 1200, 2000, 2011, 2012].map(byte),
            [2, 2, 0, 2, 2, 0]
        );
    }
}

#[test]
fn requests_beyond_the_disk_or_of_odd_length_fail_and_change_nothing() {
    for open in both_ways() {
        let mut fixture = Fixture::new(open);
        let last = DISK_LEN as u64 / 512 - 1;
        assert_eq!(fixture.ask(IN, last, &[], 512).1, 0);
        for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (0, 100)] {
            assert_eq!(
                fixture.ask(IN, sector, &[], len).1,
                1,
                "read {sector}+{len}"
            );
            let data = vec![0; len as usize];
            assert_eq!(
                fixture.ask(OUT, sector, &data, 0).1,
                1,
                "write {sector}+{len}"
            );
        }
        assert_eq!(fixture.ask(77, 0, &[], 512).1, 2, "an unknown type");
        assert_eq!(fixture.byte(0), 1);
        assert_eq!(fixture.block.metrics().failed.load(Ordering::Relaxed), 9);
    }
}

#[test]
fn a_read_only_disk_refuses_all_that_writes() {
    let mut fixture = Fixture::with(both_ways()[0], config(true));
    assert_eq!(fixture.block.device_features() >> feature::READ_ONLY & 1, 1);
    assert_eq!(fixture.ask(OUT, 0, &[9; 512], 0).1, 1);
    assert_eq!(fixture.ask(DISCARD, 0, &segment(0, 8, 0), 0).1, 1);
    assert_eq!(fixture.ask(WRITE_ZEROES, 0, &segment(0, 8, 0), 0).1, 1);
    assert_eq!(fixture.ask(IN, 0, &[], 512), (vec![1; 512], 0));
}

#[test]
fn the_serial_number_is_padded_with_zeros() {
    let mut fixture = Fixture::new(both_ways()[0]);
    let (id, status) = fixture.ask(GET_ID, 0, &[], 20);
    assert_eq!(
        (id.as_slice(), status),
        (b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(), 0)
    );
    assert_eq!(fixture.ask(GET_ID, 0, &[], 19).1, 1);
    assert!(BlockSerial::try_from("twenty-one characters").is_err());
    assert!(BlockSerial::try_from("new\nline").is_err());
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros_or_are_said_to_be_unsupported() {
    for open in both_ways() {
        let mut fixture = Fixture::new(open);
        let blocks = fixture.file.metadata().unwrap().blocks();
        assert_eq!(fixture.ask(DISCARD, 0, &segment(8, 64, 0), 0).1, 0);
        assert_eq!((fixture.byte(8 * 512), fixture.byte(72 * 512)), (0, 73));
        assert!(fixture.file.metadata().unwrap().blocks() < blocks);
        assert_eq!(fixture.ask(WRITE_ZEROES, 0, &segment(128, 8, 1), 0).1, 0);
        assert_eq!(fixture.byte(128 * 512), 0);
        // File systems without FALLOC_FL_ZERO_RANGE say so.
        let (_, status) = fixture.ask(WRITE_ZEROES, 0, &segment(256, 8, 0), 0);
        assert!((status, fixture.byte(256 * 512)) == (0, 0) || status == 2);
        for (segment, status) in [
            (segment(0, 8, 2), 2),
            (segment(2048, 1, 0), 1),
            (segment(u64::MAX, 1, 0), 1),
            (segment(0, 8, 0)[..12].to_vec(), 1),
        ] {
            assert_eq!(fixture.ask(DISCARD, 0, &segment, 0).1, status);
            assert_eq!(fixture.ask(WRITE_ZEROES, 0, &segment, 0).1, status);
        }
    }
}

#[test]
fn chains_without_header_or_status_are_used_up_and_the_queue_goes_on() {
    let mut fixture = Fixture::new(both_ways()[0]);
    let driver = &mut fixture.driver;
    driver.request(0, b"short", 513);
    assert_eq!(driver.complete(0).len, 0);
    driver.request(0, &header(IN, 0, &[]), 0);
    assert_eq!(driver.complete(0).len, 0);
    driver.queues[0].add(&[Buffer {
        address: u64::MAX - 7,
        len: 16,
        writable: false,
    }]);
    driver.queues[0].kick();
    assert_eq!(driver.complete(0).len, 0);
    assert_eq!(fixture.block.metrics().malformed.load(Ordering::Relaxed), 3);
    assert_eq!(fixture.ask(IN, 0, &[], 512).1, 0);
}

#[test]
fn a_broken_ring_needs_a_reset_after_which_the_disk_works_again() {
    let mut fixture = Fixture::new(both_ways()[0]);
    fixture.driver.queues[0].set_avail_index(5000);
    fixture.driver.queues[0].kick();
    fixture
        .driver
        .interrupt
        .wait_until(|seen| !seen.needs_reset.is_empty());
    assert_eq!(fixture.block.deactivate().len(), 1);
    fixture.driver = TestDriver::new(8 << 20, fixture.block.queue_max_sizes());
    fixture.driver.start(&mut fixture.block, 0);
    assert_eq!(fixture.ask(IN, 0, &[], 512).1, 0);
}

#[test]
fn many_requests_of_several_queues_are_all_answered() {
    for open in both_ways() {
        let config = BlockConfig {
            queues: 2,
            ..config(false)
        };
        let mut fixture = Fixture::with(open, config);
        let mut wanted = [Vec::new(), Vec::new()];
        for sector in 0..200_u64 {
            for (queue, wanted) in wanted.iter_mut().enumerate() {
                let header = header(IN, sector + queue as u64, &[]);
                if fixture.driver.queues[queue].has_room(2) {
                    let head = fixture.driver.request(queue, &header, 513);
                    wanted.push((
                        head,
                        u8::try_from((sector + queue as u64) % 255).unwrap() + 1,
                    ));
                }
            }
        }
        for (queue, mut wanted) in wanted.into_iter().enumerate() {
            assert!(wanted.len() >= 128);
            while !wanted.is_empty() {
                let finished = fixture.driver.complete(queue);
                let position = wanted
                    .iter()
                    .position(|&(head, _)| head == finished.head)
                    .unwrap();
                let (_, byte) = wanted.remove(position);
                assert_eq!(finished.writable[..512], [byte; 512]);
            }
        }
    }
}

#[test]
fn a_file_cut_short_fails_the_read() {
    for open in both_ways() {
        let mut fixture = Fixture::new(open);
        fixture.file.set_len(512 + 100).unwrap();
        assert_eq!(fixture.ask(IN, 1, &[], 1024).1, 1);
        assert_eq!(fixture.ask(IN, 0, &[], 512).1, 0);
    }
}

#[test]
fn the_configuration_tells_size_limits_and_queues() {
    let config = BlockConfig {
        queues: 3,
        ..config(false)
    };
    let fixture = Fixture::with(both_ways()[0], config);
    let mut space = [0xff; 64];
    fixture.block.read_config(0, &mut space);
    assert_eq!(space[..8], 2048_u64.to_le_bytes());
    assert_eq!((space[12], space[34]), (254, 3));
    assert_eq!(space[60..], [0; 4]);
    assert_eq!(
        fixture.block.device_features() >> feature::MULTI_QUEUE & 1,
        1
    );
}

/// A disk whose operations stay in flight until it is waited for.
struct SlowDisk {
    event: EventFd,
    flights: Vec<Completion>,
    waited: bool,
    started: mpsc::Sender<usize>,
}

impl DiskBackend for SlowDisk {
    fn disk_len(&self) -> u64 {
        DISK_LEN as u64
    }
    fn max_in_flight(&self) -> usize {
        2
    }
    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    fn start(&mut self, tag: usize, _: DiskOperation) {
        self.flights.push(Completion {
            tag,
            result: Ok(()),
        });
        self.started.send(self.flights.len()).unwrap();
    }
    fn submit(&mut self) {}
    fn take_completions(&mut self, finished: &mut Vec<Completion>) {
        if std::mem::take(&mut self.waited) {
            finished.append(&mut self.flights);
        }
    }
    fn wait(&mut self) -> io::Result<()> {
        self.waited = true;
        Ok(())
    }
}

fn slow_disk() -> (Block, TestDriver, mpsc::Receiver<usize>) {
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (started, starts) = mpsc::channel();
    let disk = SlowDisk {
        event,
        flights: Vec::new(),
        waited: false,
        started,
    };
    let thread = EventLoop::spawn("test-slow", Box::new(|| Ok(()))).unwrap();
    let block = Block::new(config(false), Box::new(disk), thread).unwrap();
    let driver = TestDriver::new(1 << 20, block.queue_max_sizes());
    (block, driver, starts)
}

#[test]
fn a_ring_broken_under_an_operation_does_not_keep_the_disk_from_stopping() {
    let (mut block, mut driver, starts) = slow_disk();
    driver.start(&mut block, 0);
    driver.request(0, &header(IN, 0, &[]), 513);
    assert_eq!(starts.recv(), Ok(1));
    driver.queues[0].publish(QUEUE_SIZE);
    driver.queues[0].kick();
    driver
        .interrupt
        .wait_until(|seen| !seen.needs_reset.is_empty());
    assert_eq!(block.deactivate().len(), 1);
    assert_eq!(driver.complete(0).len, 513);
}

#[test]
fn draining_finishes_what_is_in_flight_and_leaves_the_rest_in_the_queue() {
    let (mut block, mut driver, starts) = slow_disk();
    for sector in 0..3 {
        driver.request(0, &header(IN, sector, &[]), 513);
    }
    driver.start(&mut block, 0);
    assert_eq!((starts.recv(), starts.recv()), (Ok(1), Ok(2)));
    let queues = block.deactivate();
    assert!(starts.try_recv().is_err(), "two may be in flight");
    assert_eq!(std::iter::from_fn(|| driver.try_complete(0)).count(), 2);

    let activation = Activation {
        queues,
        ..driver.activation(0)
    };
    driver.queues[0].kick();
    block.activate(activation).unwrap();
    assert_eq!(starts.recv(), Ok(1));
    block.deactivate();
    assert_eq!(std::iter::from_fn(|| driver.try_complete(0)).count(), 1);
}
