//! The pod's shim itself, addressed over its task service as containerd does: for what CRI
//! offers only through a streaming server.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use podvisor_proto::cgroups::Metrics;
use podvisor_proto::containerd::Any;
use podvisor_proto::containerd::sandbox::{SandboxClient, SandboxMetricsRequest};
use podvisor_proto::containerd::task::{
    CloseIoRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, ResizePtyRequest,
    StartRequest, StateRequest, StateResponse, TaskClient, WaitRequest,
};
use podvisor_proto::containerd::types::Mount;
use podvisor_proto::ttrpc::{Client, Status};
use prost::{Message as _, Name as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::pod::Pod;

const CALL_TIMEOUT: Duration = Duration::from_mins(10);
/// Type URL of an OCI process in JSON (containerd, api/types).
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A connection to a pod's shim.
pub struct Shim {
    runtime: Runtime,
    client: TaskClient,
    sandbox: SandboxClient,
}

impl Shim {
    /// Connects to the shim of `pod`.
    ///
    /// # Errors
    /// When the bundle names no address or nobody listens there.
    pub fn connect(pod: &Pod<'_>) -> Result<Self> {
        Self::of_bundle(&pod.bundle())
    }

    /// Connects to the shim that was started in a bundle.
    ///
    /// # Errors
    /// When the bundle names no address or nobody listens there.
    pub fn of_bundle(bundle: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let path = socket(bundle)?;
        let client =
            runtime.block_on(async { UnixStream::connect(&path).await.map(Client::new) })?;
        Ok(Self {
            runtime,
            client: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client),
        })
    }

    /// Where the shim of `pod` listens.
    ///
    /// # Errors
    /// When the bundle does not tell.
    pub fn socket(pod: &Pod<'_>) -> Result<PathBuf> {
        socket(&pod.bundle())
    }

    fn call<T>(&self, what: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(CALL_TIMEOUT, call).await });
        answer
            .with_context(|| format!("{what}: no answer"))?
            .with_context(|| what.to_owned())
    }

    /// Asks for a container in `bundle` with these mounts as its root, and nothing connected.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn create(&self, id: &str, bundle: &Path, rootfs: Vec<Mount>) -> Result<()> {
        let bundle = bundle.display().to_string();
        let request = CreateTaskRequest {
            id: id.into(),
            bundle,
            rootfs,
            ..CreateTaskRequest::default()
        };
        self.call("Create", self.client.create(request)).map(drop)
    }

    /// The state of a container.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn state(&self, container: &str) -> Result<StateResponse> {
        let request = StateRequest {
            id: container.into(),
            ..StateRequest::default()
        };
        self.call("State", self.client.state(request))
    }

    /// What the sandbox's machine uses, as containerd from 2.3 on asks for it.
    ///
    /// # Errors
    /// What the shim answered, or what no metrics are.
    pub fn sandbox_metrics(&self, sandbox: &str) -> Result<Metrics> {
        let request = SandboxMetricsRequest {
            sandbox_id: sandbox.into(),
        };
        let answer = self.call("SandboxMetrics", self.sandbox.sandbox_metrics(request))?;
        let metric = answer.metrics.context("no metrics")?;
        ensure!(metric.id == sandbox, "metrics of {:?}", metric.id);
        let data = metric.data.context("metrics without data")?;
        let expected = Metrics::full_name();
        ensure!(data.type_url == expected, "a {}", data.type_url);
        Ok(Metrics::decode(data.value.as_slice())?)
    }

    /// Starts `command` in `container`, its streams on FIFOs in `folder`.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn exec<'s>(&'s self, folder: &Path, exec: Exec<'_>) -> Result<Execution<'s>> {
        let execution = Execution::prepare(self, folder, &exec)?;
        let request = ExecProcessRequest {
            id: exec.container.into(),
            exec_id: exec.id.into(),
            terminal: exec.terminal,
            stdin: execution.fifo("stdin"),
            stdout: execution.fifo("stdout"),
            stderr: if exec.terminal {
                String::new()
            } else {
                execution.fifo("stderr")
            },
            spec: Some(Any {
                type_url: PROCESS_TYPE_URL.into(),
                value: exec.process_json(),
            }),
        };
        self.call("Exec", self.client.exec(request))?;
        let request = StartRequest {
            id: exec.container.into(),
            exec_id: exec.id.into(),
        };
        self.call("Start", self.client.start(request))?;
        Ok(execution)
    }
}

