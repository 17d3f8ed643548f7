//! The device driven through its queues, as a guest's kernel does and as it should not.

mod linux_client;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, FsOptions, InHeader, InitIn, InitOut, Opcode, OpenIn, OpenOut, OutHeader,
    ROOT_ID, ReadIn, WriteIn,
};
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::ByteValued;

use super::*;
use crate::virtio::testing::{RawDescriptor, TestDriver};
use crate::virtio::{Reset, VirtioDevice};

const HIGH_PRIORITY: usize = 0;
const REQUESTS: usize = 1;
const EVENT_IDX: u64 = 1 << 29;
/// `FOPEN_NOFLUSH` and `FOPEN_KEEP_CACHE`.
const CACHED: u32 = 1 << 5 | 1 << 1;

/// A guest with a mounted file system of one export, "data".
struct Guest {
    driver: TestDriver,
    device: VirtioFs,
    directory: TempDir,
    exports: Exports,
    unique: u64,
}

impl Guest {
    fn new(driver_features: u64) -> Self {
        let exports = Exports::new().unwrap();
        // In memory: some of these tests have the file system synced again and again.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = ExportOptions {
            writes: Writes::Everything,
            cache: CachePolicy::Always,
        };
        let source = OwnedFd::from(File::open(directory.path()).unwrap());
        exports.add("data", source, options).unwrap();
        let config = FsConfig::new(FsTag::try_from("pod").unwrap());
        let nothing: ThreadStart = Arc::new(|| Ok(()));
        let mut device = VirtioFs::new(config, &exports, &nothing).unwrap();
        let sizes: Vec<u16> = device.queue_max_sizes().to_vec();
        let driver = TestDriver::new(64 << 20, &sizes);
        driver.start(&mut device, driver_features);
        Self {
            driver,
            device,
            directory,
            exports,
            unique: 0,
        }
    }

    /// The bytes of a request with correct lengths.
    fn message(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]]) -> Vec<u8> {
        self.unique += 2;
        let len = size_of::<InHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode,
            unique: self.unique,
            nodeid,
            uid: 1000,
            gid: 1000,
            pid: 1,
            padding: 0,
        };
        [header.as_slice(), &body.concat()].concat()
    }

    /// Sends a request and returns the answer's body, or the error's number.
    fn call(&mut self, opcode: Opcode, nodeid: u64, body: &[&[u8]], room: u32) -> Answer {
        self.call_number(opcode as u32, nodeid, body, room)
    }

    fn call_number(&mut self, opcode: u32, nodeid: u64, body: &[&[u8]], room: u32) -> Answer {
        let message = self.message(opcode, nodeid, body);
        let head = self.driver.request(REQUESTS, &message, 16 + room);
        let completion = self.driver.complete(REQUESTS);
        assert_eq!(completion.head, head);
        let header = *OutHeader::from_slice(&completion.writable[..16]).unwrap();
        assert_eq!(header.len, completion.len);
        assert_eq!(header.unique, self.unique);
        if header.error != 0 {
            return Err(-header.error);
        }
        let len = usize::try_from(header.len).unwrap();
        Ok(completion.writable[16..len].to_vec())
    }

    fn mount(&mut self) -> InitOut {
        let arguments = InitIn {
            major: 7,
            minor: 38,
            max_readahead: 1 << 17,
            flags: u32::MAX,
        };
        let more = [0_u8; 48];
        let answer = self.call(Opcode::Init, 0, &[arguments.as_slice(), &more], 64);
        *InitOut::from_slice(&answer.unwrap()).unwrap()
    }

    fn look_up(&mut self, parent: u64, name: &[u8]) -> EntryOut {
        let answer = self.call(Opcode::Lookup, parent, &[name, b"\0"], 128);
        *EntryOut::from_slice(&answer.unwrap()).unwrap()
    }

    fn root(&mut self) -> u64 {
        self.look_up(ROOT_ID, b"data").nodeid
    }

    fn open(&mut self, nodeid: u64) -> u64 {
        let arguments = OpenIn {
            flags: 0,
            fuse_flags: 0,
        };
        let answer = self.call(Opcode::Open, nodeid, &[arguments.as_slice()], 16);
        let opened = *OpenOut::from_slice(&answer.unwrap()).unwrap();
        assert_eq!(opened.open_flags, CACHED);
        opened.fh
    }

    fn read(&mut self, nodeid: u64, fh: u64, size: u32) -> Answer {
        let arguments = ReadIn {
            fh,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, nodeid, &[arguments.as_slice()], size)
    }
}

