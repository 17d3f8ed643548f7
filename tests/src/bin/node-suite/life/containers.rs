//! Containers: every state they go through, one after another and many at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{
    Container as Listed, ContainerFilter, ContainerState, ContainerStateValue,
    RemoveContainerRequest, StopContainerRequest,
};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder};

use crate::case::{Case, beside_runc, gate};

const END: Duration = Duration::from_secs(60);

pub fn cases() -> Vec<Case> {
    vec![
        beside_runc("containers_go_through_all_their_states", states),
        beside_runc("containers_follow_one_another_in_a_living_pod", one_by_one),
        gate("twenty_containers_share_a_pod", twenty).shared(),
    ]
}

fn listed(cri: &Cri, id: &str) -> Result<Vec<Listed>> {
    cri.containers(ContainerFilter {
        id: id.into(),
        ..ContainerFilter::default()
    })
}

fn ensure_state(container: &Container<'_, '_>, expected: ContainerState) -> Result<()> {
    let status = container.status()?;
    ensure!(
        status.state() == expected,
        "{:?} instead of {expected:?}",
        status.state()
    );
    Ok(())
}

fn states(cri: &Cri, handler: Handler) -> Result<()> {
    let pod = PodBuilder::new(cri, handler, "states").plain().run()?;
    let builder = pod.container("subject").plain();
    let builder = builder
        .label("role", "subject")
        .annotation("suite.example/note", "kept")
        .attempt(2);
    let subject = builder
        .script("trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done")
        .create()?;
    let status = subject.status()?;
    ensure!(
        status.state() == ContainerState::ContainerCreated
            && status.created_at > 0
            && status.started_at == 0
            && status.finished_at == 0,
        "not as created: {status:?}"
    );
    let metadata = status.metadata.clone().context("no metadata")?;
    ensure!(
        (metadata.name.as_str(), metadata.attempt) == ("subject", 2),
        "{metadata:?}"
    );
    let role = status.labels.get("role").map(String::as_str);
    ensure!(role == Some("subject"), "labels: {status:?}");
    ensure!(!status.annotations.is_empty(), "annotations: {status:?}");
    ensure!(status.log_path.ends_with("/subject.log"), "{status:?}");
    ensure!(
        subject.exec(&["true"]).is_err(),
        "a command ran in a container that does not"
    );
    // Whoever creates a container may take his time to start it.
    std::thread::sleep(Duration::from_secs(2));
    subject.start()?;
    ensure_state(&subject, ContainerState::ContainerRunning)?;
    ensure!(subject.start().is_err(), "a container started twice");
    let node = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let hostname = subject.shell("hostname")?;
    ensure!(hostname == node.trim_end(), "{hostname:?} without a name");
    filters(cri, &pod, &subject)?;
    let taken = pod.container("subject").attempt(2).create();
    ensure!(taken.is_err(), "two containers have one name and attempt");
    podvisor_tests::wait::until("trap", Duration::from_secs(20), || {
        Ok(subject.log()?.stdout.contains("up").then_some(()))
    })?;
    subject.stop(END)?;
    subject.stop(END).context("second stop")?;
    let status = subject.status()?;
    ensure!(
        status.state() == ContainerState::ContainerExited
            && status.exit_code == 9
            && status.reason == "Error",
        "not as stopped: {status:?}"
    );
    let times = [status.created_at, status.started_at, status.finished_at];
    ensure!(times.is_sorted(), "times out of order: {times:?}");
    ensure!(
        status.finished_at - status.started_at > 0,
        "no time passed: {times:?}"
    );
    ensure!(subject.start().is_err(), "an ended container started");
    removals(cri, &pod, subject)
}

fn filters(cri: &Cri, pod: &Pod<'_>, subject: &Container<'_, '_>) -> Result<()> {
    let other = pod.container("other").label("role", "other").create()?;
    let of_pod = ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..ContainerFilter::default()
    };
    let in_state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue {
            state: state.into(),
        }),
        ..of_pod.clone()
    };
    let label = ContainerFilter {
        label_selector: [("role".to_owned(), "other".to_owned())].into(),
        ..of_pod.clone()
    };
    let (subject, other) = (subject.id.as_str(), other.id.as_str());
    for (what, filter, expected) in [
        ("pod", of_pod.clone(), vec![subject, other]),
        (
            "running",
            in_state(ContainerState::ContainerRunning),
            vec![subject],
        ),
        (
            "created",
            in_state(ContainerState::ContainerCreated),
            vec![other],
        ),
        ("exited", in_state(ContainerState::ContainerExited), vec![]),
        ("label", label, vec![other]),
    ] {
        let found = cri.containers(filter)?;
        let mut found: Vec<&str> = found.iter().map(|found| found.id.as_str()).collect();
        let mut expected = expected;
        found.sort_unstable();
        expected.sort_unstable();
        ensure!(
            found == expected,
            "by {what}: {found:?} instead of {expected:?}"
        );
    }
    Ok(())
}

