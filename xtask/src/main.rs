//! Everything that builds, tests and measures the project.
//!
//! `cargo xtask demo` shows the project on a fresh machine; `cargo xtask test` is what CI runs. See docs/testing.md.

mod bench;
mod cache;
mod cpio;
mod demo;
mod dist;
mod fuzz;
mod images;
mod initrd;
mod kernel;
mod node;
mod packages;
mod process;
mod progress;
mod registry;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the Debian packages that the other commands need (as root).
    Packages,
    /// Build the guest kernel and print its folder.
    Kernel(kernel::KernelArgs),
    /// Build a release folder: kernel, initial image, shim and command line tool.
    Build(kernel::KernelArgs),
    /// Build the container images of the tests and print their folder.
    Images(images::ImagesArgs),
    /// A machine with KVM and containerd, emulated where it has to be.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Check and test everything, as CI does.
    Test(test::TestArgs),
    /// Run a benchmark.
    Bench(bench::BenchArgs),
    /// Run a fuzz target.
    Fuzz(fuzz::FuzzArgs),
    /// Run a pod in a VM in the node, from nothing.
    Demo(demo::DemoArgs),
    /// Serve images to the node that this runs in.
    #[command(hide = true)]
    Registry {
        /// OCI layouts, or folders of them.
        folders: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Packages => packages::install()?,
        Command::Kernel(args) => println!("{}", kernel::build(&args)?.display()),
        Command::Build(args) => println!("{}", dist::build(&args)?.display()),
        Command::Images(args) => println!("{}", args.build()?.display()),
        Command::Node(command) => return node::main(command),
        Command::Test(args) => return test::main(&args),
        Command::Bench(args) => return bench::main(&args),
        Command::Fuzz(args) => fuzz::run(&args)?,
        Command::Demo(args) => return demo::main(&args),
        Command::Registry { folders } => registry::serve_all(folders)?,
    }
    Ok(ExitCode::SUCCESS)
}
