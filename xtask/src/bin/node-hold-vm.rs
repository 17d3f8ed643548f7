//! Keeps one VM open for as long as it runs, and says so on standard output.
//!
//! The test node emulates nested virtualization with several threads. There, some things that KVM does for the first or for
//! the last of its kind make the node's kernel patch code that another processor may be executing, which can crash it: the
//! first and the last VM, and the first and the last processor whose interrupt controller is not enabled, which every
//! processor is when it is made. With one VM and one idle processor that never go away, no other is the first or the last.

use std::process::ExitCode;

use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};

fn hold() -> Result<(VmFd, VcpuFd), Error> {
    let vm = Kvm::new()?.create_vm()?;
    vm.create_irq_chip()?;
    let vcpu = vm.create_vcpu(0)?;
    Ok((vm, vcpu))
}

fn main() -> ExitCode {
    match hold() {
        Ok(_held) => {
            println!("held");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("node-hold-vm: cannot create a VM: {error}");
            ExitCode::FAILURE
        }
    }
}
