//! Compiles `protos/` into the modules that `src/` includes, without a protoc binary.

#[path = "build/ttrpc_services.rs"]
mod ttrpc_services;

use std::env;
use std::error::Error;
use std::path::PathBuf;

/// Files of `protos/containerd`, relative to it.
const CONTAINERD_PROTOS: [&str; 12] = [
    "events/task.proto",
    "runtime/bootstrap.proto",
    "runtime/sandbox.proto",
    "runtime/task.proto",
    "services/events_ttrpc.proto",
    "types/event.proto",
    "types/introspection.proto",
    "types/metric.proto",
    "types/mount.proto",
    "types/platform.proto",
    "types/runc_options.proto",
    "types/runtimeoptions.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    println!("cargo::rerun-if-changed=build");
    if feature("CGROUPS") {
        compile_messages(&["metrics.proto"], "protos/cgroups", "cgroups.rs")?;
    }
    if feature("AGENT") {
        compile_messages(&["agent.proto"], "protos/agent", "agent.rs")?;
    }
    if feature("CONTAINERD") {
        compile_messages(&CONTAINERD_PROTOS, "protos/containerd", "containerd.rs")?;
        compile_pod_config()?;
    }
    #[cfg(feature = "cri")]
    compile_cri_client()?;
    Ok(())
}

/// Whether Cargo builds this crate with the feature `NAME`.
fn feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

/// Compiles messages, and their services for ttrpc, into one file whose modules follow the packages.
fn compile_messages(
    protos: &[&str],
    include_dir: &str,
    include_file: &str,
) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(protos, [include_dir])?;
    prost_build::Config::new()
        .service_generator(Box::new(ttrpc_services::TtrpcServices))
        .enable_type_names()
        .include_file(include_file)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Compiles CRI's description of a pod, into a folder of its own: the client of CRI has a file of the
/// same name.
fn compile_pod_config() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?).join("pod_config");
    std::fs::create_dir_all(&folder)?;
    let descriptors = protox::compile(["sandbox.proto"], ["protos/cri"])?;
    prost_build::Config::new()
        .out_dir(folder)
        .enable_type_names()
        .compile_fds(descriptors)?;
    Ok(())
}

/// Compiles the client side of CRI for tonic.
#[cfg(feature = "cri")]
fn compile_cri_client() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["api.proto"], ["protos/cri"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
