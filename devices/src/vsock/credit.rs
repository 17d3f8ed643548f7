//! Credit-based flow control of one connection (virtio 1.2, 5.10.6.3), both ways.
//!
//! Counters run modulo 2^32 as on the wire. The guest is held to what it was told: data beyond
//! it, or acknowledging data it was never sent, is a violation that ends the connection.

use thiserror::Error;

/// Bytes the host holds for a reader that does not read: the most one connection can make us
/// allocate in this direction. Four of the largest packets of Linux (64 KiB).
pub const RECEIVE_WINDOW: u32 = 256 * 1024;
/// The guest hears of freed space when it amounts to this much; smaller amounts ride along
/// with data.
const UPDATE_STEP: u32 = RECEIVE_WINDOW / 4;
/// A guest's window counts up to here: keeps every difference of counters below 2^31, so that
/// before and after can be told apart.
const MAX_PEER_WINDOW: u32 = 1 << 30;

/// The guest broke the rules of flow control.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CreditViolation {
    /// More data than it was given credit for.
    #[error("the guest sent more than its credit")]
    Overrun,
    /// It claims to have consumed what was never sent.
    #[error("the guest acknowledged data that was not sent")]
    FalseAcknowledgement,
}

/// The counters of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    received: u32,
    consumed: u32,
    /// `consumed` as the guest last heard it.
    advertised: u32,
    sent: u32,
    peer_consumed: u32,
    peer_window: u32,
}

impl Credit {
    /// Takes in `len` bytes from the guest.
    ///
    /// # Errors
    /// [`CreditViolation::Overrun`].
    pub fn receive(&mut self, len: u32) -> Result<(), CreditViolation> {
        let outstanding = self.received.wrapping_sub(self.advertised);
        if len > RECEIVE_WINDOW.saturating_sub(outstanding) {
            return Err(CreditViolation::Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// The host's reader took `len` bytes that were received.
    pub fn consume(&mut self, len: u32) {
        self.consumed = self.consumed.wrapping_add(len);
    }

    /// Whether the guest should hear of freed space by a packet of its own.
    pub fn update_due(&self) -> bool {
        self.consumed.wrapping_sub(self.advertised) >= UPDATE_STEP
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is about to reach the guest.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.consumed;
        (RECEIVE_WINDOW, self.consumed)
    }

    /// Takes over `buf_alloc` and `fwd_cnt` of a packet from the guest.
    ///
    /// # Errors
    /// [`CreditViolation::FalseAcknowledgement`].
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditViolation> {
        let unconsumed = self.sent.wrapping_sub(self.peer_consumed);
        let claimed = fwd_cnt.wrapping_sub(self.peer_consumed);
        if claimed <= unconsumed {
            self.peer_consumed = fwd_cnt;
        } else if claimed < 1 << 31 {
            return Err(CreditViolation::FalseAcknowledgement);
        }
        // Otherwise it is older than what we know: Linux fills in headers before it orders
        // them, so two senders on one socket can overtake each other.
        self.peer_window = buf_alloc.min(MAX_PEER_WINDOW);
        Ok(())
    }

    /// Bytes the guest can take now.
    pub fn available(&self) -> u32 {
        self.peer_window
            .saturating_sub(self.sent.wrapping_sub(self.peer_consumed))
    }

    /// `len` bytes go to the guest; at most [`Self::available`].
    pub fn spend(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_whole_window_and_not_a_byte_more() {
        let mut credit = Credit::default();
        assert_eq!(credit.receive(RECEIVE_WINDOW), Ok(()));
        assert_eq!(credit.receive(1), Err(CreditViolation::Overrun));
        credit.consume(UPDATE_STEP);
        assert!(credit.update_due());
        // Freed, but the guest cannot know yet.
        assert_eq!(credit.receive(1), Err(CreditViolation::Overrun));
        assert_eq!(credit.advertise(), (RECEIVE_WINDOW, UPDATE_STEP));
        assert!(!credit.update_due());
        assert_eq!(credit.receive(UPDATE_STEP), Ok(()));
        assert_eq!(credit.receive(1), Err(CreditViolation::Overrun));
    }

    #[test]
    fn acknowledging_what_was_not_sent_is_a_violation() {
        let mut credit = Credit::default();
        credit.update(100, 0).unwrap();
        credit.spend(60);
        assert_eq!(credit.available(), 40);
        assert_eq!(
            credit.update(100, 61),
            Err(CreditViolation::FalseAcknowledgement)
        );
        assert_eq!(credit.update(100, 60), Ok(()));
        assert_eq!(credit.available(), 100);
    }

    #[test]
    fn an_overtaken_acknowledgement_is_ignored() {
        let mut credit = Credit::default();
        credit.update(100, 0).unwrap();
        credit.spend(60);
        credit.update(100, 50).unwrap();
        credit.update(100, 20).unwrap();
        assert_eq!(credit.available(), 90);
    }

    #[test]
    fn a_window_that_shrinks_below_what_is_on_the_way_leaves_no_credit() {
        let mut credit = Credit::default();
        credit.update(u32::MAX, 0).unwrap();
        assert_eq!(credit.available(), MAX_PEER_WINDOW);
        credit.spend(1000);
        credit.update(10, 0).unwrap();
        assert_eq!(credit.available(), 0);
    }

    /// What each side of a fair connection does.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Receive(u32),
        Consume(u32),
        Advertise,
        Send(u32),
        Acknowledge(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = 0..2 * RECEIVE_WINDOW;
        prop_oneof![
            len.clone().prop_map(Step::Receive),
            len.clone().prop_map(Step::Consume),
            Just(Step::Advertise),
            len.clone().prop_map(Step::Send),
            len.prop_map(Step::Acknowledge),
        ]
    }

    proptest! {
        #[test]
        fn a_fair_guest_is_never_at_fault_and_no_window_is_exceeded(
            start in any::<u32>(),
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut credit = Credit {
                received: start, consumed: start, advertised: start,
                sent: start, peer_consumed: start, peer_window: RECEIVE_WINDOW,
            };
            let (mut held, mut guest_free) = (0_u32, RECEIVE_WINDOW);
            let (mut unread, mut freed) = (0_u32, 0_u32);
            let mut acknowledged = start;
            for step in steps {
                match step {
                    Step::Receive(len) => {
                        let fair = len <= guest_free;
                        prop_assert_eq!(credit.receive(len).is_ok(), fair);
                        if fair {
                            held += len;
                            guest_free -= len;
                        }
                    }
                    Step::Consume(len) => {
                        let len = len.min(held);
                        credit.consume(len);
                        held -= len;
                        freed += len;
                    }
                    Step::Advertise => {
                        credit.advertise();
                        guest_free += freed;
                        freed = 0;
                    }
                    Step::Send(len) => {
                        let len = len.min(credit.available());
                        credit.spend(len);
                        unread += len;
                    }
                    Step::Acknowledge(len) => {
                        let fair = len <= unread;
                        let claim = acknowledged.wrapping_add(len);
                        prop_assert_eq!(credit.update(RECEIVE_WINDOW, claim).is_ok(), fair);
                        if fair {
                            acknowledged = claim;
                            unread -= len;
                        }
                    }
                }
                prop_assert!(held <= RECEIVE_WINDOW);
                prop_assert_eq!(credit.available(), RECEIVE_WINDOW - unread);
                // An empty buffer never leaves the guest without credit and without news.
                prop_assert!(held > 0 || guest_free > 0 || credit.update_due());
            }
        }
    }
}
