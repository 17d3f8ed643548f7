//! AF_VSOCK sockets on tokio (vsock(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::poll::{self, PolledFd};

/// Context id of the host (VMADDR_CID_HOST).
const CID_HOST: u32 = 2;
/// Any context id (VMADDR_CID_ANY).
const CID_ANY: u32 = u32::MAX;
/// IOCTL_VM_SOCKETS_GET_LOCAL_CID (linux/vm_sockets.h)
const GET_LOCAL_CID: libc::c_ulong = 0x7b9;
/// SO_VM_SOCKETS_CONNECT_TIMEOUT (linux/vm_sockets.h), on machines whose time has 64 bits.
const CONNECT_TIMEOUT: libc::c_int = 6;
/// How long the host may take to answer a connection, in seconds; the kernel's own two are little on a busy
/// host. Whoever started the guest gives it up after its own limit.
const CONNECT_SECONDS: libc::time_t = 60;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A vsock address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    cid: u32,
    port: u32,
}

impl Address {
    fn raw(self) -> libc::sockaddr_vm {
        // SAFETY: sockaddr_vm is plain data for which zeros are valid.
        let mut raw: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        raw.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
        raw.svm_cid = self.cid;
        raw.svm_port = self.port;
        raw
    }
}

// SAFETY: the closure gets a pointer to a live sockaddr_vm and its true size.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let raw = self.raw();
        let len = SocketAddrLen::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or_default();
        f((&raw const raw).cast(), len)
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Gives the host [`CONNECT_SECONDS`] to answer.
fn be_patient(socket: &OwnedFd) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: CONNECT_SECONDS,
        tv_usec: 0,
    };
    let len = libc::socklen_t::try_from(size_of_val(&time)).unwrap_or_default();
    // SAFETY: the kernel reads `len` bytes of `time`, which has that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const time).cast(),
            len,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether this kernel has AF_VSOCK.
///
/// # Errors
///
/// What socket(2) said when it has not.
pub fn probe() -> io::Result<()> {
    socket().map(drop)
}

/// Whether AF_VSOCK leads to a host.
#[must_use]
pub fn has_host_transport() -> bool {
    let Ok(device) = std::fs::File::open("/dev/vsock") else {
        return false;
    };
    let mut cid = CID_ANY;
    // SAFETY: the kernel writes one u32 into `cid`.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) };
    result == 0 && cid != CID_ANY
}

/// A listening socket that takes connections from the host alone.
#[derive(Debug)]
pub struct VsockListener {
    socket: PolledFd,
}

impl VsockListener {
    /// Listens on `port`. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// What socket(2), bind(2) or listen(2) said.
    pub fn bind(port: u32) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::bind(&socket, &Address { cid: CID_ANY, port })?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self {
            socket: poll::register(socket, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Waits for a connection from the host. One from inside the guest, which
    /// any container can try, is closed at once.
    ///
    /// # Errors
    ///
    /// What accept4(2) said.
    pub async fn accept(&self) -> io::Result<VsockStream> {
        loop {
            let mut ready = self.socket.readable().await?;
            let Ok(accepted) = ready.try_io(|socket| accept(socket.get_ref())) else {
                continue;
            };
            let (socket, cid) = accepted?;
            if cid == CID_HOST {
                return VsockStream::new(socket);
            }
        }
    }
}

fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::accept_with(listener, flags)?;
    let cid = peer_cid(&socket)?;
    Ok((socket, cid))
}

fn peer_cid(socket: &OwnedFd) -> io::Result<u32> {
    let mut peer = Address {
        cid: CID_ANY,
        port: 0,
    }
    .raw();
    let mut len = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes into `peer`, which has that size.
    let result =
        unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut peer).cast(), &raw mut len) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(peer.svm_cid)
    }
}

/// A connected stream.
#[derive(Debug)]
pub struct VsockStream {
    socket: PolledFd,
}

impl VsockStream {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: poll::register(socket, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Connects to a port of the host.
    ///
    /// # Errors
    ///
    /// What connect(2) said.
    pub async fn connect_to_host(port: u32) -> io::Result<Self> {
        let socket = socket()?;
        be_patient(&socket)?;
        match rustix::net::connect(
            &socket,
            &Address {
                cid: CID_HOST,
                port,
            },
        ) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let stream = Self::new(socket)?;
        stream.socket.writable().await?.retain_ready();
        rustix::net::sockopt::socket_error(stream.socket.get_ref())??;
        Ok(stream)
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match guard.try_io(|socket| Ok(rustix::io::read(socket.get_ref(), space)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(context))?;
            let send = |socket: &PolledFd| {
                let flags = rustix::net::SendFlags::NOSIGNAL;
                Ok(rustix::net::send(socket.get_ref(), data, flags)?)
            };
            match guard.try_io(send) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = rustix::net::shutdown(self.socket.get_ref().as_fd(), Shutdown::Write);
        match shut {
            // The peer is gone already: nothing is left to close.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}