/// A command to run in a container.
pub struct Exec<'a> {
    /// The container's id.
    pub container: &'a str,
    /// The execution's id, new for each.
    pub id: &'a str,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// A shell script.
    pub script: &'a str,
}

impl Exec<'_> {
    fn process_json(&self) -> Vec<u8> {
        let script = self.script.replace('\\', "\\\\").replace('"', "\\\"");
        format!(
            r#"{{"terminal":{},"user":{{"uid":0,"gid":0}},"cwd":"/","env":["PATH=/bin:/usr/bin"],"args":["sh","-c","{script}"]}}"#,
            self.terminal
        )
        .into_bytes()
    }
}

/// A running execution; its FIFOs go when it is dropped.
pub struct Execution<'s> {
    shim: &'s Shim,
    container: String,
    id: String,
    folder: PathBuf,
    stdout: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
    stderr: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
}

impl<'s> Execution<'s> {
    fn prepare(shim: &'s Shim, folder: &Path, exec: &Exec<'_>) -> Result<Self> {
        let folder = folder.join(format!("fifos-{}", exec.id));
        fs::create_dir(&folder)?;
        for name in ["stdin", "stdout", "stderr"] {
            nix::unistd::mkfifo(&folder.join(name), Mode::S_IRWXU)?;
        }
        let stdout = collect(&folder.join("stdout"))?;
        let stderr = if exec.terminal {
            None
        } else {
            Some(collect(&folder.join("stderr"))?)
        };
        Ok(Self {
            shim,
            container: exec.container.into(),
            id: exec.id.into(),
            folder,
            stdout: Some(stdout),
            stderr,
        })
    }

    fn fifo(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The writing end of standard input.
    ///
    /// # Errors
    /// When the FIFO cannot be opened.
    pub fn stdin(&self) -> Result<File> {
        Ok(OpenOptions::new()
            .write(true)
            .open(self.folder.join("stdin"))?)
    }

    /// Closes standard input after what was written.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn close_stdin(&self) -> Result<()> {
        let (id, exec_id) = (self.container.clone(), self.id.clone());
        let request = CloseIoRequest {
            id,
            exec_id,
            stdin: true,
        };
        self.shim
            .call("CloseIO", self.shim.client.close_io(request))
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let (id, exec_id) = (self.container.clone(), self.id.clone());
        let request = ResizePtyRequest {
            id,
            exec_id,
            width,
            height,
        };
        self.shim
            .call("ResizePty", self.shim.client.resize_pty(request))
    }

    /// Waits for the end and yields exit code, standard output and standard error.
    ///
    /// # Errors
    /// What the shim answered, or a stream that could not be read.
    pub fn finish(mut self) -> Result<(u32, Vec<u8>, Vec<u8>)> {
        let (id, exec_id) = (self.container.clone(), self.id.clone());
        let request = WaitRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
        };
        let status = self
            .shim
            .call("Wait", self.shim.client.wait(request))?
            .exit_status;
        self.shim.call(
            "Delete",
            self.shim.client.delete(DeleteRequest { id, exec_id }),
        )?;
        let read = |thread: Option<JoinHandle<std::io::Result<Vec<u8>>>>| match thread {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow::anyhow!("the reading thread panicked"))?
                .context("read a stream"),
            None => Ok(Vec::new()),
        };
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        Ok((status, read(stdout)?, read(stderr)?))
    }
}

impl Drop for Execution<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is not removed: {error}", self.folder.display());
        }
    }
}

/// Where the shim that was started in `bundle` listens.
fn socket(bundle: &Path) -> Result<PathBuf> {
    let file = bundle.join("address");
    let address = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let path = address.strip_prefix("unix://");
    Ok(path.context("not a unix address")?.into())
}

/// Opens a FIFO for reading at once, and reads it to its end on a thread.
fn collect(path: &Path) -> Result<JoinHandle<std::io::Result<Vec<u8>>>> {
    // Opened without waiting: the shim must find a reader. Poll reports neither data nor an end
    // before the first writer has come.
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    Ok(std::thread::spawn(move || {
        poll(
            &mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        )?;
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    }))
}