/// The body of an answer, or the error's number.
type Answer = Result<Vec<u8>, i32>;

#[test]
fn the_configuration_is_the_tag_and_the_number_of_request_queues() {
    let guest = Guest::new(0);
    let mut config = [0xff_u8; 44];
    guest.device.read_config(0, &mut config);
    assert_eq!(&config[..4], b"pod\0");
    assert_eq!(config[4..36], [0; 32]);
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    guest.device.read_config(36, &mut config[..4]);
    assert_eq!(config[..4], [1, 0, 0, 0]);
    guest.device.read_config(u64::MAX, &mut config[..4]);
    assert_eq!(config[..4], [0; 4]);
}

#[test]
fn a_mount_negotiates_what_the_guest_needs_and_no_locks() {
    let mut guest = Guest::new(0);
    let answer = guest.mount();
    let flags = u64::from(answer.flags);
    let options = FsOptions::from_bits_truncate(flags);
    assert!(options.contains(FsOptions::PARALLEL_DIROPS | FsOptions::HANDLE_KILLPRIV_V2));
    assert!(
        !options.intersects(
            FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS | FsOptions::WRITEBACK_CACHE
        )
    );
    assert_eq!(answer.max_write, 1 << 20);
    assert_eq!(answer.max_pages, 256);
}

#[test]
fn a_file_is_created_written_and_read() {
    for features in [0, EVENT_IDX] {
        let mut guest = Guest::new(features);
        guest.mount();
        let root = guest.root();
        let arguments = CreateIn {
            flags: 2,
            mode: 0o100_644,
            ..CreateIn::default()
        };
        let body: [&[u8]; 2] = [arguments.as_slice(), b"file\0"];
        let created = guest.call(Opcode::Create, root, &body, 144).unwrap();
        let entry = *EntryOut::from_slice(&created[..128]).unwrap();
        let opened = *OpenOut::from_slice(&created[128..]).unwrap();
        let content = vec![7_u8; 1 << 20];
        let arguments = WriteIn {
            fh: opened.fh,
            size: 1 << 20,
            ..WriteIn::default()
        };
        let body: [&[u8]; 2] = [arguments.as_slice(), &content];
        let written = guest.call(Opcode::Write, entry.nodeid, &body, 8).unwrap();
        assert_eq!(written[..4], (1_u32 << 20).to_le_bytes());
        let read = guest.read(entry.nodeid, opened.fh, 1 << 20).unwrap();
        assert_eq!(read, content);
        assert_eq!(
            std::fs::read(guest.directory.path().join("file")).unwrap(),
            content
        );
    }
}

#[test]
fn a_read_fills_no_more_than_its_buffer_whatever_it_says() {
    let mut guest = Guest::new(0);
    std::fs::write(guest.directory.path().join("file"), [1; 8192]).unwrap();
    guest.mount();
    let root = guest.root();
    let file = guest.look_up(root, b"file").nodeid;
    let fh = guest.open(file);
    let arguments = ReadIn {
        fh,
        size: u32::MAX,
        ..ReadIn::default()
    };
    let read = guest.call(Opcode::Read, file, &[arguments.as_slice()], 100);
    assert_eq!(read.unwrap().len(), 100);
}

#[test]
fn forgetting_takes_no_answer() {
    let mut guest = Guest::new(0);
    guest.mount();
    let root = guest.root();
    let message = guest.message(Opcode::Forget as u32, root, &[&1_u64.to_le_bytes()]);
    guest.driver.request(HIGH_PRIORITY, &message, 0);
    assert_eq!(guest.driver.complete(HIGH_PRIORITY).len, 0);
    let answer = guest.call(Opcode::Getattr, root, &[&[0; 16]], 104);
    assert_eq!(answer, Err(libc::ESTALE));
}

#[test]
fn many_requests_at_once_are_all_answered() {
    for features in [0, EVENT_IDX] {
        let mut guest = Guest::new(features);
        std::fs::write(guest.directory.path().join("file"), "x").unwrap();
        guest.mount();
        let root = guest.root();
        for _ in 0..50 {
            for _ in 0..64 {
                let message = guest.message(Opcode::Lookup as u32, root, &[b"file\0"]);
                guest.driver.request(REQUESTS, &message, 144);
            }
            for _ in 0..64 {
                assert_eq!(guest.driver.complete(REQUESTS).len, 144);
            }
        }
    }
}

