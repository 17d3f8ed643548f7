//! `serve`: the server of one pod. `start` runs it in the pod's bundle, with the listening socket
//! as stdin.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podvisor_devices::fs::raise_open_files_limit;
use podvisor_proto::containerd::sandbox::SandboxServer;
use podvisor_proto::containerd::task::{TASK_V2_SERVICE_NAME, TaskServer};
use podvisor_proto::ttrpc::Server;
use thiserror::Error;
use tokio::net::UnixListener;

use crate::arguments::Arguments;
use crate::bootstrap::socket_path;
use crate::events::Publisher;
use crate::guest::boot::BootTools;
use crate::guest::launch::KvmLauncher;
use crate::host::cgroup::{self, CgroupError};
use crate::host::record::{Record, RecordKeeper};
use crate::host::{LocalHost, SetupError, be_small, private_mounts, set_oom_score};
use crate::pod::cgroup_path::{self, CgroupPathError};
use crate::pod::{Bundle, BundleError};
use crate::release::Release;
use crate::sandbox::{Actor, Placement, Settings, chain};
use crate::service::{SandboxService, TaskService};
use crate::timeline::Timeline;

/// Threads that may wait for the host at once: mounts, exports, the machine's start.
const BLOCKING_THREADS: usize = 4;
/// An idle one of them ends after this time.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The last answer to containerd is given this time to leave.
const LAST_ANSWER: Duration = Duration::from_millis(50);
/// The pause after a connection that could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a pod has no server.
#[derive(Debug, Error)]
pub enum ServeError {
    /// There is no bundle, or no socket.
    #[error("cannot use what `start` has passed on")]
    Inherited(#[source] io::Error),
    /// No runtime.
    #[error("cannot start tokio")]
    Runtime(#[source] io::Error),
}

/// Why the server is not where it belongs.
#[derive(Debug, Error)]
enum PlacementError {
    #[error("the bundle")]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    CgroupPath(#[from] CgroupPathError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("cannot raise the limit of open files")]
    OpenFiles(#[source] io::Error),
    #[error("cannot find the release")]
    Release(#[source] io::Error),
    #[error("cannot write the pod's record")]
    Record(#[source] io::Error),
}

/// Serves a pod until it is shut down.
///
/// # Errors
/// [`ServeError`] when it cannot be served at all. What else goes wrong is the answer to the
/// pod's creation.
pub fn serve(arguments: &Arguments) -> Result<(), ServeError> {
    let timeline = Timeline::since_exec();
    be_small();
    // The group of `start` ends with it.
    let _ = nix::unistd::setsid();
    let bundle = std::env::current_dir().map_err(ServeError::Inherited)?;
    crate::log::to_bundle(&bundle, arguments.debug);
    let listener = inherited_listener().map_err(ServeError::Inherited)?;
    let socket = socket_path(&arguments.address, &arguments.namespace, &arguments.id);
    let mut record = Record {
        socket: Some(socket.clone()),
        ..Record::of_this_process()
    };
    let placement = place(&bundle, &arguments.id, &mut record).map_err(|error| chain(&error));
    timeline.done("server placed");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(serve_pod(arguments, listener, |publisher| Settings {
        placement,
        tools: BootTools {
            host: Arc::new(LocalHost),
            launcher: Arc::new(KvmLauncher),
            timeline,
        },
        publisher,
        record: RecordKeeper::new(record, bundle),
    }))?;
    // `delete` would do it as well.
    let _ = std::fs::remove_file(socket);
    // Whoever still waits for the host must not keep a pod that is over.
    runtime.shutdown_background();
    Ok(())
}

fn inherited_listener() -> io::Result<StdListener> {
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Moves this process to where the pod's memory is accounted, with mounts of its own. There must
/// be no other thread yet.
fn place(bundle_path: &Path, id: &str, record: &mut Record) -> Result<Placement, PlacementError> {
    // Written first: `delete` then finds this process whatever happens.
    record.save(bundle_path).map_err(PlacementError::Record)?;
    raise_open_files_limit().map_err(PlacementError::OpenFiles)?;
    private_mounts()?;
    let release = Release::of_this_program().map_err(PlacementError::Release)?;
    let Some(bundle) = Bundle::find(bundle_path)? else {
        // The sandbox's creation tells where it belongs.
        return Ok(Placement {
            cgroup: None,
            release,
        });
    };
    let leaf = cgroup_path::leaf_of(&bundle.spec, id)?;
    record.cgroups = cgroup::join(&leaf)?;
    record.save(bundle_path).map_err(PlacementError::Record)?;
    set_oom_score(bundle.oom_score())?;
    Ok(Placement {
        cgroup: Some(leaf),
        release,
    })
}

async fn serve_pod(
    arguments: &Arguments,
    listener: StdListener,
    settings: impl FnOnce(Publisher) -> Settings,
) -> Result<(), ServeError> {
    let listener = UnixListener::from_std(listener).map_err(ServeError::Inherited)?;
    let events = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty());
    let publisher = Publisher::spawn(events.map(PathBuf::from), &arguments.namespace);
    let (actor, sandbox) = Actor::new(settings(publisher));
    let pod = SandboxService::new(sandbox.clone(), arguments.config.clone());
    let service = Arc::new(TaskService::new(sandbox));
    let server = Server::new()
        .with_service(TaskServer::named(
            TASK_V2_SERVICE_NAME,
            Arc::clone(&service),
        ))
        .with_service(TaskServer::new(service))
        .with_service(SandboxServer::new(Arc::new(pod)));
    let accepting = tokio::spawn(accept(listener, server));
    actor.run().await;
    tokio::time::sleep(LAST_ANSWER).await;
    accepting.abort();
    Ok(())
}

async fn accept(listener: UnixListener, server: Server) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.serve(stream).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
