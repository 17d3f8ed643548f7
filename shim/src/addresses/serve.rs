//! Serves a pod's guest on its taps.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::plan::LinkPlan;
use super::services::Services;
use crate::host::LinkSocket;

/// The largest question that is looked at. The longest that clients ask has some hundred bytes.
const FRAME_LEN_MAX: usize = 2048;
/// Questions that are answered at once; a guest that asks more waits.
const BURST: u32 = 32;
/// How long it takes until one more question may be asked.
const REFILL: Duration = Duration::from_millis(50);
/// How often routers are advertised (RFC 4861, 6.2.1: at most every 1800 s).
const ADVERTISE: Duration = Duration::from_secs(600);

/// Answers on all links for as long as `life` takes.
pub async fn serve_during(life: impl Future<Output = ()>, links: Vec<(LinkSocket, LinkPlan)>) {
    tokio::pin!(life);
    tokio::select! {
        () = &mut life => {}
        () = serve(links) => life.await,
    }
}

/// Answers on all links until none can be answered on any more.
async fn serve(links: Vec<(LinkSocket, LinkPlan)>) {
    let mut served = JoinSet::new();
    for (socket, link) in links {
        served.spawn(async move {
            let LinkSocket { interface, fd, .. } = socket;
            if let Err(error) = serve_link(fd, link).await {
                tracing::warn!(%error, interface, "a guest is not told its addresses any more");
            }
        });
    }
    while served.join_next().await.is_some() {}
}

async fn serve_link(socket: OwnedFd, link: LinkPlan) -> io::Result<()> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, which is as long
    // as the `AsyncFd` that owns it.
    let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    let fd = fd.map_err(|failed| failed.into_parts().1)?;
    let mut services = Services::new(link);
    let mut budget = Budget::new(Instant::now());
    let mut advertise = interval(ADVERTISE);
    advertise.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut frame = vec![0; FRAME_LEN_MAX];
    loop {
        let answers = tokio::select! {
            _ = advertise.tick() => services.advertise(),
            len = receive(&fd, &mut frame) => {
                services.answer(frame.get(..len?).unwrap_or_default())
            }
        };
        for answer in &answers {
            transmit(&fd, answer)?;
        }
        // What comes meanwhile waits in the socket's queue, which is bounded, too.
        sleep(budget.take(Instant::now())).await;
    }
}

async fn receive(fd: &AsyncFd<OwnedFd>, frame: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        let received = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?));
        match received {
            // The tap was down for a moment.
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENETDOWN as i32) => {}
            Ok(received) => return received,
            Err(_would_block) => {}
        }
    }
}

/// Sends a frame to the guest. One that its card has no room for, or that is longer than its packets,
/// is lost, as on any link.
fn transmit(fd: &impl AsRawFd, frame: &[u8]) -> io::Result<()> {
    match send(fd.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
        Ok(_)
        | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENETDOWN | Errno::EIO | Errno::EMSGSIZE) => {
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// How much may be asked.
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
        }
    }

    /// Takes one; yields how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        while self.left < BURST && self.refilled + REFILL <= now {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => {
                self.refilled += REFILL;
                self.refilled.saturating_duration_since(now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use podvisor_seed::{Nic, Resolver};

    use super::super::dhcp4::tests::message;
    use super::super::frame::tests::{GUEST, asked4};
    use super::*;

    fn link() -> LinkPlan {
        let nic = Nic {
            name: "eth0".into(),
            mac: GUEST,
            mtu: 1500,
            addresses: ["10.1.0.5/24", "fd00::5/64"]
                .map(|a| a.parse().unwrap())
                .into(),
            routes: Vec::new(),
        };
        LinkPlan::new(&nic, &Resolver::default(), "web", &[])
    }

    #[tokio::test]
    async fn routers_are_told_at_once_and_questions_answered() {
        let (guest, ours) = UnixDatagram::pair().unwrap();
        let socket = LinkSocket {
            interface: "eth0".into(),
            fd: OwnedFd::from(ours),
            neighbours: Vec::new(),
        };
        guest.set_nonblocking(true).unwrap();
        let guest = tokio::net::UnixDatagram::from_std(guest).unwrap();
        let exchange = async {
            let mut frame = [0; FRAME_LEN_MAX];
            guest.recv(&mut frame).await.unwrap();
            assert_eq!(frame[54], 134, "a router advertisement");
            let discover = message(1, [0; 4].into(), &[]);
            guest.send(&asked4(&discover)).await.unwrap();
            guest.recv(&mut frame).await.unwrap();
            assert_eq!(frame[..6], GUEST);
        };
        let exchange = async {
            let answered = tokio::time::timeout(Duration::from_secs(10), exchange);
            answered.await.unwrap();
        };
        serve_during(exchange, vec![(socket, link())]).await;
    }

    #[test]
    fn a_frame_that_is_too_long_for_its_link_is_lost_alone() {
        let (guest, ours) = UnixDatagram::pair().unwrap();
        assert_eq!(
            guest.send(&vec![0; 16 << 20]).unwrap_err().raw_os_error(),
            Some(Errno::EMSGSIZE as i32)
        );
        transmit(&ours, &vec![0; 16 << 20]).unwrap();
        transmit(&ours, b"short").unwrap();
        let mut frame = [0; 8];
        assert_eq!(guest.recv(&mut frame).unwrap(), 5);
    }

    #[test]
    fn who_asks_too_much_waits() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..BURST {
            assert_eq!(budget.take(start), Duration::ZERO);
        }
        assert_eq!(budget.take(start), REFILL);
        assert_eq!(budget.take(start + REFILL), REFILL);
        let later = start + REFILL * 1000;
        for _ in 0..BURST {
            assert_eq!(budget.take(later), Duration::ZERO);
        }
        assert_eq!(budget.take(later), REFILL);
    }
}
