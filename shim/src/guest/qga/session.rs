//! The agent of one machine, for all who want something of it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::{Ended, GuestAgent, GuestPid, Program, QgaError};
use crate::guest::Stream;

/// How long an agent may take that is said to be there.
const PROBE: Duration = Duration::from_secs(3);
/// How long it may take for each answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a running program is looked at: at first, and at most.
const POLL: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(500)];

/// The agent at a machine's port, whether it is there or not. It is asked one thing at a time.
pub struct Qga {
    agent: Mutex<GuestAgent<Stream>>,
}

impl Qga {
    /// The agent behind `port`.
    pub fn new(port: Stream) -> Self {
        Self {
            agent: Mutex::new(GuestAgent::new(port, ANSWER)),
        }
    }

    /// Whether it is there: it answers, and at once.
    ///
    /// # Errors
    /// [`QgaError`] when it does not.
    pub async fn probe(&self) -> Result<(), QgaError> {
        let ping = async { self.agent.lock().await.ping().await };
        timeout(PROBE, ping).await.unwrap_or(Err(QgaError::Timeout {
            command: "guest-ping",
            timeout: PROBE,
        }))
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`QgaError`]; the program does not run.
    pub async fn start(&self, program: &Program) -> Result<GuestPid, QgaError> {
        self.agent.lock().await.start(program).await
    }

    /// Waits for a program's end, however long an agent is silent that is there.
    ///
    /// # Errors
    /// [`QgaError`] when its end will not be known.
    pub async fn wait(&self, pid: GuestPid) -> Result<Ended, QgaError> {
        let [mut pause, longest] = POLL;
        loop {
            match self.agent.lock().await.status(pid).await {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) | Err(QgaError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Sends a signal to a program. Agents have no command for it: a shell of the machine does so.
    ///
    /// # Errors
    /// [`QgaError`] when no shell can be started.
    pub async fn signal(&self, pid: GuestPid, signal: u32) -> Result<(), QgaError> {
        let GuestPid(pid) = pid;
        let shell = Program {
            path: "/bin/sh".to_owned(),
            arguments: vec!["-c".to_owned(), format!("kill -{signal} {pid}")],
            ..Program::default()
        };
        let shell = self.start(&shell).await?;
        // Looked at once more, the agent forgets it.
        self.wait(shell).await.map(drop)
    }
}