/// Containers can be removed in every state, and what is gone can be stopped and removed again.
fn removals(cri: &Cri, pod: &Pod<'_>, exited: Container<'_, '_>) -> Result<()> {
    let created = pod.container("to-remove-created").create()?;
    let running = pod.container("to-remove-running").start()?;
    for (what, container) in [
        ("created", created),
        ("running", running),
        ("exited", exited),
    ] {
        container.remove().context(what)?;
        ensure!(
            listed(cri, &container.id)?.is_empty(),
            "{what}: still listed"
        );
        container
            .remove()
            .with_context(|| format!("{what}: second removal"))?;
    }
    let container_id = "0123456789abcdef".to_owned();
    let stop = StopContainerRequest {
        container_id: container_id.clone(),
        timeout: 0,
    };
    cri.call("stop of an unknown container", |mut c| async move {
        c.stop_container(stop).await
    })?;
    let remove = RemoveContainerRequest { container_id };
    cri.call("removal of an unknown container", |mut c| async move {
        c.remove_container(remove).await
    })?;
    Ok(())
}

/// Init containers in turn, then one that is restarted, also when nothing else runs.
fn one_by_one(cri: &Cri, handler: Handler) -> Result<()> {
    let pod = PodBuilder::new(cri, handler, "turns").run()?;
    let volume = pod.volume("shared")?;
    for (index, name) in ["init-one", "init-two"].into_iter().enumerate() {
        let script =
            format!("[ $(cat /shared/* | wc -l) = {index} ] && echo {name} > /shared/{name}");
        let init = pod.container(name).mount(&volume, "/shared");
        let init = init.script(&script).start()?;
        let status = init.wait(END)?;
        ensure!(
            status.exit_code == 0 && status.reason == "Completed",
            "{name}: {status:?}"
        );
    }
    let mut ended: Option<Container<'_, '_>> = None;
    for attempt in 0..3 {
        let main = pod.container("main").mount(&volume, "/shared");
        let main = main
            .script(&format!("cat /shared/init-two; echo {attempt}; exit 4"))
            .attempt(attempt);
        let main = main.start()?;
        let status = main.wait(END)?;
        ensure!(status.exit_code == 4, "attempt {attempt}: {status:?}");
        ensure!(
            main.log()?
                .stdout
                .ends_with(&format!("init-two\n{attempt}\n")),
            "attempt {attempt}: {:?}",
            main.log()?
        );
        // The kubelet keeps the last one that ended, for its log and status.
        if let Some(before) = ended.replace(main) {
            before.remove()?;
        }
    }
    let last = pod.container("main").attempt(3).start()?;
    ensure!(last.shell("echo alive")? == "alive", "the last attempt");
    Ok(())
}

fn twenty(cri: &Cri) -> Result<()> {
    const COUNT: usize = 20;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "twenty")
        .memory_mib(256)
        .run()?;
    let mut containers = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let name = format!("c{number}");
        let container = pod.container(&name).script(&format!(
            "echo {name} > /dev/shm/{name}; echo {name}; trap 'exit {number}' TERM; while :; do sleep 0.5; done"
        ));
        containers.push(container.start()?);
    }
    let first = containers.first().context("no container")?;
    podvisor_tests::wait::until("all twenty", END, || {
        Ok((first.shell("ls /dev/shm | wc -l")? == COUNT.to_string()).then_some(()))
    })?;
    for (number, container) in containers.iter().enumerate() {
        ensure!(
            container.log()?.stdout == format!("c{number}\n"),
            "container {number} has another's log"
        );
    }
    // Every second one goes; the others do not notice.
    for container in containers.iter().skip(1).step_by(2) {
        container.stop(Duration::from_secs(0))?;
        container.remove()?;
    }
    for (number, container) in containers.iter().enumerate().step_by(2) {
        ensure!(
            container.shell("cat /proc/1/cmdline | grep -c sleep")? == "1",
            "container {number} is gone"
        );
    }
    Ok(())
}
