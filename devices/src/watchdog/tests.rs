//! The watchdog as Linux's driver uses it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use proptest::prelude::*;

use super::*;

const BAR: u64 = 0xc010_0000;
const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    watchdog: Watchdog,
    expired: Receiver<()>,
}

impl Fixture {
    fn new(limit: Duration) -> Self {
        let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
        let (sender, expired) = mpsc::channel();
        let on_expiry = Box::new(move || sender.send(()).unwrap_or_default());
        let watchdog = Watchdog::new(limit, io, BAR, on_expiry).unwrap();
        watchdog.write_config(4, &[2, 0]);
        Self { watchdog, expired }
    }

    fn unlock(&self) {
        self.watchdog.write(0x0c, &[0x80, 0]);
        self.watchdog.write(0x0c, &[0x86, 0]);
    }

    fn set_timers(&self, counts: u32) {
        for offset in [0, 4] {
            self.unlock();
            self.watchdog.write(offset, &counts.to_le_bytes());
        }
    }

    fn ping(&self) {
        self.unlock();
        self.watchdog.write(0x0c, &[0, 1]);
    }

    /// As the driver does it, with both timers at `counts` milliseconds.
    fn start(&self, counts: u32) {
        self.watchdog.write_config(0x60, &[3, 0]);
        self.set_timers(counts);
        self.ping();
        self.watchdog.write_config(0x68, &[2]);
    }

    fn word(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.watchdog.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn lock_register(&self) -> u8 {
        let mut data = [0];
        self.watchdog.read_config(0x68, &mut data);
        data[0]
    }

    fn is_quiet_for(&self, ms: u64) -> bool {
        self.expired.recv_timeout(Duration::from_millis(ms)) == Err(RecvTimeoutError::Timeout)
    }
}

#[test]
fn a_driver_finds_it_asleep() {
    let fixture = Fixture::new(SOON);
    let mut id = [0; 4];
    fixture.watchdog.read_config(0, &mut id);
    assert_eq!(id, [0x86, 0x80, 0xab, 0x25]);
    assert_eq!((fixture.lock_register(), fixture.word(0x0c)), (0, 0));
    assert!(
        fixture
            .watchdog
            .shared
            .lock()
            .registers
            .patience()
            .is_none()
    );
}

#[test]
fn it_expires_when_nobody_comes_back_and_tells_the_next_boot() {
    let fixture = Fixture::new(SOON);
    fixture.start(20);
    fixture.expired.recv_timeout(SOON).unwrap();
    assert_eq!(fixture.word(0x0c), 0x200);
    fixture.watchdog.power_on();
    fixture.watchdog.write_config(4, &[2, 0]);
    assert_eq!((fixture.lock_register(), fixture.word(0x0c)), (0, 0x200));
    fixture.unlock();
    fixture.watchdog.write(0x0c, &[0, 3]);
    assert_eq!(fixture.word(0x0c), 0);
    assert!(fixture.is_quiet_for(100), "it sleeps");
}

#[test]
fn pings_keep_it_quiet_and_stopping_ends_it() {
    let fixture = Fixture::new(SOON);
    fixture.start(1000);
    for _ in 0..5 {
        assert!(fixture.is_quiet_for(20));
        fixture.ping();
    }
    fixture.set_timers(50);
    fixture.ping();
    fixture.watchdog.write_config(0x68, &[0]);
    assert_eq!(fixture.lock_register(), 0);
    assert!(fixture.is_quiet_for(300));
}

#[test]
fn the_hosts_limit_is_shorter_than_the_guests_wish() {
    let fixture = Fixture::new(Duration::from_millis(50));
    fixture.start(0xf_ffff);
    fixture.expired.recv_timeout(SOON).unwrap();
}

#[test]
fn a_locked_watchdog_cannot_be_stopped_but_by_a_reset() {
    let fixture = Fixture::new(SOON);
    fixture.start(60_000);
    fixture.watchdog.write_config(0x68, &[3]);
    fixture.watchdog.write_config(0x68, &[0]);
    assert_eq!(fixture.lock_register(), 3);
    fixture.watchdog.power_on();
    assert_eq!(fixture.lock_register(), 0);
}

#[test]
fn registers_behind_the_lock_take_one_write() {
    let fixture = Fixture::new(SOON);
    fixture.watchdog.write(0, &5_u32.to_le_bytes());
    assert_eq!(fixture.word(0), 0xffff);
    fixture.unlock();
    fixture.watchdog.write(0, &5_u32.to_le_bytes());
    fixture.watchdog.write(4, &6_u32.to_le_bytes());
    assert_eq!((fixture.word(0), fixture.word(4)), (5, 0xffff));
}

#[test]
fn it_does_not_count_while_the_machine_is_paused() {
    let fixture = Fixture::new(SOON);
    fixture.start(100);
    fixture.watchdog.pause();
    assert!(fixture.is_quiet_for(400));
    let state = fixture.watchdog.save();
    let other = Fixture::new(SOON);
    other.watchdog.restore(&state).unwrap();
    assert_eq!(other.watchdog.save(), state);
    assert!(other.is_quiet_for(300));
    other.watchdog.resume();
    other.expired.recv_timeout(SOON).unwrap();
    assert!(other.watchdog.restore(b"\xff").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_access_panics(accesses in prop::collection::vec(
        (any::<bool>(), 0_u16..0x80, prop::collection::vec(any::<u8>(), 0..9)), 0..64)) {
        let fixture = Fixture::new(SOON);
        for (config, offset, mut data) in accesses {
            if config {
                fixture.watchdog.write_config(offset, &data);
                fixture.watchdog.read_config(offset, &mut data);
            } else {
                fixture.unlock();
                fixture.watchdog.write(offset.into(), &data);
                fixture.watchdog.read(offset.into(), &mut data);
            }
        }
    }
}
