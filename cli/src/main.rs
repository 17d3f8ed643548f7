//! The command line: check a node, run a pod manifest, look into pods.

use std::process::ExitCode;

fn main() -> ExitCode {
    podvisor::command::main()
}
