//! Executions in a machine by QEMU's guest agent, where ours does not answer. The agent takes a
//! command with all of its input and gives its output when it has ended: there is no terminal, and
//! nothing to be seen before.

use std::sync::Arc;

use oci_spec::runtime::Process as OciProcess;
use podvisor_proto::ttrpc::{Code, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::actor::{Actor, GuestState};
use super::create::ExecPlan;
use super::ending::{GUEST_ENDED_STATUS, SIGNAL_STATUS};
use super::error::{TaskError, chain};
use super::process::ProcessEvent;
use super::request::{ProcessId, Reply};
use super::work::{Message, Outbox};
use crate::guest::qga::{Ended, GuestPid, MAX_INPUT_LEN, Program, Qga, QgaError};
use crate::io::{self, NearEnds, Streams};

/// What a login as root sets, of what a command's environment lacks.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
];
const CUT: &str = "podvisor: the guest agent has not kept all of the command's output\n";

/// An execution by the agent.
pub(super) enum ByQga {
    /// It waits to be started.
    Prepared(Box<Prepared>),
    /// It takes signals.
    Running(mpsc::UnboundedSender<u32>),
}

/// An execution that waits to be started.
pub(super) struct Prepared {
    qga: Arc<Qga>,
    program: Program,
    ends: NearEnds,
}

impl Actor {
    /// Makes an execution, if an agent answers.
    pub(super) fn exec_by_qga(&mut self, plan: ExecPlan, reply: Reply<()>) {
        let qga = match &self.guest {
            GuestState::Pet(pet, _) => pet.qga.clone(),
            _ => None,
        };
        let out = self.outbox.clone();
        tokio::spawn(async move {
            let result = prepare(qga, &plan).await;
            let process = plan.process();
            let _ = out.send(Message::QgaPrepared {
                process,
                result,
                reply,
            });
        });
    }

    pub(super) fn qga_prepared(
        &mut self,
        id: &ProcessId,
        result: Result<(Streams, Box<Prepared>), TaskError>,
        reply: Reply<()>,
    ) {
        let result = result.map(|(streams, prepared)| {
            if let Ok(process) = self.tasks.process(id) {
                process.by_qga = Some(ByQga::Prepared(prepared));
            }
            streams
        });
        self.exec_created(id, result, reply);
    }

    /// Starts an execution by the agent; gives the reply back when it is none.
    pub(super) fn start_by_qga(&mut self, id: &ProcessId, reply: Reply<()>) -> Option<Reply<()>> {
        let Some(process) = self.tasks.process(id).ok() else {
            return Some(reply);
        };
        match process.by_qga.take() {
            Some(ByQga::Prepared(prepared)) => {
                let (signals, received) = mpsc::unbounded_channel();
                process.by_qga = Some(ByQga::Running(signals));
                let run = Run {
                    process: id.clone(),
                    reply: Some(reply),
                    out: self.outbox.clone(),
                };
                tokio::spawn(run.follow(*prepared, received));
                None
            }
            other => {
                process.by_qga = other;
                Some(reply)
            }
        }
    }

    /// Whether a process is an execution by the agent; it has got the signal then.
    pub(super) fn signal_by_qga(&mut self, id: &ProcessId, signal: u32) -> bool {
        match self.tasks.process(id).map(|process| &process.by_qga) {
            Ok(Some(ByQga::Running(signals))) => {
                // One that has ended meanwhile takes none.
                let _ = signals.send(signal);
                true
            }
            _ => false,
        }
    }

    pub(super) fn qga_ended(&mut self, id: &ProcessId, status: u32) {
        self.apply(id, ProcessEvent::Ended(Self::exit_now(status)));
    }
}

