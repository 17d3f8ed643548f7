//! What a tour shows beyond the phases: the pod's kernel beside this machine's, and what the pod
//! occupies before, while and after it runs.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::machine;
use super::narrator::Narrator;
use crate::cri::Cri;
use crate::leftovers::Leftovers;

/// Commands that show what a container sees.
const COMMANDS: [&[&str]; 2] = [&["uname", "-sr"], &["nproc"]];
/// The runtime removes a pod's last traces a moment after it answered.
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_POLL: Duration = Duration::from_millis(100);

/// Counts what pods occupy, three times.
#[derive(Debug)]
pub struct Tour {
    before: Leftovers,
    running: Leftovers,
}

impl Tour {
    /// Counts before the pod is made.
    pub fn begin() -> Result<Self> {
        Ok(Self {
            before: Leftovers::count()?,
            running: Leftovers::default(),
        })
    }

    /// Counts while the pod runs, and looks around in one of its containers.
    pub async fn look_around(
        &mut self,
        cri: &Cri,
        container: (&str, &str),
        narrator: &Narrator,
    ) -> Result<()> {
        self.running = Leftovers::count()?;
        let (name, id) = container;
        for command in COMMANDS {
            let words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
            let began = Instant::now();
            match cri
                .exec_sync(id, &words, Some(Duration::from_secs(60)))
                .await
            {
                Ok(output) => {
                    narrator.phase(
                        &format!("exec in {name}: {}", words.join(" ")),
                        began.elapsed(),
                    );
                    let stdout = String::from_utf8_lossy(&output.stdout);
                    narrator.note(&format!("in the pod: {}", stdout.trim_end()));
                    if command.first() == Some(&"uname") {
                        narrator.note(&format!("this node:  {}", machine::kernel()?));
                    }
                }
                // The image may lack the command, or the container may have ended already.
                Err(error) => narrator.tell(&format!("exec in {name}: {error}")),
            }
        }
        Ok(())
    }

    /// Counts when the pod is gone, and shows the three counts side by side.
    pub async fn end(&self, narrator: &Narrator) -> Result<()> {
        let until = Instant::now() + SETTLE;
        let mut after = Leftovers::count()?;
        while after != self.before && Instant::now() < until {
            tokio::time::sleep(SETTLE_POLL).await;
            after = Leftovers::count()?;
        }
        narrator.tell(if after == self.before {
            "left behind: nothing"
        } else {
            "left behind: see the difference of the first and the last column"
        });
        narrator.note(&format!(
            "{:<20} {:>7} {:>8} {:>6}",
            "", "before", "running", "after"
        ));
        for line in table(&self.before, &self.running, &after) {
            narrator.note(&line);
        }
        Ok(())
    }
}

fn table(before: &Leftovers, running: &Leftovers, after: &Leftovers) -> Vec<String> {
    let columns = before
        .counts()
        .into_iter()
        .zip(running.counts())
        .zip(after.counts());
    columns
        .map(|(((name, before), (_, running)), (_, after))| {
            format!("{name:<20} {before:>7} {running:>8} {after:>6}")
        })
        .collect()
}
