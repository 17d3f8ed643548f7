//! Pods that must be refused, with an error that says why, and nothing left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::node::Configuration;
use podvisor_tests::{Cri, Handler, PodBuilder};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_wrong_annotation_fails_the_pod_by_name", annotations),
        gate(
            "a_pod_too_small_for_a_vm_is_refused_with_the_numbers",
            too_small,
        ),
        gate("a_host_network_pod_is_refused", host_network),
        gate(
            "a_broken_installation_says_what_is_broken",
            broken_installation,
        ),
        gate("a_class_has_a_configuration_of_its_own", class),
    ]
}

/// Runs the pod, which must fail, and yields the error's text.
fn refused(pod: PodBuilder<'_>) -> Result<String> {
    let error = pod.run().err().context("the pod ran")?;
    Ok(format!("{error:#}"))
}

fn ensure_names(error: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(
            error.contains(part),
            "{part:?} is not in the error: {error}"
        );
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

/// What is wrong with an installation is told by the pod's error.
fn broken_installation(cri: &Cri) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let corrupt = folder.path().join("corrupt-kernel");
    fs::write(&corrupt, vec![0x5a; 1 << 20])?;
    let silent = silent_initrd(folder.path())?;
    for (configuration, parts) in [
        (
            "kernel = \"/etc/podvisor/no-such-kernel\"".to_owned(),
            ["/etc/podvisor/no-such-kernel", "No such file"],
        ),
        (
            format!("kernel = {corrupt:?}"),
            ["corrupt-kernel", "kernel"],
        ),
        (
            format!("initrd = {silent:?}\nboot_timeout = \"8s\""),
            ["8 s", "guest is silent"],
        ),
    ] {
        let _configuration = Configuration::set(&configuration)?;
        let error = refused(PodBuilder::new(cri, Handler::Podvisor, "broken"))?;
        ensure_names(&error, &parts).with_context(|| configuration.clone())?;
    }
    Ok(())
}

/// The handlers' configuration is the file that containerd's options for them name, in the field that
/// the options of their type have.
fn class(cri: &Cri) -> Result<()> {
    for handler in ["podvisor-class", "podvisor-runc-class"] {
        let handler = Handler::Named(handler);
        let named = || refused(PodBuilder::new(cri, handler, "class"));
        ensure_names(&named()?, &["/etc/podvisor/class.toml", "No such file"])?;
        let _configuration = Configuration::set_at(
            Path::new("/etc/podvisor/class.toml"),
            "kernel = \"/etc/podvisor/no-such-kernel\"",
        )?;
        ensure_names(&named()?, &["/etc/podvisor/no-such-kernel"])?;
    }
    Ok(())
}

/// An initial image whose init says a word and never answers.
fn silent_initrd(folder: &Path) -> Result<PathBuf> {
    let script = "mkdir -p tree/dev && cp /bin/busybox tree && cd tree \
        && printf '#!/busybox sh\n/busybox mount -t devtmpfs dev /dev\necho \"<2>guest is silent\" > /dev/kmsg\nexec /busybox sleep 1000\n' > init && chmod 755 init \
        && find . | busybox cpio -o -H newc > ../silent.cpio";
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .status()?;
    ensure!(status.success(), "no initial image: {status}");
    Ok(folder.join("silent.cpio"))
}
