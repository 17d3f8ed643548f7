//! What a security context asks of the node itself.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{NamespaceMode, NamespaceOption};
use podvisor_tests::task::Shim;
use podvisor_tests::{Cri, Handler, PodBuilder};
use serde_json::{Value, json};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("host_processes_and_ipc_are_refused_by_field", namespaces),
        gate("policies_of_the_node_are_refused_by_field", policies),
        gate("devices_of_the_node_are_refused_by_name", devices),
        gate("privileged_is_everything_of_the_guest", privileged),
    ]
}

fn namespaces(cri: &Cri) -> Result<()> {
    let (pid, ipc) = (NamespaceMode::Node, NamespaceMode::Node);
    for (field, options) in [
        (
            "hostPID",
            NamespaceOption {
                pid: pid.into(),
                ..NamespaceOption::default()
            },
        ),
        (
            "hostIPC",
            NamespaceOption {
                ipc: ipc.into(),
                ..NamespaceOption::default()
            },
        ),
    ] {
        let pod = PodBuilder::new(cri, Handler::Podvisor, "host")
            .security(|security| security.namespace_options = Some(options));
        let error = pod
            .run()
            .err()
            .with_context(|| format!("{field} was taken"))?;
        ensure!(format!("{error:#}").contains(field), "{error:#}");
    }
    Ok(())
}

/// Specs as containerd writes them on nodes that this one is not: with SELinux, with another
/// profile, with users remapped.
fn policies(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "policies").run()?;
    let container = pod.container("idle").start()?;
    let spec = pod
        .bundle()
        .with_file_name(&container.id)
        .join("config.json");
    let spec: Value = serde_json::from_slice(&fs::read(spec)?)?;
    let shim = Shim::connect(&pod)?;
    for (place, value, reason) in [
        (
            "/process/selinuxLabel",
            json!("system_u:system_r:my_t:s0"),
            "seLinuxOptions.type",
        ),
        (
            "/process/apparmorProfile",
            json!("no-such-profile"),
            "no-such-profile",
        ),
        ("/linux/namespaces", json!([{"type": "user"}]), "hostUsers"),
    ] {
        let mut spec = spec.clone();
        let (parent, field) = place.rsplit_once('/').context("no place")?;
        let parent = spec.pointer_mut(parent).and_then(Value::as_object_mut);
        parent
            .context("no such object")?
            .insert(field.into(), value);
        let bundle = tempfile::tempdir()?;
        fs::write(bundle.path().join("config.json"), spec.to_string())?;
        let created = shim.create("refused", bundle.path(), Vec::new());
        let error = created
            .err()
            .with_context(|| format!("{place} was taken"))?;
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
    }
    Ok(())
}

fn devices(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "devices").run()?;
    let kvm = pod.container("kvm");
    let kvm = kvm.device(Path::new("/dev/kvm"), "/dev/mine", "rwm");
    let error = kvm.start().err().context("the node's KVM was taken")?;
    ensure!(format!("{error:#}").contains("/dev/mine"), "{error:#}");
    // What every kernel has is the guest's.
    let fuse = pod.container("fuse");
    let fuse = fuse.device(Path::new("/dev/zero"), "/dev/nothing", "rwm");
    let read = fuse.start()?.shell("head -c 3 /dev/nothing | wc -c")?;
    ensure!(read == "3", "a standard device: {read}");
    Ok(())
}

/// Whether containerd lists the node's devices for a privileged container or not.
fn privileged(cri: &Cri) -> Result<()> {
    for handler in [Handler::Podvisor, Handler::Named("podvisor-host-devices")] {
        let pod = PodBuilder::new(cri, handler, "privileged")
            .privileged()
            .run()?;
        let container = pod.container("all").privileged().start()?;
        let status =
            container.shell("grep -E '^(CapEff|Seccomp:|NoNewPrivs)' /proc/self/status")?;
        ensure!(
            status == "CapEff:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0",
            "{status}"
        );
        container.shell(
            "brctl addbr foobar && mount -t tmpfs tmpfs /var && mkdir /sys/fs/cgroup/below \
             && hostname other && set -- $(cat /proc/sys/vm/overcommit_memory) \
             && echo $1 > /proc/sys/vm/overcommit_memory && test -c /dev/fuse -a -c /dev/net/tun",
        )?;
        container.shell("head -c 1 /dev/kmsg > /dev/null")?;
        let nodes = container.shell("ls /dev")?;
        for device in ["kvm", "vda", "vdb"] {
            ensure!(
                !nodes.lines().any(|node| node == device),
                "{device} of the node:\n{nodes}"
            );
        }
        let plain = pod.container("plain").start()?;
        let bridge = plain.exec(&["brctl", "addbr", "other"])?;
        ensure!(bridge.code != 0, "an ordinary container makes a bridge");
        let nodes = plain.shell("ls /dev")?;
        ensure!(
            !nodes.contains("kmsg"),
            "an ordinary container's /dev:\n{nodes}"
        );
    }
    Ok(())
}
