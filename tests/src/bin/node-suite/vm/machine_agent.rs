//! The agent as a service of a machine, without a pod: it runs processes in the machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podvisor_proto::agent::v1::boot_source::Kind as BootFrom;
use podvisor_proto::agent::v1::event::Kind;
use podvisor_proto::agent::v1::{
    AgentClient, CreateContainerRequest, CreateExecRequest, DeleteProcessRequest, GuestKind,
    NextEventsRequest, ProcessExited, SandboxStatsRequest, ShutdownRequest, SignalProcessRequest,
    StartProcessRequest, Stdio,
};
use podvisor_proto::ttrpc::{Code, Status};
use podvisor_tests::vsock;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::boot_disk::{self, Layout};
use super::boot_stage::BootStage;
use super::long;
use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![long("vm_machine_agent_runs_processes", processes)]
}

const EXTLINUX: &[u8] = b"LABEL only\nLINUX /boot/vmlinuz-6\nAPPEND root=/dev/vda1 rw\n";
const PASSWD: &[u8] = b"root:x:0:0:root:/:/bin/sh\nanna:x:1000:1000::/tmp:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:anna\n";
/// Starts the agent twice: the second one leaves the first alone.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
trap 'poweroff -f' USR2
podvisor-agent machine &
sleep 3
podvisor-agent machine; echo \"second: $?\" > /dev/kmsg
while true; do sleep 1; done
";

/// A machine with the agent in it.
struct Machine {
    stage: BootStage,
    agent: AgentClient,
    events: u64,
}

impl Machine {
    fn boot(disk: &std::path::Path) -> Result<Self> {
        let stage = BootStage::start(&[("root", disk)])?;
        let agent = stage.agent(GuestKind::BootStage)?;
        stage.boot(&agent, BootFrom::DiskSerial("root".to_owned()))?;
        stage.jump(&agent);
        let agent = stage.agent(GuestKind::Machine)?;
        let events = 0;
        Ok(Self {
            stage,
            agent,
            events,
        })
    }

    /// Creates a process; its standard output or terminal is what it says.
    fn create(&self, id: &str, args: &[&str], uid: u32, terminal: bool) -> Result<vsock::Stream> {
        let process = json!({
            "user": {"uid": uid, "gid": uid}, "args": args, "cwd": "/",
            // What was meant for a container does not bind a machine.
            "capabilities": {}, "noNewPrivileges": true,
        });
        let stdio = Stdio {
            stdin: terminal,
            stdout: true,
            terminal,
            rows: 30,
            columns: 100,
            ..Stdio::default()
        };
        let request = CreateExecRequest {
            container_id: "machine".to_owned(),
            exec_id: id.to_owned(),
            process_json: serde_json::to_vec(&process)?,
            stdio: Some(stdio),
        };
        let open = async {
            let created = self.agent.create_exec(request).await?;
            let tokens = created.streams.context("no streams")?;
            if terminal {
                let mut stdin = vsock::stream(&self.stage.host, &tokens.stdin).await?;
                stdin
                    .write_all(b"echo $((6 * 7)); stty size; exit 5\n")
                    .await?;
                // The terminal's input stays open for as long as the machine.
                std::mem::forget(stdin);
            }
            vsock::stream(&self.stage.host, &tokens.stdout).await
        };
        self.stage.runtime.block_on(open)
    }

    fn start(&self, id: &str) -> std::result::Result<u32, Status> {
        let request = StartProcessRequest {
            container_id: "machine".to_owned(),
            exec_id: id.to_owned(),
        };
        let started = self
            .stage
            .runtime
            .block_on(self.agent.start_process(request));
        started.map(|response| response.pid)
    }

    /// Runs a process to its end: what it said, and its status.
    fn run(&mut self, id: &str, args: &[&str], uid: u32, terminal: bool) -> Result<(String, u32)> {
        let mut output = self.create(id, args, uid, terminal)?;
        self.start(id)?;
        let mut said = String::new();
        self.stage
            .runtime
            .block_on(output.read_to_string(&mut said))?;
        let exited = self.next_exit()?;
        ensure!(exited.exec_id == id, "{exited:?}");
        let request = DeleteProcessRequest {
            container_id: "machine".to_owned(),
            exec_id: id.to_owned(),
        };
        self.stage
            .runtime
            .block_on(self.agent.delete_process(request))?;
        Ok((said, exited.exit_status))
    }

