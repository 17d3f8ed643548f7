//! Pods that must be refused, with an error that says why, and nothing left.

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Cri, Handler, PodBuilder};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_wrong_annotation_fails_the_pod_by_name", annotations),
        gate("a_pod_too_small_for_a_vm_is_refused_with_the_numbers", too_small),
        gate("a_host_network_pod_is_refused", host_network),
        gate("a_broken_installation_says_what_is_broken", broken_installation),
    ]
}

/// Runs the pod, which must fail, and yields the error's text.
fn refused(pod: PodBuilder<'_>) -> Result<String> {
    let error = pod.run().err().context("the pod ran")?;
    Ok(format!("{error:#}"))
}

fn ensure_names(error: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(error.contains(part), "{part:?} is not in the error: {error}");
    }
    Ok(())
}

fn annotations(cri: &Cri) -> Result<()> {
    for (key, value, reason) in [
        ("podvisor.io/no-such-key", "1", "unknown"),
        ("podvisor.io/cpus", "many", "many"),
        ("podvisor.io/cpus", "0", "0"),
        ("podvisor.io/memory", "12parsecs", "12parsecs"),
    ] {
        let pod = PodBuilder::new(cri, Handler::Podvisor, "annotation").annotation(key, value);
        ensure_names(&refused(pod)?, &[key, reason])?;
    }
    Ok(())
}

fn too_small(cri: &Cri) -> Result<()> {
    let error = refused(PodBuilder::new(cri, Handler::Podvisor, "small").memory_mib(4))?;
    ensure_names(&error, &["4 MiB", "MiB"])
}

fn host_network(cri: &Cri) -> Result<()> {
    let error = refused(PodBuilder::new(cri, Handler::Podvisor, "host").host_network())?;
    ensure_names(&error, &["host network"])
}

/// Handlers of the node's configuration whose podvisor.toml names broken files.
fn broken_installation(cri: &Cri) -> Result<()> {
    for (handler, parts) in [
        ("podvisor-no-kernel", ["/etc/podvisor/no-such-kernel", "No such file"]),
        ("podvisor-corrupt-kernel", ["/etc/podvisor/corrupt-kernel", "kernel"]),
        ("podvisor-silent-guest", ["boot", "did not answer"]),
    ] {
        let error = refused(PodBuilder::new(cri, Handler::Named(handler), "broken"))?;
        ensure_names(&error, &parts).with_context(|| handler.to_owned())?;
    }
    Ok(())
}
