//! A card on a real tap, in a network namespace of the test's own thread.
//!
//! Needs `CAP_SYS_ADMIN`, `CAP_NET_ADMIN` and `/dev/net/tun`, and fails without them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::HEADER_LEN;
use super::super::backend::NetBackend as _;
use super::super::config::{MacAddress, NetConfig};
use super::super::device::{Net, QueuePair};
use super::super::tap::Tap;
use crate::event_loop::EventLoop;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::TestDriver;

const NAME: &str = "tap0";
/// An experimental protocol (IEEE 802), which no stack answers.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

/// The host's end of the tap: a packet socket for [`ETHERTYPE`], the link set up.
fn packet_socket() -> OwnedFd {
    let protocol = u16::from_ne_bytes(ETHERTYPE);
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) });
    // SAFETY: `fd` was just opened, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zero is a value for every member.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
    // SAFETY: the request reads an `ifreq`.
    check(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) });
    let name = CString::new(NAME).unwrap();
    // SAFETY: `name` ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: zero is a value for every member.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = protocol;
    address.sll_ifindex = index.cast_signed();
    let len = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: `address` is a socket address of `len` bytes.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), len) });
    socket
}

fn ethernet_frame(payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &ETHERTYPE, payload].concat()
}

#[test]
fn queues_of_a_tap_come_and_go() {
    // SAFETY: only this test's thread changes its namespace.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
    let queues = Tap::open_queues(NAME, 3).unwrap();
    for in_use in [true, true, false, false, true] {
        queues[1].set_in_use(in_use).unwrap();
    }
    // The only queue of a tap has no such choice.
    let one = Tap::open_queues("tap1", 1).unwrap();
    one[0].set_in_use(false).unwrap();
    one[0].set_in_use(true).unwrap();
}

#[test]
fn frames_go_through_a_real_tap_with_all_offloads() {
    // SAFETY: only this test's thread changes its namespace.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
    let tap = Tap::open(NAME).unwrap();
    let socket = packet_socket();
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let mac = MacAddress::try_from([2, 0, 0, 0, 0, 1]).unwrap();
    let mut card = Net::new(
        NetConfig { mac, mtu: None },
        vec![QueuePair::new(Arc::new(tap))],
        io,
    );
    let mut driver = TestDriver::new(16 << 20, &[64, 64]);
    let features = card.device_features() | 1 << 29;
    driver.start(&mut card, features);

    // Host to guest; the kernel's own frames (router solicitations) may come in between.
    let sent = ethernet_frame(&[7; 100]);
    // SAFETY: `sent` is readable for its length.
    let written = unsafe { libc::write(socket.as_raw_fd(), sent.as_ptr().cast(), sent.len()) };
    assert_eq!(usize::try_from(written).unwrap(), sent.len());
    loop {
        driver.request(0, &[], 2048);
        let received = driver.complete(0);
        assert_eq!(received.writable[10..HEADER_LEN], [1, 0]);
        if received.writable[HEADER_LEN + 12..HEADER_LEN + 14] == ETHERTYPE {
            assert_eq!(received.writable[HEADER_LEN..received.len as usize], sent);
            break;
        }
    }

    // Guest to host.
    let sent = ethernet_frame(&[9; 200]);
    driver.request(1, &[&[0; HEADER_LEN][..], &sent].concat(), 0);
    driver.complete(1);
    let mut buffer = [0_u8; 2048];
    loop {
        std::thread::sleep(Duration::from_millis(1));
        // SAFETY: `buffer` is writable for its length.
        let read =
            unsafe { libc::read(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if buffer[..usize::try_from(read).unwrap()] == sent {
            break;
        }
    }
    // A header that contradicts its frame is the frame's loss only.
    let nonsense = [[0xff; HEADER_LEN].as_slice(), &sent].concat();
    driver.request(1, &nonsense, 0);
    driver.complete(1);
    assert_eq!(card.metrics().transmit_drops.load(Ordering::Relaxed), 1);
    assert!(driver.interrupt.seen().needs_reset.is_empty());
}
