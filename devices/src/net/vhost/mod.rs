//! The host's kernel as the other end of a card's queues (linux/vhost.h): frames move between
//! guest and tap without this process, notifications and interrupts go through event files.

mod handler;
mod requests;

pub(super) use handler::VhostHandler;
pub use requests::START_AND_STOP;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT as _;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use self::requests::{
    GET_FEATURES, GET_VRING_BASE, MemoryTable, NET_SET_BACKEND, SET_FEATURES, SET_MEM_TABLE,
    SET_OWNER, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK,
    SET_VRING_NUM, VringAddresses, VringValue,
};
use crate::virtio::QueueHandle;

const DEVICE: &str = "/dev/vhost-net";

/// What the kernel must be able to do so that a driver sees the same card as without it. All
/// other features of a card are the tap's, or only numbers in its configuration.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The descriptor that is none.
const NO_FILE: u32 = u32::MAX;

/// The kernel's worker for one pair of a card's queues: a thread of this process, which ends with the
/// last descriptor of it.
#[derive(Debug)]
pub struct VhostNet {
    file: File,
    error: EventFd,
}

impl VhostNet {
    /// Starts a worker that has no queues yet.
    ///
    /// # Errors
    /// When the host has no such device, keeps it to itself or knows less than a card needs.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let error = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let vhost = Self { file, error };
        let mut features = 0_u64;
        vhost.request(GET_FEATURES, &mut features)?;
        if features & FEATURES != FEATURES {
            return Err(io::ErrorKind::Unsupported.into());
        }
        vhost.request(SET_OWNER, &mut ())?;
        Ok(vhost)
    }

    /// Tells the memory that the guest has and what its driver accepted.
    fn prepare(&self, memory: &GuestMemoryMmap<()>, driver_features: u64) -> io::Result<()> {
        self.request(SET_FEATURES, &mut (driver_features & FEATURES))?;
        let mut table = MemoryTable::default();
        for region in memory.iter() {
            let start = region.start_addr();
            table.push(start.0, region.len(), host_address(memory, start.0, 1)?)?;
        }
        self.request(SET_MEM_TABLE, &mut table)
    }

    /// Hands a queue of the pair to the worker; `tap` is at its other end and `call` interrupts the guest.
    fn start(
        &self,
        handle: &QueueHandle,
        call: &EventFd,
        memory: &GuestMemoryMmap<()>,
        tap: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let queue = &handle.queue;
        let index = in_pair(handle.index);
        let set = |request, value| self.set(request, index, value).map(drop);
        set(SET_VRING_NUM, queue.size().into())?;
        set(SET_VRING_BASE, queue.next_avail().into())?;
        let size = usize::from(queue.size());
        let mut addresses = VringAddresses {
            index: index.into(),
            descriptors: host_address(memory, queue.desc_table(), 16 * size)?,
            used: host_address(memory, queue.used_ring(), 6 + 8 * size)?,
            available: host_address(memory, queue.avail_ring(), 6 + 2 * size)?,
            ..VringAddresses::default()
        };
        self.request(SET_VRING_ADDR, &mut addresses)?;
        let file = |file: &EventFd| file.as_raw_fd().cast_unsigned();
        set(SET_VRING_ERR, file(&self.error))?;
        set(SET_VRING_CALL, file(call))?;
        set(SET_VRING_KICK, file(&handle.notify))?;
        set(NET_SET_BACKEND, tap.as_raw_fd().cast_unsigned())
    }

    /// Takes a queue back: the worker has finished with guest memory when this returns. Yields
    /// the next entry of the available ring.
    fn stop(&self, index: u16) -> io::Result<u16> {
        let index = in_pair(index);
        self.set(NET_SET_BACKEND, index, NO_FILE)?;
        let next = self.set(GET_VRING_BASE, index, 0)?;
        u16::try_from(next).map_err(io::Error::other)
    }

    fn set(&self, request: u32, index: u16, value: u32) -> io::Result<u32> {
        let mut argument = VringValue {
            index: index.into(),
            value,
        };
        self.request(request, &mut argument)?;
        Ok(argument.value)
    }

    fn request<T>(&self, request: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: every request of this file is made with an argument of the type that its
        // number tells the size of, or with none; the kernel writes no more than it. What the
        // memory table and the rings lead to is guest memory, which the kernel accesses like a
        // device and which `VhostHandler` keeps until the queues are stopped.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request.into(), argument) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A queue's number in its pair: a worker knows of one pair only.
fn in_pair(index: u16) -> u16 {
    index % 2
}

/// Where `len` bytes of guest memory at `address` lie in this process, in one piece.
fn host_address(memory: &GuestMemoryMmap<()>, address: u64, len: usize) -> io::Result<u64> {
    let slice = memory.get_slice(GuestAddress(address), len);
    slice
        .map(|slice| slice.ptr_guard_mut().as_ptr().addr() as u64)
        .map_err(io::Error::other)
}
