//! The agent's life after boot: one thread, one runtime, three vsock ports.

use std::io;
use std::sync::Arc;

use podvisor_proto::agent::v1::{AgentServer, GuestKind, Ready};
use podvisor_proto::agent::{AGENT_PORT, FORWARD_PORT, PROTOCOL_VERSION, READY_PORT, STREAM_PORT};
use podvisor_proto::ttrpc::Server;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use crate::boot_stage::BootService;
use crate::clock;
use crate::container::{Containers, Streams, watch_memory};
use crate::forward;
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::streams;
use crate::sys::vsock::{VsockListener, VsockStream};

/// Why the agent stopped serving.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ServeError {
    what: &'static str,
    source: io::Error,
}

impl ServeError {
    /// A step that failed.
    #[must_use]
    pub fn new(what: &'static str, source: io::Error) -> Self {
        Self { what, source }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Names a failed step, for `map_err`.
pub fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError { what, source }
}

/// Serves a container pod's guest until something that cannot fail fails.
///
/// # Errors
///
/// [`ServeError`].
pub fn run(started_ns: u64) -> Result<(), ServeError> {
    runtime()?.block_on(serve(started_ns))
}

/// Serves the boot stage of a machine, until the machine's own kernel runs.
///
/// # Errors
///
/// [`ServeError`].
pub fn run_boot_stage(started_ns: u64, service: BootService) -> Result<(), ServeError> {
    runtime()?.block_on(async {
        let calls = VsockListener::bind(AGENT_PORT).map_err(failed("listen for calls"))?;
        let server = Server::new().with_service(AgentServer::new(Arc::new(service)));
        send_ready(started_ns, GuestKind::BootStage)
            .await
            .map_err(failed("report to the host"))?;
        serve_calls(calls, server)
            .await
            .map_err(failed("accept calls"))
    })
}

/// The one thread's runtime.
///
/// # Errors
///
/// [`ServeError`].
pub fn runtime() -> Result<Runtime, ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("make the runtime"))
}

async fn serve(started_ns: u64) -> Result<(), ServeError> {
    let reaper = Reaper::new().map_err(failed("listen for ended children"))?;
    let containers = Arc::new(Containers::new().map_err(failed("watch memory"))?);
    // All ports are bound before any container exists that could take them.
    let calls = VsockListener::bind(AGENT_PORT).map_err(failed("listen for calls"))?;
    let streams = VsockListener::bind(STREAM_PORT).map_err(failed("listen for streams"))?;
    let forwards = VsockListener::bind(FORWARD_PORT).map_err(failed("listen for forwards"))?;
    let service = AgentService::new(containers.clone());
    let server = Server::new().with_service(AgentServer::new(Arc::new(service)));
    send_ready(started_ns, GuestKind::Containers)
        .await
        .map_err(failed("report to the host"))?;
    tokio::spawn(watch_memory(containers.clone()));
    tokio::select! {
        result = reaper.run(|ended| containers.reaped(ended)) => result.map_err(failed("reap")),
        result = serve_calls(calls, server) => result.map_err(failed("accept calls")),
        result = serve_streams(streams, containers.streams.clone()) => result.map_err(failed("accept streams")),
        result = serve_forwards(forwards) => result.map_err(failed("accept forwards")),
    }
}

/// Tells the host that this agent serves.
///
/// # Errors
///
/// What the connection said.
pub async fn send_ready(started_ns: u64, kind: GuestKind) -> io::Result<()> {
    let ready = Ready {
        protocol_version: PROTOCOL_VERSION,
        build_id: env!("CARGO_PKG_VERSION").to_owned(),
        agent_started_ns: started_ns,
        ready_ns: clock::monotonic_ns(),
        kernel_release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        kind: kind.into(),
    };
    let mut host = VsockStream::connect_to_host(READY_PORT).await?;
    host.write_all(&ready.encode_length_delimited_to_vec())
        .await?;
    host.shutdown().await
}

async fn serve_calls(listener: VsockListener, server: Server) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        let server = server.clone();
        tokio::spawn(async move {
            // The shim reconnects after a broken frame or a lost connection.
            if let Err(error) = server.serve(connection).await {
                tracing::warn!(%error, "connection ended");
            }
        });
    }
}

/// Takes streams for ever.
///
/// # Errors
///
/// What accepting said.
pub async fn serve_streams(listener: VsockListener, table: Arc<Streams>) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        tokio::spawn(streams::accept(table.clone(), connection));
    }
}

/// Takes forwarded connections for ever.
///
/// # Errors
///
/// What accepting said.
pub async fn serve_forwards(listener: VsockListener) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        tokio::spawn(forward::serve(connection));
    }
}
