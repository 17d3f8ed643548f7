//! A guest without a machine: its agent answers over streams in memory.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use podvisor_devices::fs::{ExportError, ExportOptions, Writes};
use podvisor_proto::agent::v1::*;
use podvisor_proto::agent::{AGENT_PORT, FORWARD_PORT, PROTOCOL_VERSION, READY_PORT, STREAM_PORT};
use podvisor_proto::ttrpc::Server;
use podvisor_vmm::{
    EndReason, MemoryPlugError, MemorySize, MemoryState, OrderError, Phase, PinError,
    VcpuPlugError, VcpuState, Vcpus,
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, watch};

use super::fake_agent::FakeAgent;
use crate::guest::disk::{Disk, DiskError};
use crate::guest::{
    Activity, Connecting, LaunchError, Launched, Launcher, Machine, MachinePlan, Stream,
};
use crate::pod::files::PodFiles;

/// What a test can see and steer.
#[derive(Default)]
pub struct Guest {
    pub state: Mutex<State>,
    pub changed: Notify,
    end: Mutex<Option<watch::Sender<Option<EndReason>>>>,
    restart: Mutex<Option<watch::Sender<u64>>>,
    /// The far end of the console.
    pub console: Mutex<Option<DuplexStream>>,
    /// What a machine's port for a guest agent leads to.
    pub qga: Mutex<Option<DuplexStream>>,
}

#[derive(Default)]
pub struct State {
    /// Machines launched so far; whether each was one with a disk of its own.
    pub launched: Vec<bool>,
    /// (container, exec) of all processes.
    pub processes: BTreeSet<(String, String)>,
    pub exports: BTreeSet<String>,
    pub disks: BTreeSet<String>,
    pub mounted: BTreeSet<String>,
    pub redirected: bool,
    /// Where connections to the pod's ports are taken.
    pub listening: Option<SocketAddr>,
    pub oom_score: Option<i64>,
    /// The group that was entered.
    pub cgroup: Option<PathBuf>,
    /// The pod's files that were written.
    pub files: Option<PodFiles>,
    /// What the machine is confined to.
    pub cpus: String,
    pub events: Vec<Event>,
    /// The agent never answers to signals.
    pub deaf: bool,
    /// The agent refuses to make containers, and to connect to services.
    pub refuses: bool,
    /// The agent makes containers and does not say so.
    pub mumbles: bool,
    /// What every process says.
    pub says: String,
    /// The agent never becomes ready.
    pub silent: bool,
    /// Nothing can be booted.
    pub unbootable: bool,
    /// No agent comes up after the boot stage.
    pub agentless: bool,
    /// Boot stages so far.
    pub boots: usize,
    /// Places and sources of a machine's volumes, as often as they were mounted.
    pub volumes: Vec<Vec<(String, String)>>,
    /// How often a copy of a volume was brought up to date.
    pub applied: usize,
    /// What was done to the machine's size, and limits that the agent was told, in order.
    pub sizes: Vec<String>,
    /// Where its processors run.
    pub pinned: Vec<Vec<usize>>,
    /// What the guest has of memory.
    pub memory: Option<MemoryState>,
    /// The guest takes no more memory.
    pub is_full: bool,
}

impl Guest {
    /// Resets the machine.
    pub fn restart(&self) {
        if let Some(restart) = &*self.restart.lock().unwrap() {
            restart.send_modify(|count| *count += 1);
        }
    }

    /// Why the machine that was launched last has ended.
    pub fn ended(&self) -> Option<EndReason> {
        self.end.lock().unwrap().as_ref()?.borrow().clone()
    }

    pub fn end(&self, reason: EndReason) {
        if let Some(end) = &*self.end.lock().unwrap() {
            end.send_if_modified(|ended| {
                let first = ended.is_none();
                ended.get_or_insert(reason);
                first
            });
        }
    }

    pub fn exit(&self, container: &str, exec: &str, exit_status: u32) {
        let mut state = self.state.lock().unwrap();
        let sequence = state.events.len() as u64 + 1;
        let exited = ProcessExited {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            exit_status,
            ..ProcessExited::default()
        };
        let kind = Some(event::Kind::Exited(exited));
        state.events.push(Event { sequence, kind });
        drop(state);
        self.changed.notify_waiters();
    }
}

pub struct FakeLauncher(pub Arc<Guest>);

impl Launcher for FakeLauncher {
    fn launch(&self, plan: MachinePlan) -> Result<Launched, LaunchError> {
        let (end, ended) = watch::channel(None);
        *self.0.end.lock().unwrap() = Some(end);
        let (restart, restarts) = watch::channel(0);
        *self.0.restart.lock().unwrap() = Some(restart);
        let mut state = self.0.state.lock().unwrap();
        state.launched.push(plan.pet.is_some());
        let booted = plan.room.booted.memory.bytes();
        state.memory = Some(MemoryState {
            requested: booted,
            present: booted,
            max: plan.room.most.memory.bytes(),
        });
        drop(state);
        Ok(Launched {
            machine: Arc::new(FakeMachine(Arc::clone(&self.0))),
            ended,
            restarts,
        })
    }
}

struct FakeMachine(Arc<Guest>);

