//! What follows from the end of a process.

use podvisor_proto::agent::v1::ProcessExited;

use super::Containers;
use super::process::Phase;
use crate::clock;
use crate::reaper::Ended;

impl Containers {
    /// Takes note of an ended child of the agent's: a process of ours becomes an
    /// event, anything else was an orphan and is done with.
    pub fn reaped(&self, ended: Ended) {
        let mut table = self.table();
        let Some(key) = table.pids.remove(&ended.pid) else {
            return;
        };
        let Some(container) = table.containers.get_mut(&key.container_id) else {
            return;
        };
        // A kill for want of memory is told before the end that it caused.
        let kills = container.cgroup.oom_kills();
        if kills > container.oom_kills {
            container.oom_kills = kills;
            self.events.push_out_of_memory(&key.container_id);
        }
        if key.exec_id.is_empty() {
            container.last_metrics = Some(container.cgroup.metrics());
            // Where init shares its pid namespace the kernel leaves the others
            // alive; an empty cgroup takes this as well.
            if let Err(error) = container.cgroup.kill() {
                tracing::warn!(container = key.container_id, error = %crate::error_chain(&error), "kill");
            }
        }
        let Some(process) = container.process_mut(&key.exec_id) else {
            return;
        };
        // The creation's own answer tells of a process that never was.
        let told = process.phase() == Phase::Creating;
        process.advance(Phase::Ended);
        process.handshake = None;
        process.pidfd = None;
        if !told {
            self.events.push_exit(ProcessExited {
                container_id: key.container_id,
                exec_id: key.exec_id,
                exit_status: ended.status,
                exited_at_ns: clock::wall_ns(),
                pid: ended.pid,
            });
        }
        drop(table);
        self.ended.notify_waiters();
    }

    /// Tells of containers in which the kernel killed for want of memory since
    /// the last look.
    pub fn check_memory(&self) {
        for (id, container) in &mut self.table().containers {
            let kills = container.cgroup.oom_kills();
            if kills > container.oom_kills {
                container.oom_kills = kills;
                self.events.push_out_of_memory(id);
            }
        }
    }
}
