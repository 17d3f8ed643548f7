//! A guest's socket driver and a task of the host, as far as tests, benches and fuzz targets
//! need them.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a harness for tests: a broken one has to stop the test"
)]

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::VsockStream;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, Ports, TYPE_STREAM, WireHeader};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, TIMEOUT, TestDriver};

/// The address of this guest.
pub const GUEST_CID: u64 = 3;
/// Index of the queue of packets to the guest.
pub const RX: usize = 0;
/// Index of the queue of packets from the guest.
pub const TX: usize = 1;
/// Index of the queue of events to the guest.
pub const EVENTS: usize = 2;
/// Data that one receive buffer holds after the header.
pub const RX_DATA_LEN: u32 = 4096;
/// `VIRTIO_F_RING_EVENT_IDX` as a mask.
pub const EVENT_IDX: u64 = 1 << 29;
/// The longest data of one packet from this guest, with space for the header before it.
const TX_SLOT_LEN: u64 = 128 * 1024;
const QUEUE_SIZE: u16 = 64;

/// A socket driver that does what it is told, in order or not.
pub struct Guest {
    /// Its queues and memory.
    pub driver: TestDriver,
    rx_buffers: HashMap<u16, u64>,
    tx_slots: Vec<u64>,
    tx_in_flight: HashMap<u16, u64>,
    /// Bytes taken of each connection, for the credit that packets give to the host.
    pub consumed: BTreeMap<Ports, u32>,
    /// The receive window that packets tell the host, in bytes.
    pub window: u32,
}

impl Guest {
    /// A driver that has not started, without receive buffers.
    #[must_use]
    pub fn new() -> Self {
        let mut driver = TestDriver::new(32 << 20, &[QUEUE_SIZE, QUEUE_SIZE, 8]);
        let slots = u64::from(QUEUE_SIZE) / 2;
        let tx_slots = (0..slots)
            .map(|_| driver.allocate(TX_SLOT_LEN, 16))
            .collect();
        Self {
            driver,
            rx_buffers: HashMap::new(),
            tx_slots,
            tx_in_flight: HashMap::new(),
            consumed: BTreeMap::new(),
            window: 256 * 1024,
        }
    }

    /// A driver that has started `device`, with all its receive buffers posted.
    pub fn started(device: &mut dyn VirtioDevice) -> Self {
        let mut guest = Self::new();
        guest.driver.start(device, EVENT_IDX);
        guest.post_buffers(QUEUE_SIZE);
        guest
    }

    /// Posts `count` more receive buffers.
    pub fn post_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let address = self
                .driver
                .allocate(HEADER_LEN as u64 + u64::from(RX_DATA_LEN), 16);
            self.post_buffer(address);
        }
    }

    fn post_buffer(&mut self, address: u64) {
        let len = u32::try_from(HEADER_LEN).unwrap() + RX_DATA_LEN;
        let queue = &mut self.driver.queues[RX];
        let head = queue.add(&[Buffer {
            address,
            len,
            writable: true,
        }]);
        queue.kick();
        self.rx_buffers.insert(head, address);
    }

    /// A header as this guest fills it in.
    #[must_use]
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

    /// Sends a packet without data, as it is.
    pub fn send(&mut self, header: Header) {
        self.send_with(header, &[]);
    }

    /// Sends data on a connection, within the host's credit or not.
    pub fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.send_with(
            Header {
                len,
                ..self.header(ports, Op::Data)
            },
            data,
        );
    }

    /// Header and data as a chain of two buffers, as Linux sends them.
    fn send_with(&mut self, header: Header, data: &[u8]) {
        let slot = self.free_slot();
        let at = GuestAddress(slot);
        self.driver
            .memory
            .write_slice(WireHeader::from(header).as_slice(), at)
            .unwrap();
        let header_len = u32::try_from(HEADER_LEN).unwrap();
        let mut buffers = vec![Buffer {
            address: slot,
            len: header_len,
            writable: false,
        }];
        if !data.is_empty() {
            let address = slot + 4096;
            self.driver
                .memory
                .write_slice(data, GuestAddress(address))
                .unwrap();
            let len = u32::try_from(data.len()).unwrap();
            buffers.push(Buffer {
                address,
                len,
                writable: false,
            });
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

    /// The next packet from the host, for which it waits; its buffer is posted again.
    ///
    /// # Panics
    /// After [`TIMEOUT`].
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        wait_for(|| self.try_receive())
    }

    /// The next packet from the host, if there is one by now.
    pub fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.driver.queues[RX].used()?;
        let address = self.rx_buffers.remove(&used.head).unwrap();
        let memory = &self.driver.memory;
        let header: WireHeader = memory.read_obj(GuestAddress(address)).unwrap();
        let header = Header::from(header);
        assert_eq!(used.len as usize, HEADER_LEN + header.len as usize);
        let mut data = vec![0; header.len as usize];
        memory
            .read_slice(&mut data, GuestAddress(address + HEADER_LEN as u64))
            .unwrap();
        self.post_buffer(address);
        Some((header, data))
    }

    /// Expects a request and accepts it.
    ///
    /// # Panics
    /// When another packet comes, or none within [`TIMEOUT`].
    pub fn accept(&mut self) -> Ports {
        let (request, _) = self.receive();
        assert_eq!(request.op, Op::Request as u16);
        let ports = Ports {
            host: request.src_port,
            guest: request.dst_port,
        };
        self.send(self.header(ports, Op::Response));
        ports
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits for what another thread brings about.
///
/// # Panics
/// After [`TIMEOUT`].
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
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future of the host on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Reads from `stream`, waiting for data.
///
/// # Errors
/// Those of [`VsockStream::poll_read`].
pub fn read(stream: &VsockStream, buffer: &mut [u8]) -> io::Result<usize> {
    block_on(poll_fn(|cx| stream.poll_read(cx, buffer)))
}

/// Writes all of `data` to `stream`, waiting for space.
///
/// # Errors
/// Those of [`VsockStream::poll_write`].
pub fn write_all(stream: &VsockStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = block_on(poll_fn(|cx| stream.poll_write(cx, data)))?;
        data = &data[written..];
    }
    Ok(())
}
