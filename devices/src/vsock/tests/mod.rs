//! The device from both ends: tasks of the host, and a driver or a scripted guest.

mod closing;
mod device;
mod flow;
mod hostile;
mod opening;
mod script;

use std::task::{Context, Poll, Waker};

use super::testing::GUEST_CID;
use super::{Vsock, VsockConfig, VsockHost};
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

/// Asks once, for tests that know the answer is there.
fn poll_once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}
