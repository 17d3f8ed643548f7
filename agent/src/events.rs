//! What happened in the guest, kept in order until the shim has it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use podvisor_proto::agent::v1::event::Kind;
use podvisor_proto::agent::v1::{Event, OutOfMemory, ProcessExited};
use tokio::sync::Notify;

/// Events sent in one answer, which keeps it far below a message's limit.
const MAX_ANSWER: usize = 1024;

/// The log.
#[derive(Debug, Default)]
pub struct EventLog {
    kept: Mutex<Kept>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Event>,
}

impl EventLog {
    /// Appends the end of a process.
    pub fn push_exit(&self, exited: ProcessExited) {
        self.push(Kind::Exited(exited));
    }

    /// Appends that a container ran out of memory, unless that is the last thing
    /// the shim has yet to hear of it: a container can bring this about at will.
    pub fn push_out_of_memory(&self, container_id: &str) {
        let repeated = self.kept().events.iter().any(|event| match &event.kind {
            Some(Kind::OutOfMemory(known)) => known.container_id == container_id,
            Some(Kind::Exited(_)) | None => false,
        });
        if !repeated {
            self.push(Kind::OutOfMemory(OutOfMemory {
                container_id: container_id.to_owned(),
            }));
        }
    }

    /// Forgets what came up to `after`, then waits for at least one later event.
    pub async fn next(&self, after: u64) -> Vec<Event> {
        loop {
            // Registered before the look, so that no push falls between.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let events = self.take(after);
            if !events.is_empty() {
                return events;
            }
            news.await;
        }
    }

    fn take(&self, after: u64) -> Vec<Event> {
        let mut kept = self.kept();
        while kept
            .events
            .front()
            .is_some_and(|event| event.sequence <= after)
        {
            kept.events.pop_front();
        }
        kept.events.iter().take(MAX_ANSWER).cloned().collect()
    }

    fn push(&self, kind: Kind) {
        let mut kept = self.kept();
        kept.last += 1;
        let sequence = kept.last;
        kept.events.push_back(Event {
            sequence,
            kind: Some(kind),
        });
        drop(kept);
        self.news.notify_waiters();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(pid: u32) -> ProcessExited {
        ProcessExited {
            pid,
            ..ProcessExited::default()
        }
    }

    fn sequences(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn events_stay_until_they_are_acknowledged() {
        let log = EventLog::default();
        log.push_exit(exit(1));
        log.push_exit(exit(2));
        assert_eq!(sequences(&log.next(0).await), [1, 2]);
        assert_eq!(sequences(&log.next(0).await), [1, 2]);
        assert_eq!(sequences(&log.next(1).await), [2]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_waiting_call_is_answered_by_the_next_event() {
        let log = std::sync::Arc::new(EventLog::default());
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.next(0).await }
        });
        tokio::task::yield_now().await;
        log.push_exit(exit(7));
        assert_eq!(sequences(&waiting.await.unwrap()), [1]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn running_out_of_memory_again_and_again_is_one_event() {
        let log = EventLog::default();
        log.push_out_of_memory("a");
        log.push_out_of_memory("a");
        log.push_out_of_memory("b");
        assert_eq!(sequences(&log.next(0).await), [1, 2]);
        assert!(log.take(2).is_empty());
        log.push_out_of_memory("a");
        assert_eq!(sequences(&log.next(2).await), [3]);
    }
}
