//! Keeps one VM open for as long as it runs.
//!
//! The test node emulates nested virtualization with several threads. There, creating the first VM or destroying the last
//! one makes the node's kernel patch code that another processor may be executing, which can crash it. With one VM that
//! never goes away, no other VM is ever the first or the last.

use std::process::ExitCode;

use kvm_ioctls::Kvm;

fn main() -> ExitCode {
    match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(_vm) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("node-hold-vm: cannot create a VM: {error}");
            ExitCode::FAILURE
        }
    }
}
