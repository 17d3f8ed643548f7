//! The transport as a driver sees it, in front of a device that only records.

mod driver;
mod running;

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::QueueT as _;

use super::*;
use crate::pci::msix::tests::RecordedMessages;
use crate::virtio::device::{ActivateError, Activation, DeviceType, QueueHandle, Reset};
use crate::virtio::testing::{DriverQueue, guest_memory};

const BAR: u64 = 0x40_0000_0000;
const DEVICE_FEATURE: u64 = 1 << 5;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const NEEDS_RESET: u8 = 0x40;

#[derive(Default)]
struct Record {
    active: Option<Activation>,
    activations: usize,
    refuse: bool,
    config: Vec<u8>,
    resets: Vec<Reset>,
    restored: Vec<u8>,
}

/// Keeps what it is activated with; queue 0 is mandatory.
struct Probe(Arc<Mutex<Record>>);

impl VirtioDevice for Probe {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn device_features(&self) -> u64 {
        DEVICE_FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let record = self.0.lock().unwrap();
        let from = record.config.iter().skip(usize::try_from(offset).unwrap());
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, _offset: u64, data: &[u8]) {
        self.0.lock().unwrap().config = data.to_vec();
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut record = self.0.lock().unwrap();
        if record.refuse
            || activation
                .queues
                .first()
                .is_none_or(|queue| queue.index != 0)
        {
            return Err(ActivateError::QueueMissing(0));
        }
        record.activations += 1;
        record.active = Some(activation);
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<QueueHandle> {
        let active = self.0.lock().unwrap().active.take();
        active.expect("only an active device is deactivated").queues
    }
    fn reset(&mut self, reset: Reset) {
        let mut record = self.0.lock().unwrap();
        assert!(record.active.is_none(), "deactivated before");
        record.resets.push(reset);
    }
    fn save(&self) -> Vec<u8> {
        b"probe".to_vec()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), prost::DecodeError> {
        self.0.lock().unwrap().restored = state.to_vec();
        Ok(())
    }
}

/// A driver that uses the transport's registers.
struct Fixture {
    device: Arc<VirtioPciDevice>,
    record: Arc<Mutex<Record>>,
    messages: Arc<RecordedMessages>,
    memory: GuestMemory,
}

impl Fixture {
    fn new() -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let messages = Arc::new(RecordedMessages::default());
        let memory = guest_memory(0x10000);
        let probe = Box::new(Probe(Arc::clone(&record)));
        let device = VirtioPciDevice::new(probe, Arc::clone(&memory), messages.clone(), BAR);
        Self {
            device: device.unwrap(),
            record,
            messages,
            memory,
        }
    }

    /// Memory space and bus mastering on, MSI-X on, vector `n` sends `0x40 + n`.
    fn enabled() -> Self {
        let fixture = Self::new();
        fixture.enable();
        fixture
    }

    fn enable(&self) {
        self.command(0b110);
        self.device
            .write_config(self.capability(0x11, 0) + 2, &[0, 0x80]);
        for vector in 0..3_u8 {
            let entry = 0x4000 + 16 * u64::from(vector);
            let message = [
                0,
                0,
                0xe0,
                0xfe,
                0,
                0,
                0,
                0,
                0x40 + vector,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            for (word, bytes) in (0..).zip(message.chunks(4)) {
                self.device.write(entry + 4 * word, bytes);
            }
        }
    }

    fn command(&self, command: u8) {
        self.device.write_config(4, &[command, 0]);
    }

    /// The offset of the capability `id`; for virtio's, the one of type `cfg_type`.
    fn capability(&self, id: u8, cfg_type: u8) -> u16 {
        let byte = |offset| {
            let mut data = [0];
            self.device.read_config(offset, &mut data);
            data[0]
        };
        let mut offset = byte(0x34);
        while offset != 0 {
            let at = u16::from(offset);
            if byte(at) == id && (id != 9 || byte(at + 3) == cfg_type) {
                return at;
            }
            offset = byte(at + 1);
        }
        panic!("no capability {id:#x}/{cfg_type}");
    }

    fn config_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(offset, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    fn set_features(&self, features: u64) {
        for half in 0..2_u8 {
            self.device.write(0x08, &[half, 0, 0, 0]);
            let word = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
            self.device.write(0x0c, &word.to_le_bytes());
        }
    }

    fn negotiate(&self, features: u64) {
        self.device.write(STATUS, &[1]);
        self.device.write(STATUS, &[3]);
        self.set_features(features);
        self.device.write(STATUS, &[0xb]);
    }

    fn set_up_queue(&self, index: u8, addresses: [u64; 3]) {
        self.device.write(QUEUE_SELECT, &[index, 0]);
        self.device.write(0x18, &[8, 0]);
        self.device.write(0x1a, &[index + 1, 0]);
        for (field, address) in [0x20, 0x28, 0x30].into_iter().zip(addresses) {
            let bytes = address.to_le_bytes();
            self.device.write(field, &bytes[..4]);
            self.device.write(field + 4, &bytes[4..]);
        }
        self.device.write(0x1c, &[1, 0]);
    }

    fn queue(&self, base: u64) -> DriverQueue {
        DriverQueue::new(Arc::clone(&self.memory), base, 8)
    }

    fn start(&self) {
        self.negotiate(VERSION_1 | EVENT_IDX | DEVICE_FEATURE);
        self.device.write(0x10, &[0, 0]);
        self.set_up_queue(0, self.queue(0x1000).addresses());
        self.set_up_queue(1, self.queue(0x2000).addresses());
        self.device.write(STATUS, &[0xf]);
    }

    fn is_active(&self) -> bool {
        self.record.lock().unwrap().active.is_some()
    }

    fn interrupt_queue(&self, index: u16) {
        let record = self.record.lock().unwrap();
        record.active.as_ref().unwrap().interrupt.queue(index);
    }
}
