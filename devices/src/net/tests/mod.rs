//! The card with a driver at one end and a socket in the tap's place at the other.

mod device;
mod pairs;
mod receive;
mod tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use super::HEADER_LEN;
use super::backend::{NetBackend, Offloads};

/// One frame a datagram, as a tap has one frame a read.
struct Socket {
    socket: UnixDatagram,
    offloads: Mutex<Option<Offloads>>,
    in_use: Mutex<Option<bool>>,
}

impl Socket {
    /// The card's end and the network's.
    fn pair() -> (Arc<Self>, UnixDatagram) {
        let (socket, network) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        network.set_nonblocking(true).unwrap();
        (
            Arc::new(Self {
                socket,
                offloads: Mutex::new(None),
                in_use: Mutex::new(None),
            }),
            network,
        )
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NetBackend for Socket {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn set_in_use(&self, in_use: bool) -> io::Result<()> {
        *self.in_use.lock().unwrap() = Some(in_use);
        Ok(())
    }
}

/// A frame as it goes through the tap: a header with `num_buffers` unset, then `len` bytes
/// that tell their positions.
fn frame(seed: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend((0..len).map(|position| (((seed + position) * 0x9e37) >> 8).to_le_bytes()[0]));
    frame
}