async fn prepare(
    qga: Option<Arc<Qga>>,
    plan: &ExecPlan,
) -> Result<(Streams, Box<Prepared>), TaskError> {
    let qga = qga.ok_or(TaskError::NoAgent)?;
    qga.probe().await.map_err(TaskError::NoCommands)?;
    if plan.stdio.terminal {
        let why = "qemu-guest-agent runs this machine's commands, and knows no terminals: leave out -t. Our \
                   agent, which cloud-init starts, is not connected";
        return Err(TaskError::Invalid(why.to_owned()));
    }
    let program = program(&plan.process_json)?;
    let (streams, ends) = io::attach_here(&plan.stdio)?;
    let prepared = Prepared { qga, program, ends };
    Ok((streams, Box::new(prepared)))
}

/// The program of an OCI process.
fn program(process_json: &[u8]) -> Result<Program, TaskError> {
    let invalid = |why: &str| TaskError::Invalid(format!("a command by qemu-guest-agent: {why}"));
    let process: OciProcess =
        serde_json::from_slice(process_json).map_err(|error| invalid(&error.to_string()))?;
    if process.user().uid() != 0 {
        let why = format!("it runs as root, not as user {}", process.user().uid());
        return Err(invalid(&why));
    }
    let mut words = process.args().clone().unwrap_or_default().into_iter();
    let path = words.next().ok_or_else(|| invalid("there is none"))?;
    let mut environment = process.env().clone().unwrap_or_default();
    for (name, value) in ENVIRONMENT {
        let is_set = |entry: &String| entry.split_once('=').is_some_and(|(set, _)| set == name);
        if !environment.iter().any(is_set) {
            environment.push(format!("{name}={value}"));
        }
    }
    let cwd = process.cwd().display().to_string();
    let (path, arguments) = if matches!(cwd.as_str(), "" | "/") {
        (path, words.collect())
    } else {
        // The agent runs everything where it runs itself.
        let shell = ["-c", r#"cd "$0" && exec "$@""#, &cwd, &path].map(str::to_owned);
        let arguments = shell.into_iter().chain(words).collect();
        ("/bin/sh".to_owned(), arguments)
    };
    Ok(Program {
        path,
        arguments,
        environment,
        input: Vec::new(),
    })
}

/// An execution from its start to its end.
struct Run {
    process: ProcessId,
    /// Who waits for its start.
    reply: Option<Reply<()>>,
    out: Outbox,
}

impl Run {
    async fn follow(mut self, prepared: Prepared, mut signals: mpsc::UnboundedReceiver<u32>) {
        let Prepared {
            qga,
            mut program,
            ends,
        } = prepared;
        if let Some(stdin) = ends.stdin {
            // Input comes only to what has been started.
            self.started(Ok(()));
            tokio::select! {
                input = collect(stdin) => match input {
                    Ok(input) => program.input = input,
                    Err(error) => return self.failed(&error, ends.stderr),
                },
                Some(signal) = signals.recv() => return self.ended(SIGNAL_STATUS + signal),
            }
        }
        let pid = match qga.start(&program).await {
            Ok(pid) => pid,
            Err(error) => return self.failed(&error, ends.stderr),
        };
        self.started(Ok(()));
        let waiting = qga.wait(pid);
        tokio::pin!(waiting);
        let ended = loop {
            tokio::select! {
                ended = &mut waiting => break ended,
                Some(signal) = signals.recv() => {
                    let kills = signal == libc::SIGKILL.unsigned_abs();
                    tokio::spawn(pass_on(Arc::clone(&qga), pid, signal, kills));
                    // A kill never waits for the guest.
                    if kills {
                        return self.ended(SIGNAL_STATUS + signal);
                    }
                }
            }
        };
        match ended {
            Ok(ended) => self.finish(ended, ends.stdout, ends.stderr),
            Err(error) => self.failed(&error, ends.stderr),
        }
    }

    /// Tells who waits that it runs, or does not.
    fn started(&mut self, result: Result<(), Status>) {
        if let Some(reply) = self.reply.take() {
            let process = self.process.clone();
            let _ = self.out.send(Message::Started {
                process,
                result,
                reply,
            });
        }
    }

    fn finish(self, ended: Ended, stdout: Option<DuplexStream>, stderr: Option<DuplexStream>) {
        let mut error = ended.error;
        if !ended.complete {
            error.extend(CUT.bytes());
        }
        write(stdout, ended.output);
        write(stderr, error);
        // A status has eight bits, whatever the guest says.
        self.ended(ended.code.cast_unsigned() & 0xff);
    }

    fn failed(mut self, error: &QgaError, stderr: Option<DuplexStream>) {
        let (code, status) = match error {
            QgaError::Refused { reason, .. } if reason.contains("No such file") => {
                (Code::NotFound, 127)
            }
            QgaError::Refused { reason, .. } if reason.contains("Permission denied") => {
                (Code::PermissionDenied, 126)
            }
            _ => (Code::Internal, GUEST_ENDED_STATUS),
        };
        if self.reply.is_some() {
            return self.started(Err(Status::new(code, chain(error))));
        }
        write(stderr, format!("podvisor: {}\n", chain(error)).into_bytes());
        self.ended(status);
    }

    fn ended(self, status: u32) {
        let process = self.process;
        let _ = self.out.send(Message::QgaEnded { process, status });
    }
}

/// Reads all of a command's input.
async fn collect(stdin: impl AsyncRead + Unpin) -> Result<Vec<u8>, QgaError> {
    let mut input = Vec::new();
    let most = MAX_INPUT_LEN as u64 + 1;
    stdin.take(most).read_to_end(&mut input).await?;
    if input.len() > MAX_INPUT_LEN {
        return Err(QgaError::Input);
    }
    Ok(input)
}

/// Writes output that nobody is made to wait for.
fn write(to: Option<DuplexStream>, bytes: Vec<u8>) {
    if let Some(mut to) = to {
        tokio::spawn(async move {
            if let Err(error) = to.write_all(&bytes).await {
                tracing::debug!(%error, "a command's output is not taken");
            }
        });
    }
}

/// Passes a signal on; the agent forgets what was killed.
async fn pass_on(qga: Arc<Qga>, pid: GuestPid, signal: u32, kills: bool) {
    let mut sent = qga.signal(pid, signal).await;
    if sent.is_ok() && kills {
        sent = qga.wait(pid).await.map(drop);
    }
    if let Err(error) = sent {
        tracing::warn!(error = chain(&error), signal, "a command in the machine");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(process: &str) -> Result<Program, TaskError> {
        program(process.as_bytes())
    }

    #[test]
    fn a_command_is_what_containerd_asks_for_in_a_roots_environment() {
        let process = r#"{"args": ["ls", "-l"], "env": ["PATH=/bin", "A=b"], "cwd": "/",
            "user": {"uid": 0, "gid": 0}}"#;
        let program = of(process).unwrap();
        assert_eq!(program.path, "ls");
        assert_eq!(program.arguments, ["-l"]);
        let environment = [
            "PATH=/bin",
            "A=b",
            "HOME=/root",
            "USER=root",
            "LOGNAME=root",
        ];
        assert_eq!(program.environment, environment);
    }

    #[test]
    fn a_folder_takes_a_shell_and_no_quoting() {
        let process =
            r#"{"args": ["ls", "a b"], "cwd": "/my $folder", "user": {"uid": 0, "gid": 0}}"#;
        let program = of(process).unwrap();
        assert_eq!(program.path, "/bin/sh");
        assert_eq!(program.arguments[2..], ["/my $folder", "ls", "a b"]);
    }

    #[test]
    fn what_the_agent_cannot_do_is_refused() {
        for process in [
            r#"{"args": ["ls"], "cwd": "/", "user": {"uid": 5, "gid": 0}}"#,
            r#"{"args": [], "cwd": "/", "user": {"uid": 0, "gid": 0}}"#,
        ] {
            assert!(of(process).is_err(), "{process}");
        }
    }
}
