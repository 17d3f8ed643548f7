//! What can be asked for with a disk.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::block::writethrough::WritethroughDisk;

/// A disk with the data of `backend`, and its driver.
fn disk(config: BlockConfig, backend: Box<dyn DiskBackend>, thread: EventLoop) -> Fixture {
    let mut block = Block::new(config, backend, thread).unwrap();
    let driver = TestDriver::new(8 << 20, block.queue_max_sizes());
    driver.start(&mut block, EVENT_IDX);
    let file = tempfile::tempfile().unwrap();
    Fixture {
        block,
        driver,
        file,
    }
}

fn thread() -> EventLoop {
    EventLoop::spawn("test-disk", Box::new(|| Ok(()))).unwrap()
}

/// A raw disk of 1 MiB in a file that is `/dev/full`: it reads as zeros and takes no data.
fn full_disk(cache: CacheMode) -> Fixture {
    let mut options = File::options();
    let file = options.read(true).write(true).open("/dev/full").unwrap();
    let file = DiskFile::new(file, cache).unwrap();
    let transfers = transfer::open(vec![file]).unwrap();
    let backend = RawDisk::new(transfers, DISK_LEN as u64, cache);
    disk(config(false), Box::new(backend), thread())
}

/// The image of these tests under a copy-on-write layer.
fn copy_on_write() -> Box<dyn DiskBackend> {
    let source = ImageSource {
        file: image(),
        format: ImageFormat::Detect,
        backing: BackingFiles::Refused,
    };
    let layer = image::layer_file(&std::env::temp_dir()).unwrap();
    image::open_copy_on_write(source, layer, CacheMode::Writeback).unwrap()
}

#[test]
fn a_disk_keeps_to_its_rates() {
    let (iops, bytes) = (NonZeroU64::new(50), NonZeroU64::new(40 * 4096));
    for (limits, len) in [((iops, None), 512), ((None, bytes), 4096)] {
        let limits = RateLimits {
            iops: limits.0,
            bytes_per_second: limits.1,
        };
        let config = BlockConfig {
            limits,
            ..config(false)
        };
        let mut fixture = disk(config, open_raw(image()), thread());
        let start = Instant::now();
        for _ in 0..15 {
            let header = header(IN, 8, &[]);
            fixture.driver.request(0, &header, len + 1);
        }
        for _ in 0..15 {
            assert_eq!(fixture.driver.complete(0).writable[0], 9);
        }
        // Five or six may come at once; the others need 20 ms each, or more.
        assert!(start.elapsed() >= Duration::from_millis(150));
    }
}

#[test]
fn several_disks_on_one_thread_are_all_served() {
    let thread = thread();
    let config = BlockConfig {
        queues: 2,
        ..config(false)
    };
    let mut disks: Vec<Fixture> = [open_raw(image()), open_plain(image()), copy_on_write()]
        .into_iter()
        .map(|backend| disk(config, backend, thread.clone()))
        .collect();
    for sector in 0..60 {
        for disk in &mut disks {
            let data = [u8::try_from(sector).unwrap() + 100; 512];
            let request = header(OUT, sector, &data);
            disk.driver
                .request(usize::from(sector % 2 == 1), &request, 1);
        }
    }
    for disk in &mut disks {
        for queue in [0, 1] {
            (0..30).for_each(|_| assert_eq!(disk.driver.complete(queue).writable, [0]));
        }
        assert_eq!(disk.ask(IN, 59, &[], 512), (vec![159; 512], 0));
    }
    // One of them goes, the others do not notice.
    drop(disks.remove(0));
    assert_eq!(disks[0].ask(IN, 7, &[], 512), (vec![107; 512], 0));
}

#[test]
fn a_full_volume_fails_the_write_and_nothing_else() {
    let mut fixture = full_disk(CacheMode::Writeback);
    for _ in 0..3 {
        assert_eq!(fixture.ask(OUT, 9, &[1; 512], 0).1, 1);
        assert_eq!(fixture.ask(IN, 9, &[], 512), (vec![0; 512], 0));
    }
}

#[test]
fn only_the_unsafe_cache_mode_does_not_heed_flushes() {
    // The device cannot be synchronised, so that heeding is seen.
    assert_eq!(full_disk(CacheMode::Writeback).ask(FLUSH, 0, &[], 0).1, 1);
    assert_eq!(full_disk(CacheMode::Unsafe).ask(FLUSH, 0, &[], 0).1, 0);
}

