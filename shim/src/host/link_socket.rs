//! A packet socket on a tap (packet(7)): through it a guest's questions for its address are read
//! before traffic control redirects anything, and answered to the guest alone.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, sock_filter, sock_fprog, socklen_t};
use thiserror::Error;

use crate::addresses::Neighbour;

/// A tap's socket, and what else its guest's services have to know of the namespace.
#[derive(Debug)]
pub struct LinkSocket {
    /// The interface beside the tap.
    pub interface: String,
    /// The socket.
    pub fd: OwnedFd,
    /// Gateways whose link-local address is not known, with their hardware address.
    pub neighbours: Vec<Neighbour>,
}

/// Why there is no socket.
#[derive(Debug, Error)]
#[error("cannot {action}")]
pub struct LinkSocketError {
    action: &'static str,
    source: io::Error,
}

/// Opens a socket on the interface with this index, in the calling thread's network namespace.
pub(super) fn open(interface: u32) -> Result<OwnedFd, LinkSocketError> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes three numbers. Without a protocol nothing is received yet.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(failed("open a packet socket"));
    }
    // SAFETY: socket(2) has just made this descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let filter = filter();
    let program = sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or_default(),
        filter: filter.as_ptr().cast_mut(),
    };
    set_option(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
        .map_err(|()| failed("filter a packet socket"))?;
    // What goes to the guest is not for us, and would be much.
    let yes: c_int = 1;
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &yes)
        .map_err(|()| failed("leave out what a guest receives"))?;
    bind(&fd, interface).map_err(|()| failed("bind a packet socket"))?;
    Ok(fd)
}

fn failed(action: &'static str) -> LinkSocketError {
    LinkSocketError {
        action,
        source: io::Error::last_os_error(),
    }
}

fn set_option<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> Result<(), ()> {
    let len = socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the options set here read one `T` each, which `value` is for the whole call; a filter
    // program's instructions, which it points to, outlive the call as well, and are only read.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    if set == 0 { Ok(()) } else { Err(()) }
}

fn bind(fd: &OwnedFd, interface: u32) -> Result<(), ()> {
    // SAFETY: `sockaddr_ll` is made of integers, and for all of them zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    // Sockets for one protocol are asked after traffic control, those for all before it
    // (`__netif_receive_skb_core`).
    let all = u16::try_from(libc::ETH_P_ALL).unwrap_or_default();
    address.sll_protocol = all.to_be();
    address.sll_ifindex = interface.cast_signed();
    let len = socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: `address` is a link-level address of the length that is passed along.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if bound == 0 { Ok(()) } else { Err(()) }
}

