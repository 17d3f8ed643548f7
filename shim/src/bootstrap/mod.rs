//! `start`: makes the pod's server, or finds it, and tells containerd its address.

mod input;
mod reply;
mod socket;

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::arguments::Arguments;
use crate::pod::{Bundle, BundleError, Role};
use input::Input;
use socket::{Socket, SocketError};

pub use socket::socket_path;

/// The file in a bundle by which containerd finds the server again (1.6, 1.7).
const ADDRESS_FILE: &str = "address";

/// Why there is no server.
#[derive(Debug, Error)]
pub enum StartError {
    /// The working directory is gone.
    #[error("cannot find the bundle")]
    WorkingDirectory(#[source] io::Error),
    /// containerd's options cannot be read.
    #[error("cannot read from containerd")]
    Stdin(#[source] io::Error),
    /// The bundle cannot be used.
    #[error("the bundle")]
    Bundle(#[from] BundleError),
    /// No socket.
    #[error("the pod's socket")]
    Socket(#[from] SocketError),
    /// The server of the container's pod is not there.
    #[error("the shim of pod {0} is not running")]
    NoPod(String),
    /// The server does not start.
    #[error("cannot start the pod's server")]
    Spawn(#[source] io::Error),
    /// The bundle's address file cannot be written.
    #[error("cannot write the server's address")]
    Address(#[source] io::Error),
    /// containerd does not take the answer.
    #[error("cannot answer to containerd")]
    Answer(#[source] io::Error),
}

/// Runs `start` in the working directory.
///
/// # Errors
/// [`StartError`].
pub fn start(arguments: &Arguments) -> Result<(), StartError> {
    let input = Input::decode(&read_input()?, arguments);
    let bundle = std::env::current_dir().map_err(StartError::WorkingDirectory)?;
    let found = Bundle::find(&bundle)?;
    let form = input.reply_form(found.is_some());
    let role = found.map(|found| found.role()).transpose()?;
    let path = match role {
        // Without a spec it is a pod that is told to us by the sandbox service.
        None | Some(Role::Sandbox | Role::Standalone) => {
            serve_pod(arguments, &bundle, input.config_path())?
        }
        Some(Role::Member { sandbox_id }) => {
            let path = socket_path(&arguments.address, &arguments.namespace, &sandbox_id);
            if !socket::is_served(&path) {
                return Err(StartError::NoPod(sandbox_id));
            }
            path
        }
    };
    let address = format!("unix://{}", path.display());
    std::fs::write(bundle.join(ADDRESS_FILE), &address).map_err(StartError::Address)?;
    io::stdout()
        .write_all(&form.encode(&address))
        .map_err(StartError::Answer)
}

fn read_input() -> Result<Vec<u8>, StartError> {
    let mut input = Vec::new();
    let mut stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin.read_to_end(&mut input).map_err(StartError::Stdin)?;
    }
    Ok(input)
}

/// Starts the pod's server, unless there is one already.
fn serve_pod(
    arguments: &Arguments,
    bundle: &Path,
    config: Option<PathBuf>,
) -> Result<PathBuf, StartError> {
    let path = socket_path(&arguments.address, &arguments.namespace, &arguments.id);
    match socket::bind(&path)? {
        Socket::Served => {}
        Socket::Bound(listener) => spawn_server(arguments, bundle, config, listener.into())?,
    }
    Ok(path)
}

/// Runs this program again as the server. It gets the listening socket as stdin, and nothing of
/// containerd's pipe, whose end containerd waits for.
fn spawn_server(
    arguments: &Arguments,
    bundle: &Path,
    config: Option<PathBuf>,
    listener: OwnedFd,
) -> Result<(), StartError> {
    let program = std::fs::read_link("/proc/self/exe").map_err(StartError::Spawn)?;
    let mut command = Command::new(program);
    command.args([
        "-namespace",
        &arguments.namespace,
        "-id",
        &arguments.id,
        "-address",
        &arguments.address,
    ]);
    if let Some(config) = config {
        command.arg("-config").arg(config);
    }
    if arguments.debug {
        command.arg("-debug");
    }
    command
        .arg("serve")
        .current_dir(bundle)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
        .map_err(StartError::Spawn)
}
