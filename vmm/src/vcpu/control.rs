//! The switch that all processors of a machine obey: run, park, end. Beside what the owner
//! orders there is a reset, for which they park until whoever carries it out is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::config::ResetPolicy;
use crate::event::{EndReason, RestartCause};
use crate::handle::OrderError;

/// What the processors shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

struct State {
    /// What the owner wants.
    order: Order,
    /// A reset that is not done yet; processors park for it whatever the order.
    reset: Option<RestartCause>,
    /// Whether the owner wants it off: then a power-off ends it, whatever its policy.
    ends_when_off: bool,
    /// Threads of processors that are parked.
    parked: usize,
    /// Threads of processors that have not ended.
    alive: usize,
    /// Whether the thread that carries out resets has not ended.
    has_resetter: bool,
    reason: Option<EndReason>,
}

impl State {
    fn effective(&self) -> Order {
        match (self.order, &self.reset) {
            (Order::Run, Some(_)) => Order::Park,
            (order, _) => order,
        }
    }

    fn has_ended(&self) -> bool {
        self.alive == 0 && !self.has_resetter
    }
}

/// Shared by a machine's threads and its owner. It only says what shall be; whoever changes
/// the order also kicks the processors out of guest mode.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Set while processors shall not run, so that a running one need not lock.
    attention: AtomicBool,
    policies: Policies,
}

/// What becomes of a machine that its guest resets or switches off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policies {
    pub(crate) reset: ResetPolicy,
    pub(crate) poweroff: ResetPolicy,
}

impl Policies {
    /// Whether the machine may start over in place.
    pub(crate) fn has_restart(self) -> bool {
        [self.reset, self.poweroff].contains(&ResetPolicy::Restart)
    }

    fn of(self, cause: RestartCause) -> ResetPolicy {
        match cause {
            RestartCause::PowerOff => self.poweroff,
            RestartCause::Guest
            | RestartCause::TripleFault
            | RestartCause::Watchdog
            | RestartCause::Owner => self.reset,
        }
    }
}

