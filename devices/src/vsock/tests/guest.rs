//! A guest's socket driver, as far as tests need one.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::super::device::{Vsock, VsockConfig};
use super::super::host::VsockHost;
use super::super::packet::{HEADER_LEN, HOST_CID, Header, Op, Ports, TYPE_STREAM, WireHeader};
use super::{GUEST_CID, READY_PORT};
use crate::event_loop::EventLoop;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, TIMEOUT, TestDriver};

pub const RX: usize = 0;
pub const TX: usize = 1;
pub const EVENTS: usize = 2;
/// As Linux's, without the header.
pub const RX_DATA_LEN: u32 = 4096;
pub const EVENT_IDX: u64 = 1 << 29;
const TX_SLOT_LEN: u64 = 128 * 1024;
const QUEUE_SIZE: u16 = 64;

pub fn device() -> (Vsock, VsockHost) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    Vsock::new(VsockConfig { guest_cid: GUEST_CID, ready_port: READY_PORT }, io).unwrap()
}

/// A driver with receive buffers posted unless asked otherwise.
pub struct Guest {
    pub driver: TestDriver,
    rx_buffers: HashMap<u16, u64>,
    tx_slots: Vec<u64>,
    tx_in_flight: HashMap<u16, u64>,
    /// Bytes taken of each connection, for the credit given to the host.
    pub consumed: BTreeMap<Ports, u32>,
    pub window: u32,
}

impl Guest {
    pub fn new() -> Self {
        let mut driver = TestDriver::new(32 << 20, &[QUEUE_SIZE, QUEUE_SIZE, 8]);
        let slots = u64::from(QUEUE_SIZE) / 2;
        let tx_slots = (0..slots).map(|_| driver.allocate(TX_SLOT_LEN, 16)).collect();
        Self {
            driver,
            rx_buffers: HashMap::new(),
            tx_slots,
            tx_in_flight: HashMap::new(),
            consumed: BTreeMap::new(),
            window: 256 * 1024,
        }
    }

    /// A guest whose driver has started.
    pub fn started(device: &mut Vsock) -> Self {
        let mut guest = Self::new();
        guest.driver.start(device as &mut dyn VirtioDevice, EVENT_IDX);
        guest.post_buffers(QUEUE_SIZE);
        guest
    }

    pub fn post_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let address = self.driver.allocate(HEADER_LEN as u64 + u64::from(RX_DATA_LEN), 16);
            self.post_buffer(address);
        }
    }

    fn post_buffer(&mut self, address: u64) {
        let len = u32::try_from(HEADER_LEN).unwrap() + RX_DATA_LEN;
        let queue = &mut self.driver.queues[RX];
        let head = queue.add(&[Buffer { address, len, writable: true }]);
        queue.kick();
        self.rx_buffers.insert(head, address);
    }

    /// A header as this guest fills it in.
    pub fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: self.window,
            fwd_cnt: self.consumed.get(&ports).copied().unwrap_or(0),
        }
    }

    pub fn send(&mut self, header: Header) {
        self.send_with(header, &[]);
    }

    pub fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.send_with(Header { len, ..self.header(ports, Op::Data) }, data);
    }

    /// Header and data as a chain of two buffers, as Linux sends them.
    fn send_with(&mut self, header: Header, data: &[u8]) {
        let slot = self.free_slot();
        let at = GuestAddress(slot);
        self.driver.memory.write_slice(WireHeader::from(header).as_slice(), at).unwrap();
        let header_len = u32::try_from(HEADER_LEN).unwrap();
        let mut buffers = vec![Buffer { address: slot, len: header_len, writable: false }];
        if !data.is_empty() {
            let address = slot + 4096;
            self.driver.memory.write_slice(data, GuestAddress(address)).unwrap();
            let len = u32::try_from(data.len()).unwrap();
            buffers.push(Buffer { address, len, writable: false });
        }
        let queue = &mut self.driver.queues[TX];
        let head = queue.add(&buffers);
        queue.kick();
        self.tx_in_flight.insert(head, slot);
    }

    fn free_slot(&mut self) -> u64 {
        wait_for(|| {
            while let Some(used) = self.driver.queues[TX].used() {
                self.tx_slots.extend(self.tx_in_flight.remove(&used.head));
            }
            self.tx_slots.pop()
        })
    }

    /// The next packet from the host.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        wait_for(|| self.try_receive())
    }

    pub fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.driver.queues[RX].used()?;
        let address = self.rx_buffers.remove(&used.head).unwrap();
        let memory = &self.driver.memory;
        let header: WireHeader = memory.read_obj(GuestAddress(address)).unwrap();
        let header = Header::from(header);
        assert_eq!(used.len as usize, HEADER_LEN + header.len as usize);
        let mut data = vec![0; header.len as usize];
        memory.read_slice(&mut data, GuestAddress(address + HEADER_LEN as u64)).unwrap();
        self.post_buffer(address);
        Some((header, data))
    }

    /// Expects a request and accepts it.
    pub fn accept(&mut self) -> Ports {
        let (request, _) = self.receive();
        assert_eq!(request.op, Op::Request as u16);
        let ports = Ports { host: request.src_port, guest: request.dst_port };
        self.send(self.header(ports, Op::Response));
        ports
    }
}

/// Waits for what another thread brings about.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    let mut rounds = 0_u32;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        rounds += 1;
        if rounds < 100 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
