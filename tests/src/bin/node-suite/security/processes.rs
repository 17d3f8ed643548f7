//! Which processes a container sees.

use std::time::Duration;

use anyhow::{Result, ensure};
use podvisor_proto::cri::v1::{NamespaceMode, NamespaceOption};
use podvisor_tests::{Container, ContainerBuilder, Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("containers_share_processes_where_the_pod_says_so", shared),
        gate("a_container_joins_the_processes_of_another", target),
    ]
}

fn pid_mode<'p, 'c>(
    container: ContainerBuilder<'p, 'c>,
    mode: NamespaceMode,
    target: &str,
) -> ContainerBuilder<'p, 'c> {
    container.security(|security| {
        security.namespace_options = Some(NamespaceOption {
            pid: mode.into(),
            target_id: target.into(),
            ..NamespaceOption::default()
        });
    })
}

fn commands(container: &Container<'_, '_>) -> Result<String> {
    container.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
}

/// Each handler alike: the pod's own first process, every container's below it, and none left
/// over when its container ends.
fn shared(cri: &Cri) -> Result<()> {
    for handler in [Handler::Runc, Handler::Podvisor] {
        let share = |options: &mut NamespaceOption| options.set_pid(NamespaceMode::Pod);
        let pod = PodBuilder::new(cri, handler, "shared")
            .security(|s| share(s.namespace_options.get_or_insert_default()))
            .run()?;
        let first = pod
            .container("first")
            .script("sleep 1111 & exec sleep 1112");
        let first = pid_mode(first, NamespaceMode::Pod, "").start()?;
        let second = pod.container("second");
        let second = pid_mode(second, NamespaceMode::Pod, "").start()?;
        let alone = pod.container("alone").start()?;
        wait::until("the other's processes", Duration::from_secs(20), || {
            let seen = commands(&second)?;
            let all = seen.contains("sleep 1111") && seen.contains("sleep 1112");
            Ok(all.then_some(()))
        })?;
        let init = second.shell("cat /proc/1/cmdline")?;
        ensure!(
            !init.contains("sleep 111") && !init.contains("sleep infinity"),
            "a container's init is the pod's: {init}"
        );
        let own = alone.shell("echo $$; cat /proc/1/cmdline | tr '\\0' ' '")?;
        ensure!(own.ends_with("sleep infinity"), "not alone: {own}");
        ensure!(!commands(&alone)?.contains("sleep 1111"), "sees others");
        // An orphan goes to the pod's init, which reaps it.
        second.shell("(sleep 0.1 & exec true)")?;
        wait::until("no zombie", Duration::from_secs(20), || {
            let zombies = second.shell("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l")?;
            Ok((zombies == "0").then_some(()))
        })?;
        first.stop(Duration::ZERO)?;
        wait::until("the first one's end", Duration::from_secs(20), || {
            Ok((!commands(&second)?.contains("sleep 111")).then_some(()))
        })?;
    }
    Ok(())
}

/// What an ephemeral container of `kubectl debug --target` is.
fn target(cri: &Cri) -> Result<()> {
    for handler in [Handler::Runc, Handler::Podvisor] {
        let pod = PodBuilder::new(cri, handler, "target").run()?;
        let first = pod.container("first").script("exec sleep 1111").start()?;
        let second = pod.container("second").script("exec sleep 2222").start()?;
        let debugger = pod.container("debugger");
        let debugger = pid_mode(debugger, NamespaceMode::Target, &second.id).start()?;
        let seen = commands(&debugger)?;
        ensure!(seen.contains("sleep 2222"), "not the target's: {seen}");
        ensure!(!seen.contains("sleep 1111"), "another's: {seen}");
        ensure!(
            debugger.shell("cat /proc/1/cmdline | tr '\\0' ' '")? == "sleep 2222",
            "the target is not the first process"
        );
        ensure!(
            commands(&second)?.contains("sleep infinity"),
            "the target does not see the debugger"
        );
        first.stop(Duration::ZERO)?;
        ensure!(debugger.shell("echo lives")? == "lives", "ended by another");
        // The processes of a namespace end with its first.
        second.stop(Duration::ZERO)?;
        debugger.wait(Duration::from_secs(30))?;
    }
    Ok(())
}