impl Control {
    /// A switch for `vcpus` threads, all parked at first. With a [`ResetPolicy::Restart`] one more
    /// thread carries out resets.
    pub(crate) fn new(vcpus: usize, policies: Policies) -> Self {
        let state = State {
            order: Order::Park,
            reset: None,
            ends_when_off: false,
            parked: 0,
            alive: vcpus,
            has_resetter: policies.has_restart(),
            reason: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
            policies,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether processors shall leave guest mode and look.
    pub(crate) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// A thread that shall not run parks here. `true` when it shall run, `false` when it shall
    /// end.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.effective() == Order::Park {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.order == Order::Run
    }

    /// Tells threads what has changed in `state`.
    fn announce(&self, state: &State) {
        self.attention
            .store(state.effective() != Order::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Orders all to run. `false` when the machine has ended.
    pub(crate) fn order_run(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        state.order = Order::Run;
        self.announce(&state);
        true
    }

    /// Orders all to park. `false` when the machine has ended.
    pub(crate) fn order_park(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        state.order = Order::Park;
        self.announce(&state);
        true
    }

    /// Whether the owner wants the machine to stand; an error when it has ended.
    pub(crate) fn is_ordered_to_park(&self) -> Result<bool, OrderError> {
        match self.lock().order {
            Order::Park => Ok(true),
            Order::Run => Ok(false),
            Order::End => Err(OrderError::Ended),
        }
    }

    /// Waits until all threads are parked, and a reset under way is done. `false` when the
    /// machine ended instead.
    pub(crate) fn wait_parked(&self) -> bool {
        let mut state = self.lock();
        while state.order == Order::Park && (state.parked < state.alive || state.reset.is_some()) {
            state = self.wait(state);
        }
        state.order == Order::Park
    }

    /// Whether all threads are parked and stay so until an order.
    pub(crate) fn is_parked(&self) -> bool {
        let state = self.lock();
        state.order == Order::Park && state.parked == state.alive && state.reset.is_none()
    }

    /// Orders all to end; the first reason stays.
    pub(crate) fn order_end(&self, reason: EndReason) {
        let mut state = self.lock();
        state.order = Order::End;
        state.reason.get_or_insert(reason);
        self.announce(&state);
    }

    /// Has the guest's next power-off end the machine also when it would start over.
    pub(crate) fn end_when_off(&self) {
        self.lock().ends_when_off = true;
    }

    /// Orders a reset, or the end of a machine that ends at a reset; `false` when it has ended.
    /// During a reset the first cause stays.
    pub(crate) fn order_reset(&self, cause: RestartCause) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        let policy = match cause {
            RestartCause::PowerOff if state.ends_when_off => ResetPolicy::End,
            cause => self.policies.of(cause),
        };
        match policy {
            ResetPolicy::End => {
                state.order = Order::End;
                state.reason.get_or_insert(cause.into());
            }
            ResetPolicy::Restart => {
                state.reset.get_or_insert(cause);
            }
        }
        self.announce(&state);
        true
    }

    /// Waits for a reset to carry out, with all processors parked. `None` when the machine ends.
    pub(crate) fn wait_reset(&self) -> Option<RestartCause> {
        let mut state = self.lock();
        loop {
            match state.reset {
                _ if state.order == Order::End => return None,
                Some(cause) if state.parked == state.alive => return Some(cause),
                _ => state = self.wait(state),
            }
        }
    }

    /// The reset is done: processors follow the order again.
    pub(crate) fn reset_done(&self) {
        let mut state = self.lock();
        state.reset = None;
        self.announce(&state);
    }

    /// One more thread of a processor, which parks first. `false` when the machine has ended.
    pub(crate) fn admit(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        state.alive += 1;
        true
    }

    /// The thread of a processor ends. The machine's last one gets to refine why the machine
    /// ended, and to report it.
    pub(crate) fn leave(&self, refine: impl FnOnce(EndReason) -> EndReason) -> Option<EndReason> {
        let mut state = self.lock();
        state.alive -= 1;
        self.last_words(state, refine)
    }

    /// As [`Self::leave`], for the thread that carries out resets.
    pub(crate) fn leave_resetter(
        &self,
        refine: impl FnOnce(EndReason) -> EndReason,
    ) -> Option<EndReason> {
        let mut state = self.lock();
        state.has_resetter = false;
        self.last_words(state, refine)
    }

    fn last_words(
        &self,
        mut state: MutexGuard<'_, State>,
        refine: impl FnOnce(EndReason) -> EndReason,
    ) -> Option<EndReason> {
        if !state.has_ended() {
            // Whoever waits for all to park waits for one less.
            self.changed.notify_all();
            return None;
        }
        let reason = refine(state.reason.take().unwrap_or(EndReason::Killed));
        state.reason = Some(reason.clone());
        self.changed.notify_all();
        Some(reason)
    }

    /// Waits until the last thread has ended.
    pub(crate) fn wait_ended(&self) -> EndReason {
        let mut state = self.lock();
        while !state.has_ended() {
            state = self.wait(state);
        }
        state.reason.clone().unwrap_or(EndReason::Killed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const RESTART: Policies = Policies {
        reset: ResetPolicy::Restart,
        poweroff: ResetPolicy::End,
    };

    fn worker(control: &Arc<Control>) -> thread::JoinHandle<Option<EndReason>> {
        let control = Arc::clone(control);
        thread::spawn(move || {
            while control.park() {
                while !control.wants_attention() {
                    thread::yield_now();
                }
            }
            control.leave(|reason| reason)
        })
    }

    #[test]
    fn processors_park_and_run_again_any_number_of_times() {
        let control = Arc::new(Control::new(3, Policies::default()));
        let workers: Vec<_> = (0..3).map(|_| worker(&control)).collect();
        for _ in 0..50 {
            assert!(control.wait_parked());
            assert!(control.is_parked());
            assert!(control.order_run());
            assert!(control.order_park());
        }
        control.order_end(EndReason::Shutdown);
        let reasons: Vec<_> = workers
            .into_iter()
            .filter_map(|w| w.join().unwrap())
            .collect();
        assert_eq!(reasons, [EndReason::Shutdown]);
    }

    #[test]
    fn a_thread_comes_and_goes_while_the_machine_runs() {
        let control = Arc::new(Control::new(1, Policies::default()));
        let first = worker(&control);
        control.order_run();
        assert!(control.admit());
        let second = worker(&control);
        assert!(control.order_park());
        assert!(control.wait_parked());
        assert!(control.order_run());
        // A thread that never parks and leaves while others wait.
        assert!(control.admit());
        let leaving = Arc::clone(&control);
        let third = thread::spawn(move || leaving.leave(|reason| reason));
        assert!(control.order_park());
        assert!(control.wait_parked());
        assert_eq!(third.join().unwrap(), None);
        control.order_end(EndReason::Shutdown);
        assert!(!control.admit());
        assert_eq!(control.wait_ended(), EndReason::Shutdown);
        let reports = [first, second].map(|worker| worker.join().unwrap());
        assert_eq!(reports.iter().flatten().count(), 1);
    }

    #[test]
    fn the_first_reason_stays_and_an_ended_machine_takes_no_order() {
        let control = Arc::new(Control::new(1, Policies::default()));
        let worker = worker(&control);
        assert!(control.order_reset(RestartCause::TripleFault));
        control.order_end(EndReason::Killed);
        assert_eq!(control.wait_ended(), EndReason::TripleFault);
        assert_eq!(worker.join().unwrap(), Some(EndReason::TripleFault));
        assert!(!control.order_run());
        assert!(!control.order_park());
        assert!(!control.wait_parked());
        assert!(!control.order_reset(RestartCause::Owner));
    }

    #[test]
    fn a_machine_that_starts_over_when_it_is_off_ends_once_its_owner_wants_it_off() {
        let control = Control::new(
            0,
            Policies {
                poweroff: ResetPolicy::Restart,
                ..RESTART
            },
        );
        control.order_run();
        assert!(control.order_reset(RestartCause::PowerOff));
        assert_eq!(control.wait_reset(), Some(RestartCause::PowerOff));
        control.reset_done();
        control.end_when_off();
        // A reboot on the way is none of it.
        assert!(control.order_reset(RestartCause::Guest));
        assert_eq!(control.wait_reset(), Some(RestartCause::Guest));
        control.reset_done();
        assert!(control.order_reset(RestartCause::PowerOff));
        assert_eq!(control.wait_reset(), None);
        control.leave_resetter(|reason| reason);
        assert_eq!(control.wait_ended(), EndReason::Shutdown);
    }

    /// Carries out resets until the end; how many those were.
    fn resetter(control: &Arc<Control>) -> thread::JoinHandle<Vec<RestartCause>> {
        let control = Arc::clone(control);
        thread::spawn(move || {
            let mut causes = Vec::new();
            while let Some(cause) = control.wait_reset() {
                causes.push(cause);
                control.reset_done();
            }
            control.leave_resetter(|reason| reason);
            causes
        })
    }

    #[test]
    fn a_reset_parks_all_processors_and_leaves_the_owners_order_as_it_is() {
        let control = Arc::new(Control::new(2, RESTART));
        let workers: Vec<_> = (0..2).map(|_| worker(&control)).collect();
        assert!(control.order_reset(RestartCause::Owner));
        assert_eq!(control.wait_reset(), Some(RestartCause::Owner));
        assert!(!control.is_parked(), "a reset is under way");
        assert!(control.order_run());
        assert!(control.wants_attention(), "not before the reset is done");
        control.reset_done();
        assert!(!control.wants_attention());
        assert!(control.order_park());
        assert!(control.wait_parked());
        assert!(control.order_reset(RestartCause::Guest));
        assert!(control.order_reset(RestartCause::Owner));
        assert_eq!(control.wait_reset(), Some(RestartCause::Guest));
        control.reset_done();
        assert!(control.is_parked(), "a paused machine stays paused");
        control.order_end(EndReason::Killed);
        assert_eq!(control.wait_reset(), None);
        let reports = workers.into_iter().filter_map(|w| w.join().unwrap());
        assert_eq!(reports.count(), 0, "the resetter has not left yet");
        let last = control.leave_resetter(|reason| reason);
        assert_eq!(last, Some(EndReason::Killed));
        assert_eq!(control.wait_ended(), EndReason::Killed);
    }

    #[test]
    fn resets_from_everywhere_are_carried_out_until_the_end() {
        let control = Arc::new(Control::new(3, RESTART));
        let workers: Vec<_> = (0..3).map(|_| worker(&control)).collect();
        let resetter = resetter(&control);
        control.order_run();
        for _ in 0..100 {
            assert!(control.order_reset(RestartCause::TripleFault));
            thread::yield_now();
        }
        while control.lock().reset.is_some() {
            thread::yield_now();
        }
        control.order_end(EndReason::Shutdown);
        assert_eq!(control.wait_ended(), EndReason::Shutdown);
        assert!(!resetter.join().unwrap().is_empty());
        workers.into_iter().for_each(|worker| drop(worker.join()));
    }
}