/// The program (Documentation/networking/filter.rst): DHCP, DHCPv6, and solicitations for routers and
/// neighbours are taken, all else is not. Offsets count from the Ethernet header.
fn filter() -> [sock_filter; 20] {
    const LOAD_HALF: u16 = 0x28; // A = two bytes at k
    const LOAD_BYTE: u16 = 0x30; // A = the byte at k
    const LOAD_HALF_AT: u16 = 0x48; // A = two bytes at X + k
    const HEADER_LEN: u16 = 0xb1; // X = 4 * (the byte at k & 15)
    const IF_EQUAL: u16 = 0x15; // A == k ? skip jt : skip jf
    const IF_ANY: u16 = 0x45; // A & k ? skip jt : skip jf
    const RETURN: u16 = 0x06;
    /// The longest question that is looked at.
    const TAKE: u32 = 2048;
    let step = |code, k| sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let branch = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    [
        step(LOAD_HALF, 12),            //  0: the protocol
        branch(IF_EQUAL, 0x0800, 0, 7), //  1: IPv4, or to 9
        step(LOAD_BYTE, 23),            //  2: what is in it
        branch(IF_EQUAL, 17, 0, 14),    //  3: UDP, or to 18
        step(LOAD_HALF, 20),            //  4: its place in a packet
        branch(IF_ANY, 0x1fff, 12, 0),  //  5: the first piece, or to 18
        step(HEADER_LEN, 14),           //  6: of IPv4
        step(LOAD_HALF_AT, 16),         //  7: the port
        branch(IF_EQUAL, 67, 10, 9),    //  8: DHCP to 19, or to 18
        branch(IF_EQUAL, 0x86dd, 0, 8), //  9: IPv6, or to 18
        step(LOAD_BYTE, 20),            // 10: what is in it
        branch(IF_EQUAL, 17, 0, 2),     // 11: UDP, or to 14
        step(LOAD_HALF, 56),            // 12: the port
        branch(IF_EQUAL, 547, 5, 4),    // 13: DHCPv6 to 19, or to 18
        branch(IF_EQUAL, 58, 0, 3),     // 14: ICMPv6, or to 18
        step(LOAD_BYTE, 54),            // 15: its type
        branch(IF_EQUAL, 133, 2, 0),    // 16: for routers to 19
        branch(IF_EQUAL, 135, 1, 0),    // 17: for neighbours to 19
        step(RETURN, 0),                // 18
        step(RETURN, TAKE),             // 19
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{MsgFlags, recv, send};
    use podvisor_devices::net::Tap;

    use super::super::redirect;
    use super::super::route_socket::RouteSocket;
    use super::*;

    /// What a tap puts before each frame (`struct virtio_net_hdr_mrg_rxbuf`).
    const HEADER: [u8; 12] = [0; 12];

    fn frame(protocol: u16, at: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = vec![0; 80];
        frame[..6].fill(0xff);
        frame[6] = 2;
        frame[12..14].copy_from_slice(&protocol.to_be_bytes());
        for (place, byte) in at {
            frame[*place] = *byte;
        }
        frame
    }

    /// A DHCP question with options in its IP header.
    fn dhcp4() -> Vec<u8> {
        frame(0x0800, &[(14, 0x46), (23, 17), (41, 67)])
    }

    #[test]
    fn questions_are_read_from_a_tap_and_answers_written_to_it() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut socket = RouteSocket::open().unwrap();
            let tap = Tap::open("pvtap0").unwrap();
            redirect::bring_up(&mut socket, "pvtap0", 1500).unwrap();
            let index = redirect::index_of(&mut socket, "pvtap0").unwrap();
            let link = open(index).unwrap();
            let mut guest = std::fs::File::from(tap.as_fd().try_clone_to_owned().unwrap());
            let mut say = |frame: &[u8]| guest.write_all(&[&HEADER, frame].concat()).unwrap();
            say(&frame(0x0806, &[]));
            say(&frame(0x0800, &[(14, 0x45), (23, 6), (37, 67)]));
            say(&frame(0x0800, &[(14, 0x45), (21, 1), (23, 17), (37, 67)]));
            say(&frame(0x86dd, &[(20, 58), (54, 136)]));
            let asked = [
                dhcp4(),
                frame(0x86dd, &[(20, 17), (56, 2), (57, 35)]),
                frame(0x86dd, &[(20, 58), (54, 133)]),
                frame(0x86dd, &[(20, 58), (54, 135)]),
            ];
            for question in &asked {
                say(question);
            }
            let mut read = [0; 2048];
            let mut hear = || {
                let len = recv(link.as_raw_fd(), &mut read, MsgFlags::MSG_DONTWAIT)?;
                Ok::<_, nix::Error>(read[..len].to_vec())
            };
            for question in asked {
                assert_eq!(hear(), Ok(question));
            }
            let answer = dhcp4();
            send(link.as_raw_fd(), &answer, MsgFlags::empty()).unwrap();
            // What goes to the guest is no question.
            assert_eq!(hear(), Err(nix::Error::EAGAIN));
            let mut heard = [0; 2048];
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            loop {
                // The namespace's own neighbour discovery may be heard as well.
                match guest.read(&mut heard) {
                    Ok(len) if heard[12..len] == answer[..] => break,
                    _ => assert!(std::time::Instant::now() < deadline, "no answer"),
                }
            }
        });
        thread.join().unwrap();
    }
}
