//! The devices of the `io` thread without a machine around them: a driver in this process at one
//! end of the queues, the host at the other. What a virtual machine adds to it, exits and
//! interrupts, is not in these figures.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context as _, Result, anyhow};
use podvisor_benches::{Median, print_figure};
use podvisor_devices::event_loop::EventLoop;
use podvisor_devices::net::{MacAddress, Net, NetBackend, NetConfig, Offloads, QueuePair};
use podvisor_devices::virtio::VirtioDevice as _;
use podvisor_devices::virtio::testing::{Buffer, TestDriver};
use podvisor_devices::vsock::packet::{Op, Ports};
use podvisor_devices::vsock::testing::{EVENT_IDX, GUEST_CID, Guest, block_on, read, write_all};
use podvisor_devices::vsock::{RECEIVE_WINDOW, Vsock, VsockConfig, VsockStream};

const ROUNDS: usize = 15;
const STREAM_LEN: usize = 64 << 20;
/// What Linux sends at most in one packet.
const PACKET_LEN: usize = 64 << 10;
const ROUND_TRIPS: u32 = 2000;
const FRAMES: u32 = 20_000;
/// A full Ethernet frame with the header of virtio before it.
const FRAME_LEN: u16 = 12 + 1514;

fn main() -> Result<()> {
    let mut vsock = VsockBench::start()?;
    figure("vsock_to_host", "MB/s", || {
        Ok(STREAM_LEN as f64 / 1e6 / vsock.host_receives()?)
    })?;
    figure("vsock_to_guest", "MB/s", || {
        Ok(STREAM_LEN as f64 / 1e6 / vsock.guest_receives()?)
    })?;
    figure("vsock_round_trip", "us", || {
        Ok(vsock.round_trips()? * 1e6 / f64::from(ROUND_TRIPS))
    })?;
    let mut net = NetBench::start()?;
    figure("net_receive", "ns/frame", || {
        Ok(net.receive()? * 1e9 / f64::from(FRAMES))
    })?;
    figure("net_transmit", "ns/frame", || {
        Ok(net.transmit()? * 1e9 / f64::from(FRAMES))
    })
}

/// Prints the median of all rounds with its bounds.
fn figure(name: &str, unit: &str, mut round: impl FnMut() -> Result<f64>) -> Result<()> {
    let values = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    let median = Median::of(&values).context("too few rounds")?;
    print_figure(&format!("queues.{name}"), median.value, unit);
    print_figure(&format!("queues.{name}_low"), median.low, unit);
    print_figure(&format!("queues.{name}_high"), median.high, unit);
    Ok(())
}

fn io_thread() -> Result<EventLoop> {
    Ok(EventLoop::spawn("bench-io", Box::new(|| Ok(())))?)
}

fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// A connection between a task of the host and a guest.
struct VsockBench {
    _device: Vsock,
    guest: Guest,
    ports: Ports,
    stream: Arc<VsockStream>,
    /// Bytes the guest has sent, and those the host has given credit for again, modulo 2^32.
    sent: u32,
    acknowledged: u32,
}

impl VsockBench {
    fn start() -> Result<Self> {
        let config = VsockConfig {
            guest_cid: GUEST_CID,
            ready_port: 1,
        };
        let (mut device, host) = Vsock::new(config, io_thread()?)?;
        let connecting = host.connect(2);
        let mut guest = Guest::started(&mut device);
        let ports = guest.accept();
        let stream = Arc::new(block_on(connecting)?);
        Ok(Self {
            _device: device,
            guest,
            ports,
            stream,
            sent: 0,
            acknowledged: 0,
        })
    }

    fn host_receives(&mut self) -> Result<f64> {
        let stream = Arc::clone(&self.stream);
        let start = Instant::now();
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; PACKET_LEN];
            let mut rest = STREAM_LEN;
            while rest > 0 {
                rest -= read(&stream, &mut buffer)?;
            }
            io::Result::Ok(())
        });
        let packet = vec![7; PACKET_LEN];
        let packet_len = u32::try_from(PACKET_LEN)?;
        for _ in 0..STREAM_LEN / PACKET_LEN {
            while self.sent.wrapping_sub(self.acknowledged) + packet_len > RECEIVE_WINDOW {
                self.acknowledged = self.guest.receive().0.fwd_cnt;
            }
            self.guest.send_data(self.ports, &packet);
            self.sent = self.sent.wrapping_add(packet_len);
        }
        join(reader)?;
        Ok(seconds(start))
    }

    fn guest_receives(&mut self) -> Result<f64> {
        let stream = Arc::clone(&self.stream);
        let start = Instant::now();
        let writer = thread::spawn(move || {
            let data = vec![7; PACKET_LEN];
            (0..STREAM_LEN / PACKET_LEN).try_for_each(|_| write_all(&stream, &data))
        });
        let mut rest = STREAM_LEN;
        let mut unacknowledged = 0;
        while rest > 0 {
            let (header, data) = self.guest.receive();
            rest -= data.len();
            unacknowledged += data.len();
            let consumed = self.guest.consumed.entry(self.ports).or_default();
            *consumed = consumed.wrapping_add(header.len);
            if unacknowledged >= PACKET_LEN || header.op == Op::CreditRequest as u16 {
                self.guest
                    .send(self.guest.header(self.ports, Op::CreditUpdate));
                unacknowledged = 0;
            }
        }
        join(writer)?;
        Ok(seconds(start))
    }

    fn round_trips(&mut self) -> Result<f64> {
        let stream = Arc::clone(&self.stream);
        let start = Instant::now();
        let host = thread::spawn(move || {
            for _ in 0..ROUND_TRIPS {
                write_all(&stream, b"?")?;
                read(&stream, &mut [0])?;
            }
            io::Result::Ok(())
        });
        for _ in 0..ROUND_TRIPS {
            while self.guest.receive().0.op != Op::Data as u16 {}
            let consumed = self.guest.consumed.entry(self.ports).or_default();
            *consumed = consumed.wrapping_add(1);
            self.guest.send_data(self.ports, b"!");
            self.sent = self.sent.wrapping_add(1);
        }
        join(host)?;
        Ok(seconds(start))
    }
}