#[test]
fn a_pause_keeps_what_the_guest_knows_and_loses_no_request() {
    let mut guest = Guest::new(EVENT_IDX);
    std::fs::write(guest.directory.path().join("file"), "content").unwrap();
    guest.mount();
    let root = guest.root();
    let file = guest.look_up(root, b"file").nodeid;
    let fh = guest.open(file);
    let queues = guest.device.deactivate();
    assert_eq!(
        queues.iter().map(|queue| queue.index).collect::<Vec<_>>(),
        [0, 1]
    );
    assert!(guest.device.deactivate().is_empty());
    // A request that comes while nobody is there.
    let message = guest.message(Opcode::Lookup as u32, root, &[b"file\0"]);
    guest.driver.request(REQUESTS, &message, 144);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(guest.driver.queues[REQUESTS].used().is_none());
    let mut activation = guest.driver.activation(EVENT_IDX);
    activation.queues = queues;
    guest.device.activate(activation).unwrap();
    assert_eq!(guest.driver.complete(REQUESTS).len, 144);
    assert_eq!(guest.read(file, fh, 100).unwrap(), b"content");
}

#[test]
fn a_reset_closes_what_the_guest_had_open_and_the_next_one_mounts_again() {
    let mut guest = Guest::new(EVENT_IDX);
    std::fs::write(guest.directory.path().join("file"), "content").unwrap();
    guest.mount();
    let root = guest.root();
    let file = guest.look_up(root, b"file").nodeid;
    let fh = guest.open(file);
    let tree = guest.exports.tree();
    assert!(tree.files.get(fh).is_ok() && tree.inodes.get(file).is_ok());
    guest.device.deactivate();
    guest.device.reset(Reset::Machine);
    assert!(tree.files.get(fh).is_err() && tree.inodes.get(file).is_err());
    guest.driver = TestDriver::new(64 << 20, &[512, 512]);
    guest.driver.start(&mut guest.device, EVENT_IDX);
    guest.mount();
    let root = guest.root();
    let file = guest.look_up(root, b"file").nodeid;
    let fh = guest.open(file);
    assert_eq!(guest.read(file, fh, 100).unwrap(), b"content");
}

#[test]
fn a_device_without_its_request_queue_does_not_start() {
    let mut guest = Guest::new(0);
    guest.device.deactivate();
    let mut activation = guest.driver.activation(0);
    activation.queues.truncate(1);
    assert!(guest.device.activate(activation).is_err());
}

#[test]
fn a_broken_ring_fails_the_device_once_and_a_reset_mends_it() {
    let mut guest = Guest::new(0);
    guest.mount();
    let queue = &mut guest.driver.queues[REQUESTS];
    queue.set_avail_index(9999);
    queue.kick();
    let interrupt = Arc::clone(&guest.driver.interrupt);
    interrupt.wait_until(|seen| !seen.needs_reset.is_empty());
    guest.driver.queues[REQUESTS].kick();
    guest.device.deactivate();
    assert_eq!(interrupt.seen().needs_reset.len(), 1);
    guest.driver = TestDriver::new(1 << 20, &[512, 512]);
    guest.driver.start(&mut guest.device, 0);
    guest.mount();
}

#[test]
fn buffers_outside_of_memory_fail_their_request_only() {
    let mut guest = Guest::new(0);
    guest.mount();
    let queue = &mut guest.driver.queues[REQUESTS];
    let outside = RawDescriptor {
        address: 1 << 40,
        len: 4096,
        flags: 0,
        next: 0,
    };
    queue.write_descriptor(500, outside);
    queue.publish(500);
    queue.kick();
    assert_eq!(guest.driver.complete(REQUESTS).len, 0);
    guest.root();
}

#[test]
fn a_message_that_is_no_request_is_answered_with_an_error() {
    let mut guest = Guest::new(0);
    guest.mount();
    let root = guest.root();
    // No name, a name without its end, an unknown operation.
    assert_eq!(guest.call(Opcode::Lookup, root, &[], 128), Err(libc::EIO));
    assert!(guest.call(Opcode::Lookup, root, &[b"name"], 128).is_err());
    assert!(guest.call(Opcode::Symlink, root, &[b"a\0b"], 128).is_err());
    assert_eq!(
        guest.call(Opcode::Access, root, &[&[0; 8]], 0),
        Err(libc::ENOSYS)
    );
    assert_eq!(guest.call_number(99, root, &[], 0), Err(libc::ENOSYS));
}

