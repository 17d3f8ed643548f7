//! Sockets between host and guest (virtio 1.2, 5.10) without a host kernel module: the host's
//! end of every connection is a [`VsockStream`] in this process.
//!
//! ```text
//! guest driver ── queues ── handler ── muxer ── VsockHost, VsockStream ── tasks of the host
//!                          (io thread)  (lock)
//! ```
//!
//! When the guest's driver goes away (reset, pause, end of the machine), every stream ends
//! with `ConnectionReset` after the data it had received. A driver that was only paused or
//! restored is told by a transport reset event that its side of them is gone too.

mod byte_queue;
mod connection;
mod credit;
mod device;
mod handler;
mod host;
mod muxer;
pub mod packet;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use connection::SEND_BUFFER_LEN;
pub use credit::RECEIVE_WINDOW;
pub use device::{Vsock, VsockConfig};
pub use host::{AcceptReady, Connect, VsockHost};
pub use muxer::{MAX_CONNECTIONS, VsockCounters};
pub use stream::VsockStream;

#[cfg(test)]
mod tests;
