//! Telling the host that this agent serves.

use std::time::Duration;

use podvisor_proto::agent::v1::GuestKind;
use tokio::sync::watch;

use crate::serve::send_ready;

/// Pauses between reports that nobody takes: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the host may take from a report to its first call.
const ANSWER: Duration = Duration::from_secs(10);

/// Reports while no connection of the host's is there.
#[derive(Debug)]
pub struct Reporter {
    started_ns: u64,
    connections: watch::Sender<usize>,
}

/// A connection of the host's, for as long as this lives.
#[derive(Debug)]
pub struct Connected(watch::Sender<usize>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Reporter {
    /// Reports an agent that began then.
    #[must_use]
    pub fn new(started_ns: u64) -> Self {
        Self {
            started_ns,
            connections: watch::Sender::new(0),
        }
    }

    /// Counts a connection.
    #[must_use]
    pub fn connected(&self) -> Connected {
        self.connections.send_modify(|count| *count += 1);
        Connected(self.connections.clone())
    }

    /// Reports for ever.
    pub async fn run(&self) {
        let mut connections = self.connections.subscribe();
        let mut pause = FIRST_PAUSE;
        loop {
            // The sender lives as long as this.
            let _ = connections.wait_for(|count| *count == 0).await;
            let sent = send_ready(self.started_ns, GuestKind::Machine).await;
            if sent.is_ok() {
                let answered = connections.wait_for(|count| *count > 0);
                if tokio::time::timeout(ANSWER, answered).await.is_ok() {
                    pause = FIRST_PAUSE;
                    continue;
                }
            }
            // Nobody listens: not yet, or not any more.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_while_it_lives() {
        let reporter = Reporter::new(0);
        let (first, second) = (reporter.connected(), reporter.connected());
        assert_eq!(*reporter.connections.borrow(), 2);
        drop(first);
        drop(second);
        assert_eq!(*reporter.connections.borrow(), 0);
    }
}