fn join(thread: thread::JoinHandle<io::Result<()>>) -> Result<()> {
    Ok(thread
        .join()
        .map_err(|_| anyhow!("the host's task panicked"))??)
}

/// One frame a datagram, as a tap has one frame a read.
struct Socket(UnixDatagram);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl NetBackend for Socket {
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// A card between a driver and a socket in the tap's place.
struct NetBench {
    _card: Net,
    driver: TestDriver,
    network: UnixDatagram,
    buffers: u64,
}

impl NetBench {
    const QUEUE_SIZE: u16 = 256;

    fn start() -> Result<Self> {
        let (socket, network) = UnixDatagram::pair()?;
        socket.set_nonblocking(true)?;
        network.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mac = MacAddress::try_from([2, 0, 0, 0, 0, 1])?;
        let config = NetConfig { mac, mtu: None };
        let mut card = Net::new(
            config,
            vec![QueuePair::new(Arc::new(Socket(socket)))],
            io_thread()?,
        );
        let mut driver = TestDriver::new(16 << 20, &[Self::QUEUE_SIZE; 2]);
        let buffers = driver.allocate(2048 * u64::from(Self::QUEUE_SIZE), 16);
        let features = card.device_features() | EVENT_IDX;
        driver.start(&mut card, features);
        Ok(Self {
            _card: card,
            driver,
            network,
            buffers,
        })
    }

    fn buffer(&self, slot: u32, writable: bool) -> Buffer {
        let len = if writable { 2048 } else { u32::from(FRAME_LEN) };
        Buffer {
            address: self.buffers + 2048 * u64::from(slot),
            len,
            writable,
        }
    }

    fn receive(&mut self) -> Result<f64> {
        let network = self.network.try_clone()?;
        let start = Instant::now();
        let sender = thread::spawn(move || {
            (0..FRAMES).try_for_each(|_| network.send(&[0; FRAME_LEN as usize]).map(|_| ()))
        });
        let (mut posted, mut received) = (0_u32, 0_u32);
        while received < FRAMES {
            while posted < FRAMES && posted - received < u32::from(Self::QUEUE_SIZE) {
                let buffer = self.buffer(posted % u32::from(Self::QUEUE_SIZE), true);
                self.queue(0)?.add(&[buffer]);
                posted += 1;
            }
            self.queue(0)?.kick();
            while self.queue(0)?.used().is_some() {
                received += 1;
            }
            thread::yield_now();
        }
        join(sender)?;
        Ok(seconds(start))
    }

    fn transmit(&mut self) -> Result<f64> {
        let network = self.network.try_clone()?;
        let start = Instant::now();
        let receiver = thread::spawn(move || {
            (0..FRAMES).try_for_each(|_| network.recv(&mut [0; FRAME_LEN as usize]).map(|_| ()))
        });
        let (mut sent, mut done) = (0_u32, 0_u32);
        while done < FRAMES {
            let before = sent;
            while sent < FRAMES && sent - done < u32::from(Self::QUEUE_SIZE) {
                let buffer = self.buffer(sent % u32::from(Self::QUEUE_SIZE), false);
                self.queue(1)?.add(&[buffer]);
                sent += 1;
            }
            if sent > before {
                self.queue(1)?.kick();
            }
            while self.queue(1)?.used().is_some() {
                done += 1;
            }
            thread::yield_now();
        }
        join(receiver)?;
        Ok(seconds(start))
    }

    fn queue(
        &mut self,
        index: usize,
    ) -> Result<&mut podvisor_devices::virtio::testing::DriverQueue> {
        self.driver.queues.get_mut(index).context("no such queue")
    }
}
