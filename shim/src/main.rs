//! `containerd-shim-podvisor-v2`: the containerd shim that runs every pod in its own virtual
//! machine.
//!
//! containerd runs `start` for a pod, which runs `serve`: the pod's one process on the host, with
//! the machine inside it. `delete` cleans up after it.
//!
//! ```text
//! bootstrap ─► server ─► service ─► sandbox ─► guest (machine, agent)
//!                                      ├─► pod   (what a spec asks for; pure)
//!                                      ├─► host  (privileged work)
//!                                      ├─► io    (standard streams)
//!                                      ├─► forward (connections to the pod's ports)
//!                                      └─► addresses (what a machine asks its network)
//! ```

mod addresses;
mod annotations;
mod arguments;
mod bootstrap;
mod config;
mod delete;
mod events;
mod forward;
mod guest;
mod host;
mod info;
mod io;
mod log;
mod machine;
mod pod;
mod release;
mod sandbox;
mod server;
mod service;
mod timeline;

use std::error::Error;
use std::process::ExitCode;

use arguments::{Action, Arguments};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podvisor: {}", sandbox::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    match arguments.action {
        Action::Start => bootstrap::start(&arguments)?,
        Action::Delete => delete::delete(arguments.bundle.as_deref())?,
        Action::Serve => server::serve(&arguments)?,
        Action::Info => info::print()?,
        Action::Version => println!("containerd-shim-podvisor-v2 {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(())
}
