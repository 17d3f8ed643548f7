//! Ctrl-C and SIGTERM end the pod as its deletion would: a stop signal, a grace period, SIGKILL. A
//! second signal ends the grace period.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::narrator::Narrator;
use super::pod::Pod;

/// The signals that end a pod.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From here on these signals do not end this process.
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Does `work` to its end, so that what it makes is known and can be removed; answers the number
    /// of a signal that came meanwhile. A second signal gives the work up.
    pub async fn note_during(
        &mut self,
        work: impl Future<Output = Result<()>>,
        narrator: &Narrator,
    ) -> Result<Option<i32>> {
        let mut work = pin!(work);
        let number = tokio::select! {
            result = &mut work => return result.map(|()| None),
            number = self.next() => number,
        };
        narrator.tell("stopping when the sandbox is ready; another signal gives it up");
        tokio::select! {
            result = &mut work => result.map(|()| Some(number)),
            _ = self.next() => bail!("given up while the sandbox was starting"),
        }
    }

    /// Does `work`; on a signal sets `stopping`, stops the pod's containers, and answers 128 and the
    /// signal's number when the work has ended.
    pub async fn stop_on_signal(
        &mut self,
        work: impl Future<Output = Result<i32>>,
        pod: &Pod<'_>,
        stopping: &Cell<bool>,
        narrator: &Narrator,
    ) -> Result<i32> {
        let mut work = pin!(work);
        let number = tokio::select! {
            result = &mut work => return result,
            number = self.next() => number,
        };
        stopping.set(true);
        let grace = pod.manifest.pod.spec.grace_period_seconds();
        narrator.tell(&format!(
            "stopping; {grace} s of grace, another signal ends them"
        ));
        let stop = async {
            tokio::select! {
                result = pod.stop_containers(grace) => result,
                _ = self.next() => pod.stop_containers(0).await,
            }
        };
        let (worked, stopped) = tokio::join!(work, stop);
        stopped?;
        worked?;
        Ok(128 + number)
    }

    /// The number of the next signal.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
        }
    }
}
