//! The switch that all processors of a machine obey: run, park, end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::event::EndReason;

/// What the processors shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

struct State {
    order: Order,
    /// Threads that are parked.
    parked: usize,
    /// Threads that have not ended.
    alive: usize,
    reason: Option<EndReason>,
}

/// Shared by a machine's threads and its owner. It only says what shall be; whoever changes
/// the order also kicks the processors out of guest mode.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Set while the order is not to run, so that a running processor need not lock.
    attention: AtomicBool,
}

impl Control {
    /// A switch for `vcpus` threads, all parked at first.
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State {
            order: Order::Park,
            parked: 0,
            alive: vcpus,
            reason: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
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
        while state.order == Order::Park {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.order == Order::Run
    }

    /// Orders all to run. `false` when the machine has ended.
    pub(crate) fn order_run(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        state.order = Order::Run;
        self.attention.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        true
    }

    /// Orders all to park. `false` when the machine has ended.
    pub(crate) fn order_park(&self) -> bool {
        let mut state = self.lock();
        if state.order == Order::End {
            return false;
        }
        state.order = Order::Park;
        self.attention.store(true, Ordering::SeqCst);
        true
    }

    /// Waits until all threads are parked. `false` when the machine ended instead.
    pub(crate) fn wait_parked(&self) -> bool {
        let mut state = self.lock();
        while state.order == Order::Park && state.parked < state.alive {
            state = self.wait(state);
        }
        state.order == Order::Park
    }

    /// Whether all threads are parked and stay so until an order.
    pub(crate) fn is_parked(&self) -> bool {
        let state = self.lock();
        state.order == Order::Park && state.parked == state.alive
    }

    /// Orders all to end; the first reason stays.
    pub(crate) fn order_end(&self, reason: EndReason) {
        let mut state = self.lock();
        state.order = Order::End;
        state.reason.get_or_insert(reason);
        self.attention.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// A thread ends. The last one gets to refine why the machine ended, and to report it.
    pub(crate) fn leave(&self, refine: impl FnOnce(EndReason) -> EndReason) -> Option<EndReason> {
        let mut state = self.lock();
        state.alive -= 1;
        if state.alive > 0 {
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
        while state.alive > 0 {
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
        let control = Arc::new(Control::new(3));
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
    fn the_first_reason_stays_and_an_ended_machine_takes_no_order() {
        let control = Arc::new(Control::new(1));
        let worker = worker(&control);
        control.order_end(EndReason::TripleFault);
        control.order_end(EndReason::Killed);
        assert_eq!(control.wait_ended(), EndReason::TripleFault);
        assert_eq!(worker.join().unwrap(), Some(EndReason::TripleFault));
        assert!(!control.order_run());
        assert!(!control.order_park());
        assert!(!control.wait_parked());
    }
}
