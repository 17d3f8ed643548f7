//! Pods: made, listed, stopped and removed, in every order.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, RemovePodSandboxRequest, StatusRequest, StopPodSandboxRequest,
    VersionRequest,
};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder};

use crate::case::{Case, beside_runc, gate};

pub fn cases() -> Vec<Case> {
    vec![
        beside_runc("a_pod_is_listed_with_what_it_was_made_of", listed),
        beside_runc("pods_stop_and_go_in_every_order", orders),
        gate("a_pod_stops_while_a_container_is_made", stop_during_create),
    ]
}

fn filter(pod: &Pod<'_>) -> PodSandboxFilter {
    PodSandboxFilter {
        id: pod.id.clone(),
        ..PodSandboxFilter::default()
    }
}

fn in_state(state: PodSandboxState) -> Option<PodSandboxStateValue> {
    Some(PodSandboxStateValue {
        state: state.into(),
    })
}

fn state(pod: &Pod<'_>) -> Result<PodSandboxState> {
    Ok(pod.status()?.status.context("no status")?.state())
}

fn listed(cri: &Cri, handler: Handler) -> Result<()> {
    runtime_is_ready(cri)?;
    let builder = PodBuilder::new(cri, handler, "listed").plain();
    let pod = builder
        .label("suite-label", "yes")
        .annotation("suite.example/note", "kept")
        .run()?;
    let status = pod.status()?.status.context("no status")?;
    ensure!(
        status.metadata == pod.config().metadata
            && status.labels == pod.config().labels
            && status.annotations == pod.config().annotations,
        "the pod is not as it was asked to be: {status:?}"
    );
    ensure!(status.created_at > 0, "no time of creation");
    let label = |value: &str| PodSandboxFilter {
        label_selector: [("suite-label".to_owned(), value.to_owned())].into(),
        ..filter(&pod)
    };
    let state = |state| PodSandboxFilter {
        state: in_state(state),
        ..filter(&pod)
    };
    let ready = state(PodSandboxState::SandboxReady);
    let not_ready = state(PodSandboxState::SandboxNotready);
    for (what, filter, expected) in [
        ("id", filter(&pod), 1),
        ("label", label("yes"), 1),
        ("another label", label("no"), 0),
        ("ready", ready.clone(), 1),
        ("not ready", not_ready.clone(), 0),
    ] {
        let found = cri.pods(filter)?;
        ensure!(found.len() == expected, "by {what}: {found:?}");
        let same = found.iter().all(|found| found.metadata == status.metadata);
        ensure!(same, "another pod by {what}: {found:?}");
    }
    pod.stop()?;
    ensure!(cri.pods(ready)?.is_empty(), "a stopped pod is ready");
    ensure!(cri.pods(not_ready)?.len() == 1, "a stopped pod is gone");
    pod.remove()?;
    ensure!(
        cri.pods(filter(&pod))?.is_empty(),
        "a removed pod is listed"
    );
    Ok(())
}

fn runtime_is_ready(cri: &Cri) -> Result<()> {
    let version = cri.call("Version", |mut c| async move {
        c.version(VersionRequest::default()).await
    })?;
    ensure!(version.runtime_name == "containerd", "{version:?}");
    let status = cri.call("Status", |mut c| async move {
        c.status(StatusRequest::default()).await
    })?;
    let conditions = status.status.context("no status")?.conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let ready = conditions
            .iter()
            .any(|condition| condition.r#type == wanted && condition.status);
        ensure!(ready, "no {wanted}: {conditions:?}");
    }
    Ok(())
}

fn orders(cri: &Cri, handler: Handler) -> Result<()> {
    let first = PodBuilder::new(cri, handler, "orders").run()?;
    let running = first.container("running").start()?;
    let created = first.container("created").create()?;
    let again = PodBuilder::new(cri, handler, "taken").attempt_of(&first, 0);
    ensure!(again.run().is_err(), "two pods have one name and attempt");
    first.stop()?;
    ensure!(state(&first)? == PodSandboxState::SandboxNotready, "ready");
    let status = running.status()?;
    ensure!(
        status.state() == ContainerState::ContainerExited && status.finished_at > 0,
        "its container outlives a pod: {status:?}"
    );
    let late = first.container("late").start();
    ensure!(late.is_err(), "a container was made in a stopped pod");
    ensure!(
        created.start().is_err(),
        "a stopped pod's container started"
    );
    first.stop().context("second stop")?;
    // The kubelet makes the next attempt before it removes the one that ended.
    let second = PodBuilder::new(cri, handler, "orders").attempt_of(&first, 1);
    let second = second.run()?;
    first.remove()?;
    first.remove().context("second removal")?;
    let container = second.container("idle").start()?;
    ensure!(container.shell("echo alive")? == "alive", "a dead attempt");
    created.remove().context("a container of a removed pod")?;
    unknown(cri)
}

/// What is not there can be stopped and removed.
fn unknown(cri: &Cri) -> Result<()> {
    let pod_sandbox_id = "0123456789abcdef".to_owned();
    let stop = StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    cri.call("stop of an unknown pod", |mut c| async move {
        c.stop_pod_sandbox(stop).await
    })?;
    let remove = RemovePodSandboxRequest { pod_sandbox_id };
    cri.call("removal of an unknown pod", |mut c| async move {
        c.remove_pod_sandbox(remove).await
    })?;
    Ok(())
}

/// Whichever comes first, all are answered, and the pod goes.
fn stop_during_create(cri: &Cri) -> Result<()> {
    // Containerd makes a container's task when it is started: these starts reach the guest while
    // it is being ended, or do not reach it.
    const HEAD_START: Duration = Duration::from_millis(100);
    let pod = PodBuilder::new(cri, Handler::Podvisor, "race").run()?;
    let mut starts = Vec::new();
    for number in 0..4 {
        let id = pod.container(&format!("c{number}")).create()?.id;
        starts.push(move || Container::start_by_id(&Cri::connect()?, &id));
    }
    let starts: Vec<_> = starts.into_iter().map(thread::spawn).collect();
    thread::sleep(HEAD_START);
    pod.stop()?;
    for start in starts {
        let result = start.join();
        let result = result.map_err(|_| anyhow::anyhow!("a starting thread panicked"))?;
        if let Err(error) = result {
            println!("not started: {error:#}");
        }
    }
    let running = ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        state: Some(ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        ..ContainerFilter::default()
    };
    ensure!(cri.containers(running)?.is_empty(), "a container runs on");
    let late = pod.container("too-late").start();
    ensure!(late.is_err(), "a stopped pod takes a container");
    ensure!(state(&pod)? == PodSandboxState::SandboxNotready, "ready");
    pod.remove()
}