#[test]
fn requests_the_library_does_not_know_are_checked_like_others() {
    let mut guest = Guest::new(0);
    std::fs::write(guest.directory.path().join("file"), "content").unwrap();
    guest.mount();
    let root = guest.root();
    let file = guest.look_up(root, b"file").nodeid;
    let fh = guest.open(file);
    let copy = |guest: &mut Guest, to: u64, flags: u64| {
        let words = [fh, 0, file, to, 0, u64::MAX, flags].map(u64::to_le_bytes);
        guest.call_number(47, file, &[words.as_flattened()], 8)
    };
    // A file that is open for reading only, none, and flags there are not.
    assert_eq!(copy(&mut guest, fh, 0), Err(libc::EBADF));
    assert_eq!(copy(&mut guest, 99, 0), Err(libc::EBADF));
    assert_eq!(copy(&mut guest, fh, 1), Err(libc::EINVAL));
    assert!(guest.call_number(47, file, &[&[0; 8]], 8).is_err());
    assert_eq!(
        guest.call_number(50, ROOT_ID, &[&[0; 8]], 0),
        Ok(Vec::new())
    );
}

#[test]
fn what_is_exported_comes_and_goes_under_a_running_guest() {
    let mut guest = Guest::new(0);
    guest.mount();
    let root = guest.root();
    guest.exports.remove("data").unwrap();
    let answer = guest.call(Opcode::Lookup, ROOT_ID, &[b"data\0"], 128);
    assert_eq!(answer, Err(libc::ENOENT));
    let answer = guest.call(Opcode::Getattr, root, &[&[0; 16]], 104);
    assert_eq!(answer, Err(libc::ESTALE));
}

#[test]
fn each_thread_is_started_by_the_hook_and_its_failure_is_told() {
    let exports = Exports::new().unwrap();
    let config = FsConfig {
        threads: 3,
        ..FsConfig::new(FsTag::try_from("pod").unwrap())
    };
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let hook: ThreadStart = Arc::new(move || {
        assert!(std::thread::current().name().unwrap().starts_with("fs"));
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    drop(VirtioFs::new(config, &exports, &hook).unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 3);
    let failing: ThreadStart = Arc::new(|| Err(io::Error::from_raw_os_error(libc::EPERM)));
    let failed = VirtioFs::new(config, &exports, &failing);
    assert!(matches!(failed, Err(FsError::Start(_))));
}

#[test]
fn configurations_out_of_bounds_are_refused() {
    assert!(FsTag::try_from("").is_err());
    assert!(FsTag::try_from("x".repeat(37).as_str()).is_err());
    assert!(FsTag::try_from("x".repeat(36).as_str()).is_ok());
    let exports = Exports::new().unwrap();
    let nothing: ThreadStart = Arc::new(|| Ok(()));
    let good = FsConfig::new(FsTag::try_from("pod").unwrap());
    for bad in [
        FsConfig {
            request_queues: 0,
            ..good
        },
        FsConfig {
            request_queues: 65,
            ..good
        },
        FsConfig { threads: 0, ..good },
        FsConfig {
            threads: 17,
            ..good
        },
    ] {
        assert!(VirtioFs::new(bad, &exports, &nothing).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any operation with any arguments on any file: the device goes on and nothing outside of
    /// the export changes.
    #[test]
    fn any_message_leaves_the_device_working(
        messages in prop::collection::vec(
            (0_u32..60, 0_u64..6, prop::collection::vec(any::<u8>(), 0..160), 0_u32..300),
            1..40,
        )
    ) {
        let mut guest = Guest::new(0);
        std::fs::write(guest.directory.path().join("file"), "content").unwrap();
        guest.mount();
        let root = guest.root();
        guest.look_up(root, b"file");
        for (opcode, nodeid, body, room) in messages {
            let message = guest.message(opcode, nodeid, &[&body]);
            guest.driver.request(REQUESTS, &message, room);
            guest.driver.complete(REQUESTS);
        }
        guest.mount();
        prop_assert!(guest.driver.interrupt.seen().needs_reset.is_empty());
    }
}
