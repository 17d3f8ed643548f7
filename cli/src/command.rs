//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::check;
use crate::console::{self, Transcript};
use crate::cri::Cri;
use crate::explain;
use crate::pods::{self, PodName};
use crate::run::{self, ClaimPath, Detail, RunOptions};

/// What a failure of ours answers, as other tools that run containers do.
const FAILURE: u8 = 125;

/// Kubernetes pods in virtual machines: check a machine, run a pod manifest, look into pods.
#[derive(Debug, Parser)]
#[command(name = "podvisor", version)]
struct CommandLine {
    /// Socket of the container runtime.
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Exec(Exec),
    Console(Console),
    Ps,
    Rm(Rm),
    Check(Check),
    Explain(Explain),
}

/// Run the pod of a manifest, as the kubelet would, on a machine without one.
///
/// The manifest holds one Pod, or a StatefulSet or Job that makes one, and the ConfigMaps, Secrets,
/// PersistentVolumeClaims and RuntimeClasses it uses. A field that is not supported is named and refused. The exit code is that of the container that failed first.
#[derive(Debug, Args)]
struct Run {
    /// The manifest; `-` for stdin.
    file: PathBuf,
    /// Where a PersistentVolumeClaim is: a folder, a file or a block device; without it, a file or
    /// folder below /var/lib/podvisor/claims that stays.
    #[arg(long = "claim", value_name = "NAME=PATH")]
    claims: Vec<ClaimPath>,
    /// Remove the pod with its volumes and logs when it has ended.
    #[arg(long)]
    rm: bool,
    /// Take this runtime handler instead of the RuntimeClass's; empty for the default one.
    #[arg(long, value_name = "HANDLER")]
    runtime_handler: Option<String>,
    /// Tell nothing but failures.
    #[arg(long, conflicts_with = "tour")]
    quiet: bool,
    /// Show the pod's virtual machine on the way: phases, kernel, and what is left behind.
    #[arg(long)]
    tour: bool,
}

/// Run a command in a container of a pod, to its end; the exit code is the command's.
#[derive(Debug, Args)]
struct Exec {
    #[command(flatten)]
    pod: PodArgs,
    /// The container; the first that runs when none is named.
    #[arg(short, long)]
    container: Option<String>,
    /// Seconds after which the command is ended.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Connect this terminal to the console of a machine pod: to the streams of its container.
///
/// Ctrl-] disconnects; every other key is the machine's. Without a terminal, stdin and stdout are
/// carried as they are until the machine ends.
#[derive(Debug, Args)]
struct Console {
    #[command(flatten)]
    pod: PodArgs,
    /// The container; the first that runs when none is named.
    #[arg(short, long)]
    container: Option<String>,
    /// Show what the console has written so far first.
    #[arg(long)]
    log: bool,
    /// Show its last lines first.
    #[arg(long, value_name = "LINES", conflicts_with = "log")]
    tail: Option<usize>,
}

impl Console {
    fn transcript(&self) -> Transcript {
        match (self.log, self.tail) {
            (true, _) => Transcript::All,
            (false, Some(lines)) => Transcript::Last(lines),
            (false, None) => Transcript::None,
        }
    }
}

/// Stop and remove a pod that `podvisor run` made, with its volumes and logs.
#[derive(Debug, Args)]
struct Rm {
    #[command(flatten)]
    pod: PodArgs,
}

/// Tell whether this machine can run pods in virtual machines, and what is missing.
#[derive(Debug, Args)]
struct Check {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Tell which annotations pods may carry, or all about one.
#[derive(Debug, Args)]
struct Explain {
    /// The annotation, with or without `podvisor.io/`.
    key: Option<String>,
}

#[derive(Debug, Args)]
struct PodArgs {
    /// Name of the pod, or the beginning of its sandbox's id.
    pod: String,
    /// Namespace of the pod.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

impl From<PodArgs> for PodName {
    fn from(args: PodArgs) -> Self {
        Self {
            name: args.pod,
            namespace: args.namespace,
        }
    }
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("cannot start the asynchronous runtime")
        .and_then(|runtime| runtime.block_on(perform(line)));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("podvisor: {error:#}");
            ExitCode::from(FAILURE)
        }
    }
}

async fn perform(line: CommandLine) -> Result<u8> {
    let address = line.address;
    match line.command {
        Command::Run(args) => run(args, address).await,
        Command::Exec(args) => {
            let cri = Cri::connect(&address).await?;
            let timeout = args
                .timeout
                .map(|seconds| Duration::from_secs(u64::from(seconds)));
            let (pod, container) = (args.pod.into(), args.container.as_deref());
            let code = pods::exec(&cri, &pod, container, &args.command, timeout);
            Ok(exit_code(code.await?))
        }
        Command::Console(args) => {
            let transcript = args.transcript();
            let cri = Cri::connect(&address).await?;
            let (pod, container) = (args.pod.into(), args.container.as_deref());
            let code = console::console(&cri, &pod, container, transcript);
            Ok(exit_code(code.await?))
        }
        Command::Ps => {
            print!("{}", pods::list(&Cri::connect(&address).await?).await?);
            Ok(0)
        }
        Command::Rm(args) => {
            pods::remove(&Cri::connect(&address).await?, &args.pod.into()).await?;
            Ok(0)
        }
        Command::Explain(args) => {
            let text = match args.key {
                Some(key) => explain::one(&key)?,
                None => explain::all(),
            };
            print!("{text}");
            Ok(0)
        }
        Command::Check(args) => {
            let report = check::check(&address).await;
            if args.json {
                println!("{}", report.to_json());
            } else {
                print!("{report}");
            }
            Ok(u8::from(!report.is_good()))
        }
    }
}

async fn run(args: Run, address: PathBuf) -> Result<u8> {
    let detail = match (args.quiet, args.tour) {
        (true, _) => Detail::Quiet,
        (_, true) => Detail::Tour,
        _ => Detail::default_for_stderr(),
    };
    let options = RunOptions {
        manifest: args.file,
        address,
        runtime_handler: args.runtime_handler,
        claims: args.claims,
        remove: args.rm,
        detail,
    };
    Ok(exit_code(run::run(&options).await?))
}

/// A code beyond what a process can answer stays a failure.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