    fn next_exit(&mut self) -> Result<ProcessExited> {
        let request = NextEventsRequest { after: self.events };
        let events = self
            .stage
            .runtime
            .block_on(self.agent.next_events(request))?
            .events;
        let first = events.into_iter().next().context("no event")?;
        self.events = first.sequence;
        match first.kind {
            Some(Kind::Exited(exited)) => Ok(exited),
            other => bail!("{other:?}"),
        }
    }
}

fn processes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let layout = Layout {
        files: &[
            ("boot/extlinux.conf", EXTLINUX),
            ("etc/passwd", PASSWD),
            ("etc/group", GROUP),
        ],
        init: Some(INIT),
        programs: &["podvisor-agent"],
        ..Layout::default()
    };
    let disk = boot_disk::write(folder.path(), "root", &layout)?;
    let mut machine = Machine::boot(&disk)?;
    // In the machine's own namespaces, with all of root's capabilities and a login's environment.
    let script = "[ $(readlink /proc/self/ns/pid) = $(readlink /proc/1/ns/pid) ] && echo same; \
        grep CapEff /proc/self/status | tr -d '\\t'; echo $HOME $USER $PATH; exit 3";
    let (said, status) = machine.run("root", &["sh", "-c", script], 0, false)?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = format!("same\nCapEff:000001ffffffffff\n/ root {path}\n");
    ensure!(
        (said.as_str(), status) == (&*expected, 3),
        "{said:?} {status}"
    );
    let script = "id -u; grep Groups /proc/self/status | tr -d '\\t'; echo $HOME";
    let (said, status) = machine.run("anna", &["sh", "-c", script], 1000, false)?;
    let expected = "1000\nGroups:10 \n/tmp\n";
    ensure!(
        (said.as_str(), status) == (expected, 0),
        "{said:?} {status}"
    );
    let (said, status) = machine.run("terminal", &["sh"], 0, true)?;
    ensure!(
        said.contains("42\r\n30 100\r\n") && status == 5,
        "{said:?} {status}"
    );
    refusals(&mut machine)?;
    machine.stage.guest.line("second: 0")?;
    let shutdown = machine.agent.shutdown(ShutdownRequest {});
    machine.stage.runtime.block_on(shutdown)?;
    machine.stage.guest.shutdown()
}

fn refusals(machine: &mut Machine) -> Result<()> {
    let _output = machine.create("missing", &["no-such-command"], 0, false)?;
    let asked = Instant::now();
    let missing = machine.start("missing");
    ensure!(
        matches!(&missing, Err(status) if status.code() == Code::NotFound),
        "{missing:?}"
    );
    ensure!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    machine.next_exit()?;
    let _output = machine.create("sleep", &["sleep", "1000"], 0, false)?;
    machine.start("sleep")?;
    let agent = machine.agent.clone();
    let calls = async {
        let signal = SignalProcessRequest {
            container_id: "machine".to_owned(),
            exec_id: "sleep".to_owned(),
            signal: 9,
            all: true,
        };
        agent.signal_process(signal.clone()).await?;
        let init = SignalProcessRequest {
            exec_id: String::new(),
            ..signal
        };
        let of_init = agent.signal_process(init).await;
        let container = agent
            .create_container(CreateContainerRequest::default())
            .await;
        for refused in [of_init.map(drop), container.map(drop)] {
            ensure!(
                matches!(&refused, Err(status) if status.code() == Code::FailedPrecondition),
                "{refused:?}"
            );
        }
        let stats = agent.sandbox_stats(SandboxStatsRequest {}).await?;
        ensure!(stats.memory_total_bytes > 100 << 20, "{stats:?}");
        Ok(())
    };
    machine.stage.runtime.block_on(calls)?;
    let killed = machine.next_exit()?;
    ensure!(killed.exit_status == 137, "{killed:?}");
    Ok(())
}
