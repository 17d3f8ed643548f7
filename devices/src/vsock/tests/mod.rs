//! The device from both ends: tasks of the host, and a driver or a scripted guest.

mod closing;
mod device;
mod flow;
mod hostile;
mod opening;
mod script;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::testing::GUEST_CID;
use super::{Vsock, VsockConfig, VsockHost, VsockStream};
use crate::event_loop::EventLoop;

const READY_PORT: u32 = 1024;

fn device() -> (Vsock, VsockHost) {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    Vsock::new(
        VsockConfig {
            guest_cid: GUEST_CID,
            ready_port: READY_PORT,
        },
        io,
    )
    .unwrap()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Asks once, for tests that know the answer is there.
fn poll_once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

fn read(stream: &VsockStream, buffer: &mut [u8]) -> io::Result<usize> {
    block_on(poll_fn(|cx| stream.poll_read(cx, buffer)))
}

fn write_all(stream: &VsockStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = block_on(poll_fn(|cx| stream.poll_write(cx, data)))?;
        data = &data[written..];
    }
    Ok(())
}
