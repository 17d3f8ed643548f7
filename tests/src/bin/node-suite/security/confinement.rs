//! System call filters and AppArmor profiles.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::SecurityProfile;
use podvisor_proto::cri::v1::security_profile::ProfileType;
use podvisor_tests::{Cri, Handler, PodBuilder};

use super::compare::{Change, same};
use crate::case::{Case, gate};

/// A filter of system calls on the node.
const FILTER: &str = "/run/podvisor-test-filter.json";
/// Forbids two system calls by different errors and ends who makes a third.
const FILTER_TEXT: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86"],
    "syscalls": [
        {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["mknod", "mknodat"], "action": "SCMP_ACT_KILL"}
    ]
}"#;
/// Two profiles that come in one policy; one allows all, the other no writing.
const PROFILES: &str = "
profile podvisor-test-no-writing flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  signal,
  ptrace,
  unix,
  deny /** w,
}
profile podvisor-test-anything flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  signal,
  ptrace,
  unix,
}
";

pub fn cases() -> Vec<Case> {
    vec![
        gate("system_call_filters_are_as_with_runc", filters),
        gate("an_apparmor_profile_is_enforced_in_the_guest", apparmor),
    ]
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

fn filters(cri: &Cri) -> Result<()> {
    fs::write(FILTER, FILTER_TEXT)?;
    let vm = PodBuilder::new(cri, Handler::Podvisor, "filter")
        .privileged()
        .run()?;
    let runc = PodBuilder::new(cri, Handler::Runc, "filter")
        .privileged()
        .run()?;
    // Whether a killed program leaves a core file is the kernel's own affair.
    let script = "ulimit -c 0; grep -E '^(NoNewPrivs|Seccomp:)' /proc/self/status; chmod 755 /tmp && echo changed; \
        hostname other; mkfifo /tmp/fifo; echo $?";
    let mine: Change = |c| {
        c.security(|s| {
            s.seccomp = profile(ProfileType::Localhost, FILTER);
            s.capabilities.get_or_insert_default().add_capabilities = vec!["SYS_ADMIN".into()];
        })
    };
    let no_new_privileges: Change = |c| {
        c.security(|s| {
            s.seccomp = profile(ProfileType::Localhost, FILTER);
            s.no_new_privs = true;
        })
    };
    let default: Change = |c| c;
    let unconfined: Change = |c| c.security(|s| s.seccomp = profile(ProfileType::Unconfined, ""));
    let none: Change = |c| c.security(|s| s.seccomp = None);
    let privileged: Change = |c| {
        // Those of a privileged container do not count.
        c.privileged()
            .security(|s| s.seccomp = profile(ProfileType::Localhost, FILTER))
    };
    for (name, change, expected) in [
        ("mine", mine, "Seccomp:\t2"),
        ("no-new-privileges", no_new_privileges, "NoNewPrivs:\t1"),
        ("default", default, "Seccomp:\t2"),
        ("unconfined", unconfined, "Seccomp:\t0"),
        ("none", none, "Seccomp:\t0"),
        ("privileged", privileged, "Seccomp:\t0"),
    ] {
        let seen = same([&vm, &runc], name, change, script)?;
        ensure!(
            seen.contains(expected),
            "{name}: {expected:?} is not in\n{seen}"
        );
    }
    fs::remove_file(FILTER)?;
    Ok(())
}

/// Compiles profiles and has the node's kernel load (`--replace`) or forget (`--remove`) them.
fn apparmor_parser(action: &str) -> Result<()> {
    let mut parser = Command::new("apparmor_parser")
        .args([action, "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .context("run apparmor_parser")?;
    let mut input = parser.stdin.take().context("no input")?;
    input.write_all(PROFILES.as_bytes())?;
    drop(input);
    let status = parser.wait()?;
    ensure!(status.success(), "apparmor_parser {action}: {status}");
    Ok(())
}

fn apparmor(cri: &Cri) -> Result<()> {
    apparmor_parser("--replace")?;
    let enforced = enforcement(cri);
    apparmor_parser("--remove")?;
    enforced
}

fn enforcement(cri: &Cri) -> Result<()> {
    for handler in [Handler::Runc, Handler::Podvisor] {
        let pod = PodBuilder::new(cri, handler, "apparmor").run()?;
        let named = |name: &str, profile: &str| {
            let reference = format!("localhost/{profile}");
            // The older field and the newer one.
            pod.container(name).security(|security| {
                if name == "older" {
                    #[expect(deprecated, reason = "older kubelets set this field")]
                    security.apparmor_profile.clone_from(&reference);
                } else {
                    security.apparmor = self::profile(ProfileType::Localhost, &reference);
                }
            })
        };
        let touch = ["touch", "/tmp/file"];
        for (name, profile, code) in [
            ("newer", "podvisor-test-no-writing", 1),
            ("older", "podvisor-test-anything", 0),
        ] {
            let container = named(name, profile).command(&touch).start()?;
            let ended = container.wait(Duration::from_secs(60))?;
            ensure!(ended.exit_code == code, "{handler:?} {name}: {ended:?}");
        }
        let container = named("exec", "podvisor-test-no-writing").start()?;
        let exec = container.exec(&touch)?;
        ensure!(exec.code == 1, "{handler:?}: an exec writes: {exec:?}");
        let label = container.shell("cat /proc/self/attr/current")?;
        ensure!(
            label == "podvisor-test-no-writing (enforce)",
            "{handler:?}: {label}"
        );
        let missing = named("missing", "no-such-profile").start();
        let error = missing.err().context("a missing profile was taken")?;
        ensure!(
            format!("{error:#}").contains("no-such-profile"),
            "{error:#}"
        );
    }
    Ok(())
}
