//! The life of a process as a pure table. Every process, a container's init or an exec, and the
//! sandbox itself, which has no process but the same life, goes through it.
//!
//! ```text
//! Creating ─► Created ─► Starting ─► Running ─► Stopped ─► Deleting ─► (gone)
//!                 └──────────┴─────────────────────▲
//! ```

use std::time::SystemTime;

use thiserror::Error;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0..255; 128 + N for signal N.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// The guest prepares it. It may end before that is known.
    Creating {
        /// Its early end.
        ended: Option<Exit>,
    },
    /// It waits to be started.
    Created,
    /// The guest starts it. It may end before that is known.
    Starting {
        /// Its early end.
        ended: Option<Exit>,
    },
    /// It runs.
    Running,
    /// It has ended.
    Stopped(Exit),
    /// It is being deleted; one that never ran has no exit.
    Deleting(Option<Exit>),
}

/// Something that happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// The guest has prepared it.
    Prepared,
    /// containerd wants it to start.
    StartAsked,
    /// The guest has started it.
    Started,
    /// The guest could not start it; counts as this end.
    StartFailed(Exit),
    /// It ended.
    Ended(Exit),
    /// containerd wants it gone.
    DeleteAsked,
}

/// What a process's state does not allow.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// It has not been created yet.
    #[error("the process is being created")]
    NotCreated,
    /// It was started before.
    #[error("the process was started already")]
    StartedBefore,
    /// It runs.
    #[error("the process runs: only one that ended or never started can be deleted")]
    StillRuns,
    /// Its container is paused: what starts in it would wait, with nobody to wait for it.
    #[error("the container is paused: nothing can be started in it until it is resumed")]
    Paused,
    /// It has ended.
    #[error("the process has ended")]
    Ended,
    /// It is being deleted.
    #[error("the process is being deleted")]
    BeingDeleted,
}

