//! A hostile driver of the block device: good requests, any descriptors, any indices, in any order.
//!
//! The first byte chooses the disk; then come commands of a few bytes each. Whatever they do, the
//! device gives its queue back and serves the next driver.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::virtio::block::backend::DiskBackend;
use podvisor_devices::virtio::block::image::testing::{Builder, Content};
use podvisor_devices::virtio::block::image::{
    self, BackingFiles, CacheMode, ImageFormat, ImageOptions, ImageSource,
};
use podvisor_devices::virtio::testing::{RawDescriptor, TestDriver};
use podvisor_devices::virtio::{Block, BlockConfig, VirtioDevice as _};
use podvisor_fuzz::{file_of, seeds};
use vm_memory::{Bytes as _, GuestAddress};

const MEMORY_LEN: usize = 256 << 10;
const DISK_LEN: usize = 64 << 10;
/// Where commands put what descriptors lead to.
const DATA: u64 = 0x8000;
const EVENT_IDX: u64 = 1 << 29;

fn thread() -> EventLoop {
    static THREAD: OnceLock<EventLoop> = OnceLock::new();
    let spawn = || EventLoop::spawn("disk", Box::new(|| Ok(()))).unwrap();
    THREAD.get_or_init(spawn).clone()
}

fn source(bytes: &[u8], format: ImageFormat) -> ImageSource {
    ImageSource {
        file: file_of(bytes),
        format,
        backing: BackingFiles::Refused,
    }
}

fn disk(kind: u8) -> Box<dyn DiskBackend> {
    let raw = vec![7; DISK_LEN];
    match kind % 3 {
        0 => {
            let source = source(&raw, ImageFormat::Raw);
            image::open_without_ring(source, ImageOptions::default()).unwrap()
        }
        1 => {
            let mut builder = Builder::new(9, DISK_LEN as u64);
            builder.clusters.insert(1, Content::Data(vec![7; 512]));
            builder
                .clusters
                .insert(2, Content::Compressed(vec![7; 512]));
            let source = source(&builder.bytes(), ImageFormat::Qcow2);
            image::open_without_ring(source, ImageOptions::default()).unwrap()
        }
        _ => {
            let source = source(&raw, ImageFormat::Raw);
            let cache = CacheMode::Writeback;
            image::open_copy_on_write(source, file_of(&[]), cache).unwrap()
        }
    }
}

/// Takes numbers off the input; zeros when it has ended.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(f, r)| (*f, r));
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}

fuzz_target!(init: seeds(scripts), |data: &[u8]| {
    let mut input = Input(data);
    let kind = input.u8();
    let config = BlockConfig {
        read_only: kind & 0x80 != 0,
        ..BlockConfig::default()
    };
    let mut block = Block::new(config, disk(kind & 0x7f), thread()).unwrap();
    let mut driver = TestDriver::new(MEMORY_LEN, &[16]);
    driver.start(&mut block, EVENT_IDX);
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        command(&mut driver, &mut input);
    }
    driver.queues[0].kick();
    assert_eq!(block.deactivate().len(), 1, "the queue comes back");
    let mut driver = TestDriver::new(MEMORY_LEN, &[16]);
    driver.start(&mut block, EVENT_IDX);
    driver.request(0, &[0; 16], 513);
    let status = driver.complete(0).writable[512];
    assert_eq!(status, 0, "the next driver is served");
});

fn command(driver: &mut TestDriver, input: &mut Input<'_>) {
    match input.u8() % 8 {
        // A good request, if there is room for it.
        0..=2 => {
            let kind = [0, 1, 4, 8, 11, 13, 99][usize::from(input.u8() % 7)];
            let (sector, len) = (input.u16(), input.u16() % 5000);
            let mut request = u32::to_le_bytes(kind).to_vec();
            request.extend([0; 4]);
            request.extend(u64::from(sector).to_le_bytes());
            let byte = input.u8();
            let mut writable = 1;
            match kind {
                0 | 8 => writable += u32::from(len),
                _ => request.resize(16 + usize::from(len), byte),
            }
            if driver.queues[0].has_room(2) && driver.allocate(0, 1) < MEMORY_LEN as u64 - 20_000 {
                driver.request(0, &request, writable);
            }
        }
        3..=4 => {
            let descriptor = RawDescriptor {
                address: DATA + u64::from(input.u32() % 0x5_0000),
                len: input.u32() % 0x3000,
                flags: input.u16() % 8,
                next: input.u16() % 20,
            };
            driver.queues[0].write_descriptor(input.u16() % 16, descriptor);
        }
        5 => {
            let at = DATA + u64::from(input.u16());
            let header = [input.u8() % 14, 0, 0, 0, 0, 0, 0, 0, input.u8(), 0, 0, 0];
            let _ = driver.memory.write_slice(&header, GuestAddress(at));
        }
        6 => driver.queues[0].publish(input.u16() % 20),
        _ => {
            if input.u8() % 16 == 0 {
                driver.queues[0].set_avail_index(input.u16());
            }
            driver.queues[0].kick();
            while driver.try_complete(0).is_some() {}
        }
    }
}

/// A few requests of each kind for each disk, and chains made by hand.
fn scripts() -> Vec<Vec<u8>> {
    let mut scripts = Vec::new();
    for kind in [0, 1, 2, 0x80] {
        let mut script = vec![kind];
        for request in 0..7 {
            script.extend([0, request, 3, 0, 0, 4, 9]);
            script.extend([7, 1]);
        }
        scripts.push(script.clone());
        script.extend([5, 0, 1, 0, 2]);
        script.extend([3, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 0, 0]);
        script.extend([3, 0, 16, 0, 0, 0, 2, 0, 0, 3, 0, 2, 0, 1, 0]);
        script.extend([3, 0, 32, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0]);
        script.extend([6, 0, 0, 7, 1]);
        scripts.push(script);
    }
    scripts
}