/// `/dev/null` takes data and cannot be synchronised.
#[test]
fn writes_through_the_cache_end_with_the_flush_that_follows_them() {
    for (cache, status) in [(CacheMode::Writeback, 0), (CacheMode::Writethrough, 1)] {
        let mut options = File::options();
        let file = options.read(true).write(true).open("/dev/null").unwrap();
        let transfers = transfer::open(vec![DiskFile::new(file, cache).unwrap()]).unwrap();
        let raw = Box::new(RawDisk::new(transfers, DISK_LEN as u64, cache));
        let backend: Box<dyn DiskBackend> = match cache {
            CacheMode::Writethrough => Box::new(WritethroughDisk::new(raw)),
            _ => raw,
        };
        let mut fixture = disk(config(false), backend, thread());
        assert_eq!(fixture.ask(OUT, 9, &[1; 512], 0).1, status, "{cache:?}");
        // And the driver is told that it need not flush.
        let flushes = fixture.block.device_features() >> feature::FLUSH & 1 == 1;
        assert_eq!(flushes, cache == CacheMode::Writeback, "{cache:?}");
    }
    let file = image();
    let source = ImageSource {
        file: file.try_clone().unwrap(),
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    let options = ImageOptions {
        cache: CacheMode::Writethrough,
        ..ImageOptions::default()
    };
    let backend = image::open(source, options).unwrap();
    let mut fixture = disk(config(false), backend, thread());
    for sector in 0..20 {
        assert_eq!(fixture.ask(OUT, sector, &[200; 512], 0).1, 0);
        assert_eq!(fixture.ask(IN, sector, &[], 512), (vec![200; 512], 0));
    }
}

#[test]
fn direct_io_takes_requests_of_any_alignment_or_is_refused_by_name() {
    let source = ImageSource {
        file: image(),
        format: ImageFormat::Raw,
        backing: BackingFiles::Refused,
    };
    let file = source.file.try_clone().unwrap();
    let options = ImageOptions {
        cache: CacheMode::None,
        ..ImageOptions::default()
    };
    let backend = match image::open(source, options) {
        Ok(backend) => backend,
        Err(error) => {
            let source = std::error::Error::source(&error).unwrap();
            assert!(source.to_string().contains("no direct I/O"), "{source}");
            return;
        }
    };
    let mut fixture = disk(config(false), backend, thread());
    fixture.file = file;
    // The driver's buffers lie behind one another, so that most are not aligned.
    for (sector, len) in [(0, 4096), (8, 4096), (103, 512), (128, 32768), (205, 1536)] {
        let (data, status) = fixture.ask(IN, sector, &[], len);
        let first = u8::try_from(sector).unwrap() + 1;
        assert_eq!((data[0], status), (first, 0), "{sector}");
        let output = vec![first; len as usize];
        assert_eq!(fixture.ask(OUT, sector, &output, 0).1, 0);
        assert_eq!(fixture.ask(IN, sector, &[], len), (output, 0));
    }
    // A page-aligned buffer goes past the page cache and sees the same.
    let at = fixture.driver.allocate(4096, 4096);
    let head = fixture.driver.allocate(512, 512);
    let memory = &fixture.driver.memory;
    memory
        .write_slice(&header(IN, 8, &[]), GuestAddress(head))
        .unwrap();
    let buffer = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    fixture.driver.queues[0].add(&[
        buffer(head, 16, false),
        buffer(at, 4096, true),
        buffer(head + 16, 1, true),
    ]);
    fixture.driver.queues[0].kick();
    assert_eq!(fixture.driver.complete(0).len, 4097);
    let first: u8 = fixture.driver.memory.read_obj(GuestAddress(at)).unwrap();
    assert_eq!(first, 9);
}

#[test]
fn a_copy_on_write_disk_outlives_a_reset_and_leaves_its_image_alone() {
    let mut fixture = disk(config(false), copy_on_write(), thread());
    assert_eq!(fixture.ask(OUT, 3, &[77; 512], 0).1, 0);
    assert_eq!(fixture.ask(FLUSH, 0, &[], 0).1, 0);
    assert_eq!(fixture.block.deactivate().len(), 1);
    fixture.driver = TestDriver::new(8 << 20, fixture.block.queue_max_sizes());
    fixture.driver.start(&mut fixture.block, 0);
    assert_eq!(fixture.ask(IN, 3, &[], 512), (vec![77; 512], 0));
    assert_eq!(fixture.ask(IN, 4, &[], 512), (vec![5; 512], 0));
}
