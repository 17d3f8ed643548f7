//! Pods whose users are others outside of them (`hostUsers: false`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption, UserNamespace};
use podvisor_tests::{ContainerBuilder, Cri, Handler, Pod, PodBuilder};

use super::compare::same;
use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_pods_users_are_others_outside_of_it", users),
        gate("a_handler_tells_what_runcs_does", features),
    ]
}

/// Users and groups 0 to 65535 of the pod.
const OUTSIDE: u32 = 100_000;
const LEN: u32 = 65536;

fn mappings(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping {
        host_id,
        container_id: 0,
        length: LEN,
    }]
}

fn others(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        pid: pid.into(),
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: mappings(OUTSIDE),
            gids: mappings(OUTSIDE),
        }),
        ..NamespaceOption::default()
    }
}

/// What the kubelet reads before it lets a pod have its own users, or volumes that are recursively
/// read-only.
fn features(cri: &Cri) -> Result<()> {
    let ours = Handler::Named("podvisor").features(cri)?;
    let runcs = Handler::Runc.features(cri)?;
    ensure!(ours == runcs, "podvisor: {ours:?}, runc: {runcs:?}");
    Ok(())
}

fn users(cri: &Cri) -> Result<()> {
    // A containerd that does not know of it yet has nobody to keep from it.
    if !Handler::Podvisor.features(cri)?.user_namespaces {
        return Ok(());
    }
    let run = |handler, name| {
        let pod = PodBuilder::new(cri, handler, name);
        let pod = pod.security(|s| s.namespace_options = Some(others(NamespaceMode::Pod)));
        pod.run()
    };
    let machine = run(Handler::Podvisor, "machine")?;
    let plain = run(Handler::Runc, "plain")?;
    let pods = [&machine, &plain];
    who_is_who(pods)?;
    for pod in pods {
        volumes(pod)?;
        namespaces(pod)?;
    }
    Ok(())
}

fn with_users<'p, 'c>(container: ContainerBuilder<'p, 'c>) -> ContainerBuilder<'p, 'c> {
    container.security(|s| s.namespace_options = Some(others(NamespaceMode::Container)))
}

fn with_shared_processes<'p, 'c>(container: ContainerBuilder<'p, 'c>) -> ContainerBuilder<'p, 'c> {
    container.security(|s| s.namespace_options = Some(others(NamespaceMode::Pod)))
}

fn as_another<'p, 'c>(container: ContainerBuilder<'p, 'c>) -> ContainerBuilder<'p, 'c> {
    with_users(container).user(1000, 2000, &[3000])
}

fn as_administrator<'p, 'c>(container: ContainerBuilder<'p, 'c>) -> ContainerBuilder<'p, 'c> {
    with_users(container).security(|security| {
        security.seccomp = None;
        let capabilities = security.capabilities.get_or_insert_default();
        let added = ["NET_ADMIN", "SYS_ADMIN"].map(str::to_owned);
        capabilities.add_capabilities = added.to_vec();
    })
}

/// The numbers that processes and files have inside.
fn who_is_who(pods: [&Pod<'_>; 2]) -> Result<()> {
    const WHO: &str = "cat /proc/self/uid_map /proc/self/gid_map; id; \
        stat -c '%n %u:%g' / /bin/busybox /etc/hosts /etc/hostname /dev/null /dev/shm /dev/pts /proc/self; \
        touch /tmp/mine && stat -c '%n %u:%g' /tmp/mine; echo > /dev/stdout; cat /proc/self/setgroups; \
        grep -e ^Cap -e ^Seccomp /proc/self/status; rm /tmp/mine";
    let seen = same(pods, "root", with_users, WHO)?;
    let map = seen.lines().next().unwrap_or_default();
    let numbers: Vec<&str> = map.split_whitespace().collect();
    ensure!(numbers == ["0", "100000", "65536"], "{seen}");
    same(
        pods,
        "shared",
        with_shared_processes,
        "cat /proc/self/uid_map; ls -d /proc/1",
    )?;
    same(pods, "another", as_another, WHO)?;
    // Network and host name are the pod's own to change, and nothing of the node.
    let administer = "ip link set lo down && ip link set lo up && ping -c 1 127.0.0.1 | grep -o '1 packets received'; \
        mkdir -p /mnt/x && mount -t tmpfs none /mnt/x && grep -c ' /mnt/x ' /proc/mounts; umount /mnt/x; \
        mknod /tmp/node b 7 0; ls -d /sys/class/net/eth0; chown 70000 /tmp; \
        echo 1 > /proc/sys/kernel/panic; hostname mine && hostname";
    same(pods, "administrator", as_administrator, administer)?;
    Ok(())
}

/// Files of volumes belong to the pod's users inside and to the node's outside, the kubelet asks
/// for no less.
fn volumes(pod: &Pod<'_>) -> Result<()> {
    // The root of the node has no mounts with other owners: it is an overlay.
    let disk = tempfile::tempdir_in("/var/tmp")?;
    let host = disk.path().join("host");
    let cache = disk.path().join("kubernetes.io~empty-dir/cache");
    let secret = disk.path().join("secret");
    for folder in [&host, &cache, &secret.join("..now")] {
        fs::create_dir_all(folder)?;
    }
    fs::write(secret.join("..now/key"), "value")?;
    symlink("..now", secret.join("..data"))?;
    symlink("..data/key", secret.join("key"))?;
    fs::write(host.join("file"), "of the node's root")?;
    std::os::unix::fs::chown(host.join("file"), Some(7), Some(8))?;
    let mapped = |mount: &mut Mount| {
        mount.uid_mappings = mappings(OUTSIDE);
        mount.gid_mappings = mappings(OUTSIDE);
    };
    let container = with_users(pod.container("volumes"))
        .mount_with(&host, "/host", mapped)
        .mount_with(&cache, "/cache", mapped)
        .mount_with(&secret, "/secret", |mount| {
            mapped(mount);
            mount.readonly = true;
        });
    let container = container.start()?;
    let script = "stat -c '%u:%g' /host /host/file /cache /secret/..now/key; cat /secret/key; echo; \
        echo new > /host/new; echo new > /cache/new; chown 9:10 /host/new && stat -c %u:%g /host/new /cache/new";
    let seen = container.shell(script)?;
    let expected = "0:0\n7:8\n0:0\n0:0\nvalue\n9:10\n0:0";
    ensure!(seen == expected, "inside: {seen}");
    for (path, owner) in [(host.join("new"), (9, 10)), (cache.join("new"), (0, 0))] {
        let metadata = fs::metadata(&path)?;
        ensure!(
            (metadata.uid(), metadata.gid()) == owner,
            "{}: {metadata:?}",
            path.display()
        );
    }
    container.stop(Duration::ZERO)?;
    container.remove()
}

/// A pod's containers have one user namespace, and what they run later is in it, too.
fn namespaces(pod: &Pod<'_>) -> Result<()> {
    let first = with_users(pod.container("first")).start()?;
    let second = with_users(pod.container("second")).start()?;
    let link = "readlink /proc/self/ns/user";
    let users = first.shell(link)?;
    ensure!(users == second.shell(link)?, "each has its own");
    ensure!(users == first.shell("readlink /proc/1/ns/user")?, "an exec");
    let own = fs::read_link(Path::new("/proc/self/ns/user"))?;
    ensure!(own.to_str().context("no UTF-8")? != users, "the node's");
    Ok(())
}
