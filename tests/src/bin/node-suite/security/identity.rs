//! Users, groups, capabilities, and what of its root a container may see and change.

use anyhow::{Result, ensure};
use podvisor_proto::cri::v1::{Capability, Int64Value, SupplementalGroupsPolicy};
use podvisor_tests::{Cri, Handler, PodBuilder};

use super::compare::{Change, same};
use crate::case::{Case, gate};

/// What /proc tells of a process's privileges.
const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; echo $HOME; \
     echo opened again > /dev/stdout";

pub fn cases() -> Vec<Case> {
    vec![
        gate("users_groups_and_capabilities_are_as_with_runc", identity),
        gate("masked_and_read_only_paths_are_as_with_runc", paths),
    ]
}

fn capabilities(add: &[&str], drop: &[&str]) -> Option<Capability> {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Some(Capability {
        add_capabilities: names(add),
        drop_capabilities: names(drop),
        ..Capability::default()
    })
}

/// Containers by name, and what their status has to tell. In the image the user app (1000) is a
/// member of the group extra (999).
fn identities() -> [(&'static str, Change, &'static str); 6] {
    [
        (
            "name",
            |c| c.security(|s| s.run_as_username = "app".into()),
            "Groups:\t999 1000",
        ),
        (
            "merge",
            |c| {
                c.user(1000, 1000, &[1234])
                    .security(|s| s.no_new_privs = true)
            },
            "Groups:\t999 1000 1234",
        ),
        (
            // Only containerd 2.x knows of policies.
            "strict",
            |c| {
                c.user(1000, 2000, &[1234]).security(|s| {
                    s.set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
                })
            },
            "Gid:\t2000\t2000\t2000\t2000",
        ),
        (
            "some",
            |c| {
                c.security(|s| {
                    s.capabilities =
                        capabilities(&["NET_ADMIN", "SYS_TIME"], &["NET_RAW", "MKNOD"]);
                })
            },
            "NoNewPrivs:\t0",
        ),
        (
            "all",
            |c| c.security(|s| s.capabilities = capabilities(&["ALL"], &[])),
            "CapBnd:\t000001ffffffffff",
        ),
        (
            "none",
            |c| c.security(|s| s.capabilities = capabilities(&[], &["ALL"])),
            "CapBnd:\t0000000000000000",
        ),
    ]
}

fn identity(cri: &Cri) -> Result<()> {
    let vm = PodBuilder::new(cri, Handler::Podvisor, "identity").run()?;
    let runc = PodBuilder::new(cri, Handler::Runc, "identity").run()?;
    for (name, change, expected) in identities() {
        let status = same([&vm, &runc], name, change, STATUS)?;
        ensure!(
            status.contains(expected),
            "{name}: {expected:?} is not in\n{status}"
        );
    }
    let group_alone = vm.container("group").security(|security| {
        security.run_as_group = Some(Int64Value { value: 1000 });
    });
    ensure!(group_alone.create().is_err(), "a group without a user");
    Ok(())
}

fn paths(cri: &Cri) -> Result<()> {
    let vm = PodBuilder::new(cri, Handler::Podvisor, "paths").run()?;
    let runc = PodBuilder::new(cri, Handler::Runc, "paths").run()?;
    let looks = "head -c 1 /proc/timer_list | wc -c; cat /etc/group | wc -l; ls -A /home | wc -l; touch /home/x; \
         touch /tmp/x; touch /var/x && echo /var; echo 0 > /proc/sys/kernel/panic; \
         mount | grep -E ' /(proc|sys) ' | cut -d ' ' -f 3- | sort";
    let masked: Change = |c| {
        c.security(|s| {
            s.masked_paths
                .extend(["/etc/group", "/home"].map(str::to_owned));
            s.masked_paths.push("/no/such/path".into());
            s.readonly_paths.push("/tmp".into());
        })
    };
    let seen = same([&vm, &runc], "masked", masked, looks)?;
    for expected in [
        "0\n0\n0\n",
        "touch: /home/x: Read-only file system",
        "touch: /tmp/x: Read-only file system",
        "/var\n",
        "/proc/sys/kernel/panic: Read-only file system",
    ] {
        ensure!(seen.contains(expected), "{expected:?} is not in\n{seen}");
    }
    let bare: Change = |c| {
        c.read_only_root().security(|s| {
            s.masked_paths.clear();
            s.readonly_paths.clear();
        })
    };
    let seen = same([&vm, &runc], "bare", bare, looks)?;
    ensure!(
        seen.contains("touch: /var/x: Read-only file system"),
        "the root is writable:\n{seen}"
    );
    ensure!(
        !seen.contains("can't create /proc/sys/kernel/panic"),
        "an unmasked /proc is read-only:\n{seen}"
    );
    Ok(())
}