impl ProcessState {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`Refusal`] when the state does not allow it; the state stays.
    pub fn after(self, event: ProcessEvent) -> Result<Self, Refusal> {
        use ProcessEvent as Event;
        match (self, event) {
            (Self::Creating { ended: None }, Event::Prepared) => Ok(Self::Created),
            (Self::Starting { ended: None }, Event::Started) => Ok(Self::Running),
            (Self::Creating { ended: Some(exit) }, Event::Prepared)
            | (Self::Starting { ended: Some(exit) }, Event::Started | Event::StartFailed(_))
            | (Self::Starting { ended: None }, Event::StartFailed(exit))
            | (Self::Created | Self::Running, Event::Ended(exit)) => Ok(Self::Stopped(exit)),
            (Self::Creating { ended }, Event::Ended(exit)) => Ok(Self::Creating {
                ended: ended.or(Some(exit)),
            }),
            (Self::Starting { ended }, Event::Ended(exit)) => Ok(Self::Starting {
                ended: ended.or(Some(exit)),
            }),
            // A process ends once: what comes later is an echo.
            (Self::Stopped(_) | Self::Deleting(_), Event::Ended(_)) => Ok(self),
            (Self::Created, Event::StartAsked) => Ok(Self::Starting { ended: None }),
            (Self::Created, Event::DeleteAsked) => Ok(Self::Deleting(None)),
            (Self::Stopped(exit), Event::DeleteAsked) => Ok(Self::Deleting(Some(exit))),
            // What was on its way when the process ended, or was given up, is an echo as well.
            (_, Event::Prepared | Event::Started | Event::StartFailed(_)) => Ok(self),
            (Self::Creating { .. }, Event::StartAsked | Event::DeleteAsked) => {
                Err(Refusal::NotCreated)
            }
            (Self::Starting { .. } | Self::Running, Event::StartAsked) => {
                Err(Refusal::StartedBefore)
            }
            (Self::Starting { .. } | Self::Running, Event::DeleteAsked) => Err(Refusal::StillRuns),
            (Self::Stopped(_), Event::StartAsked) => Err(Refusal::Ended),
            (Self::Deleting(_), Event::StartAsked | Event::DeleteAsked) => {
                Err(Refusal::BeingDeleted)
            }
        }
    }

    /// How it ended, once that is settled.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            Self::Deleting(exit) => exit,
            Self::Creating { .. } | Self::Created | Self::Starting { .. } | Self::Running => None,
        }
    }

    /// Whether a signal makes sense.
    ///
    /// # Errors
    /// [`Refusal`] when not.
    pub fn takes_signals(self) -> Result<(), Refusal> {
        match self {
            Self::Created | Self::Starting { .. } | Self::Running => Ok(()),
            Self::Creating { .. } => Err(Refusal::NotCreated),
            Self::Stopped(_) => Err(Refusal::Ended),
            Self::Deleting(_) => Err(Refusal::BeingDeleted),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const FIRST: Exit = Exit {
        status: 3,
        at: SystemTime::UNIX_EPOCH,
    };

    fn exits() -> impl Strategy<Value = Exit> {
        (0..256_u32, 0..1000_u64).prop_map(|(status, seconds)| Exit {
            status,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }

    fn events() -> impl Strategy<Value = ProcessEvent> {
        prop_oneof![
            Just(ProcessEvent::Prepared),
            Just(ProcessEvent::StartAsked),
            Just(ProcessEvent::Started),
            exits().prop_map(ProcessEvent::StartFailed),
            exits().prop_map(ProcessEvent::Ended),
            Just(ProcessEvent::DeleteAsked),
        ]
    }

    fn run(events: &[ProcessEvent]) -> ProcessState {
        let begin = ProcessState::Creating { ended: None };
        events
            .iter()
            .fold(begin, |state, event| state.after(*event).unwrap_or(state))
    }

    #[test]
    fn the_usual_life() {
        use ProcessEvent as Event;
        let life = [
            Event::Prepared,
            Event::StartAsked,
            Event::Started,
            Event::Ended(FIRST),
        ];
        assert_eq!(run(&life[..1]), ProcessState::Created);
        assert_eq!(run(&life[..3]), ProcessState::Running);
        assert_eq!(run(&life), ProcessState::Stopped(FIRST));
    }

    #[test]
    fn an_end_that_overtakes_its_start_is_kept() {
        use ProcessEvent as Event;
        let state = run(&[Event::Prepared, Event::StartAsked, Event::Ended(FIRST)]);
        assert_eq!(state.exit(), None);
        assert_eq!(
            state.after(Event::Started),
            Ok(ProcessState::Stopped(FIRST))
        );
    }

    #[test]
    fn a_process_that_could_not_start_can_be_deleted() {
        use ProcessEvent as Event;
        let state = run(&[
            Event::Prepared,
            Event::StartAsked,
            Event::StartFailed(FIRST),
        ]);
        assert_eq!(
            state.after(Event::DeleteAsked),
            Ok(ProcessState::Deleting(Some(FIRST)))
        );
    }

    proptest! {
        #[test]
        fn an_exit_once_settled_never_changes(events in prop::collection::vec(events(), 0..12)) {
            let mut state = ProcessState::Creating { ended: None };
            let mut settled = None;
            for event in events {
                state = state.after(event).unwrap_or(state);
                if let Some(exit) = settled {
                    prop_assert_eq!(state.exit(), Some(exit));
                }
                settled = state.exit();
            }
        }

        #[test]
        fn a_running_process_is_never_deleted(events in prop::collection::vec(events(), 0..12)) {
            let state = run(&events);
            if matches!(state, ProcessState::Running | ProcessState::Starting { .. }) {
                prop_assert_eq!(state.after(ProcessEvent::DeleteAsked), Err(Refusal::StillRuns));
            }
        }

        #[test]
        fn an_end_is_never_refused(events in prop::collection::vec(events(), 0..12), exit in exits()) {
            prop_assert!(run(&events).after(ProcessEvent::Ended(exit)).is_ok());
        }
    }
}
