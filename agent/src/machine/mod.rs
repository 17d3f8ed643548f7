//! The agent as a service of a machine: it gives the pod's volumes their places, runs processes
//! beside what the machine runs itself, in the machine's own namespaces, and carries streams and
//! ports as in any guest.
//!
//! The host hears of it by its report on the ready port. The report is made again whenever the
//! host's connection has gone.

mod account;
mod console;
mod processes;
mod report;
mod service;
mod transport;
mod usage;
mod volumes;

pub use account::Account;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use podvisor_proto::agent::v1::AgentServer;
use podvisor_proto::agent::{AGENT_PORT, FORWARD_PORT, STREAM_PORT};
use podvisor_proto::ttrpc::Server;

use crate::reaper::Reaper;
use crate::serve::{self, ServeError, failed};
use crate::sys::vsock::VsockListener;
use processes::Processes;
use report::Reporter;
use service::MachineService;

/// Runs until something that cannot fail fails, or until the first to run in this machine is
/// another one.
pub fn run(started_ns: u64) -> ExitCode {
    let ran = transport::prepare()
        .map_err(|source| ServeError::new("use AF_VSOCK", source))
        .and_then(|()| serve::runtime())
        .and_then(|runtime| runtime.block_on(serve(started_ns)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Started twice: the other one serves.
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = %crate::error_chain(&error), "the agent ends");
            ExitCode::FAILURE
        }
    }
}

async fn serve(started_ns: u64) -> Result<(), ServeError> {
    let calls = VsockListener::bind(AGENT_PORT).map_err(failed("listen for calls"))?;
    let streams = VsockListener::bind(STREAM_PORT).map_err(failed("listen for streams"))?;
    let forwards = VsockListener::bind(FORWARD_PORT).map_err(failed("listen for forwards"))?;
    let reaper = Reaper::new().map_err(failed("listen for ended children"))?;
    let processes = Arc::new(Processes::default());
    let service = MachineService::new(processes.clone());
    let server = Server::new().with_service(AgentServer::new(Arc::new(service)));
    let reporter = Reporter::new(started_ns);
    tokio::select! {
        result = reaper.run(|ended| processes.reaped(ended)) => result.map_err(failed("reap")),
        result = serve_calls(calls, server, &reporter) => result.map_err(failed("accept calls")),
        result = serve::serve_streams(streams, processes.streams.clone()) => {
            result.map_err(failed("accept streams"))
        }
        result = serve::serve_forwards(forwards) => result.map_err(failed("accept forwards")),
        () = reporter.run() => Ok(()),
    }
}

async fn serve_calls(
    listener: VsockListener,
    server: Server,
    reporter: &Reporter,
) -> io::Result<()> {
    loop {
        let connection = listener.accept().await?;
        let server = server.clone();
        let served = reporter.connected();
        tokio::spawn(async move {
            if let Err(error) = server.serve(connection).await {
                tracing::warn!(%error, "connection ended");
            }
            drop(served);
        });
    }
}
