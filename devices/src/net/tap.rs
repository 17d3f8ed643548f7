//! Tap devices (Linux, `Documentation/networking/tuntap.rst`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use libc::{Ioctl, c_int, c_short, c_uint, c_ulong};
use thiserror::Error;

use super::HEADER_LEN;
use super::backend::{NetBackend, Offloads};

const DEVICE: &str = "/dev/net/tun";
const _: () = assert!(HEADER_LEN == 12, "what TUNSETVNETHDRSZ is told below");

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// Not a name for an interface.
    #[error("{0:?} is no interface name: 1 to 15 bytes, no slash, colon or white space")]
    Name(String),
    /// The kernel said no.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A tap of the network namespace in which it was opened. It goes away with the last
/// descriptor of it, unless it was there before.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Of a tap with several queues: whether this one is attached.
    attached: Option<Mutex<bool>>,
}

impl Tap {
    /// Creates the tap `name`, or attaches to the persistent one of that name, in the network
    /// namespace of the calling thread. Needs `CAP_NET_ADMIN` there.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_queue(name, false)
    }

    /// Creates a tap with `count` queues (at least one), each as a descriptor of its own. Only the
    /// first is in use until [`NetBackend::set_in_use`] says otherwise.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open_queues(name: &str, count: usize) -> Result<Vec<Self>, TapError> {
        let mut queues = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            let queue = Self::open_queue(name, count > 1)?;
            let in_use = queue.set_in_use(number == 0);
            in_use.map_err(|source| TapError::Host {
                action: "put a queue of the tap out of use",
                source,
            })?;
            queues.push(queue);
        }
        Ok(queues)
    }

    fn open_queue(name: &str, is_one_of_many: bool) -> Result<Self, TapError> {
        let host = |action| move |source| TapError::Host { action, source };
        let mut request = interface_request(name)?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if is_one_of_many {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags =
            c_short::try_from(flags).map_err(|_| TapError::Name(name.to_owned()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(host("open /dev/net/tun"))?;
        let tap = Self {
            file,
            attached: is_one_of_many.then(|| Mutex::new(true)),
        };
        tap.ioctl(libc::TUNSETIFF, &request)
            .map_err(host("create the tap"))?;
        let header_len: c_int = 12;
        tap.ioctl(libc::TUNSETVNETHDRSZ, &header_len)
            .map_err(host("set the header's size"))?;
        let little_endian: c_int = 1;
        tap.ioctl(libc::TUNSETVNETLE, &little_endian)
            .map_err(host("set the header's order"))?;
        Ok(tap)
    }

    /// A request that reads `argument`.
    fn ioctl<T>(&self, request: Ioctl, argument: &T) -> io::Result<()> {
        // SAFETY: all requests made here read one value of the type they are given, and
        // `argument` is one.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn interface_request(name: &str) -> Result<libc::ifreq, TapError> {
    let invalid = |byte: u8| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace();
    let len_fits = (1..libc::IFNAMSIZ).contains(&name.len());
    if !len_fits || name == "." || name == ".." || name.bytes().any(invalid) {
        return Err(TapError::Name(name.to_owned()));
    }
    // SAFETY: `ifreq` is made of integers, and for all its members zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetBackend for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags: [(bool, c_uint); 4] = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
        ];
        let set = flags.iter().filter(|(wanted, _)| *wanted);
        let flags = set.fold(0, |flags, (_, flag)| flags | c_ulong::from(*flag));
        // SAFETY: TUNSETOFFLOAD takes its flags by value and touches no memory of ours.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn set_in_use(&self, in_use: bool) -> io::Result<()> {
        let Some(attached) = &self.attached else {
            return Ok(());
        };
        let mut attached = attached.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel refuses what is so already.
        if *attached != in_use {
            let flag = if in_use {
                libc::IFF_ATTACH_QUEUE
            } else {
                libc::IFF_DETACH_QUEUE
            };
            // SAFETY: `ifreq` is made of integers, and for all its members zero is a value.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            request.ifr_ifru.ifru_flags = c_short::try_from(flag).map_err(io::Error::other)?;
            self.ioctl(libc::TUNSETQUEUE, &request)?;
            *attached = in_use;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        for name in ["", "a/b", "a:b", "a b", "..", "0123456789abcdef", "nul\0"] {
            assert!(
                matches!(interface_request(name), Err(TapError::Name(_))),
                "{name:?}"
            );
        }
        let request = interface_request("tap0").unwrap();
        let name: Vec<u8> = request
            .ifr_name
            .iter()
            .map(|byte| byte.cast_unsigned())
            .collect();
        assert_eq!(name[..5], *b"tap0\0");
    }
}