impl Machine for FakeMachine {
    fn stop(&self) {
        self.0.end(EndReason::Killed);
    }

    fn console_tail(&self) -> Vec<u8> {
        b"the last line of the console\r\n".to_vec()
    }

    fn console(&self) -> Stream {
        let (ours, theirs) = tokio::io::duplex(1 << 12);
        *self.0.console.lock().unwrap() = Some(theirs);
        Box::new(ours)
    }

    fn guest_agent_port(&self) -> Option<Stream> {
        Some(Box::new(self.0.qga.lock().unwrap().take()?))
    }

    fn press_power_button(&self) {
        self.0.end(EndReason::Shutdown);
    }

    fn pause(&self) -> Result<(), OrderError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), OrderError> {
        Ok(())
    }

    fn set_vcpus(&self, wanted: Vcpus) -> Result<(), VcpuPlugError> {
        let done = format!("{} vCPUs", wanted.get());
        self.0.state.lock().unwrap().sizes.push(done);
        Ok(())
    }

    fn vcpus(&self) -> VcpuState {
        VcpuState::default()
    }

    fn pin(&self, host_cpus: &[Vec<usize>]) -> Result<(), PinError> {
        let mut state = self.0.state.lock().unwrap();
        state.pinned = host_cpus.to_vec();
        Ok(())
    }

    fn set_memory(&self, wanted: MemorySize) -> Result<(), MemoryPlugError> {
        let mut state = self.0.state.lock().unwrap();
        state.sizes.push(format!("{} MiB", wanted.bytes() >> 20));
        let is_full = state.is_full;
        if let Some(memory) = &mut state.memory {
            memory.requested = wanted.bytes();
            if !is_full {
                memory.present = memory.requested;
            }
        }
        Ok(())
    }

    fn memory(&self) -> Option<MemoryState> {
        self.0.state.lock().unwrap().memory
    }

    fn activity(&self) -> Activity {
        Activity {
            exits: Some(1234),
            packets: 0,
        }
    }

    fn timeline(&self) -> Vec<Phase> {
        Vec::new()
    }

    fn connect(&self, port: u32) -> Connecting {
        let guest = Arc::clone(&self.0);
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            if port == AGENT_PORT {
                let agent = Arc::new(FakeAgent(guest));
                let server = Server::new().with_service(AgentServer::new(agent));
                tokio::spawn(async move { server.serve(theirs).await });
            } else if port == FORWARD_PORT {
                let refuses = guest.state.lock().unwrap().refuses;
                tokio::spawn(echo(theirs, refuses));
            } else if port == STREAM_PORT {
                let said = guest.state.lock().unwrap().says.clone();
                tokio::spawn(say(theirs, said));
            }
            Ok(Box::new(ours) as Stream)
        })
    }

    fn accept_ready(&self) -> Connecting {
        assert_ne!(READY_PORT, AGENT_PORT);
        let silent = self.0.state.lock().unwrap().silent;
        Box::pin(async move {
            if silent {
                return std::future::pending().await;
            }
            let (mut theirs, ours) = tokio::io::duplex(1 << 12);
            let ready = Ready {
                protocol_version: PROTOCOL_VERSION,
                ..Ready::default()
            };
            theirs
                .write_all(&ready.encode_length_delimited_to_vec())
                .await?;
            Ok(Box::new(ours) as Stream)
        })
    }

    fn add_export(&self, name: &str, _: OwnedFd, _: ExportOptions) -> Result<(), ExportError> {
        let new = self.0.state.lock().unwrap().exports.insert(name.to_owned());
        if new {
            Ok(())
        } else {
            Err(ExportError::Exists(name.to_owned()))
        }
    }

    fn allow_writes(&self, _: &str, _: Writes) -> Result<(), ExportError> {
        Ok(())
    }

    fn add_disk(&self, disk: Disk) -> Result<(), DiskError> {
        self.0.state.lock().unwrap().disks.insert(disk.name);
        Ok(())
    }

    fn remove_disk(&self, name: &str) -> Result<(), DiskError> {
        self.0.state.lock().unwrap().disks.remove(name);
        Ok(())
    }

    fn remove_export(&self, name: &str) -> Result<(), ExportError> {
        let there = self.0.state.lock().unwrap().exports.remove(name);
        if there {
            Ok(())
        } else {
            Err(ExportError::Missing(name.to_owned()))
        }
    }
}

/// A stream of a process that says something, and of which the guest does not let go.
async fn say(mut stream: DuplexStream, said: String) -> io::Result<()> {
    stream.write_all(said.as_bytes()).await?;
    std::future::pending().await
}

/// A service that says who was dialled, and then what it was told once it was told everything.
async fn echo(mut stream: DuplexStream, refuses: bool) -> io::Result<()> {
    let mut request = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut request).await?;
    let request = ForwardRequest::decode(request.as_slice())?;
    let error = if refuses { "nobody listens" } else { "" };
    let reply = ForwardReply {
        error: error.to_owned(),
    };
    let reply = reply.encode_length_delimited_to_vec();
    stream.write_all(&reply).await?;
    if refuses {
        return Ok(());
    }
    let mut said = format!("{:?}:{} ", request.address, request.port).into_bytes();
    stream.read_to_end(&mut said).await?;
    stream.write_all(&said).await
}
