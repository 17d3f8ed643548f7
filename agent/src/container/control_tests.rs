//! Processes are deleted whatever they do. The container's cgroup is a plain folder, and what the
//! kernel does when its `cgroup.kill` is written is done by the test.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;
use crate::container::process::{Process, ProcessStreams};
use crate::container::{Container, Exec};
use crate::huge_pages::HugePages;
use crate::reaper::Ended;

const CONTAINER: &str = "web";

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

/// A process in `phase` that is `child`.
fn process_of(child: &Child, phase: Phase) -> Process {
    let mut process = Process::new(phase, ProcessStreams::default());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    process.pid = child.id();
    process.pidfd = Some(Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap()));
    process
}

/// A container without execs whose cgroup is `folder`.
fn container_in(folder: &Path, init: Process) -> Containers {
    std::fs::write(folder.join("cgroup.kill"), "").unwrap();
    let containers = Containers::new().unwrap();
    containers
        .table()
        .pids
        .insert(init.pid, ProcessKey::init(CONTAINER));
    let container = Container {
        spec_json: Vec::new(),
        cgroup: Cgroup::at(folder.to_path_buf()),
        _huge_pages: HugePages::default(),
        init,
        execs: HashMap::new(),
        oom_kills: 0,
        last_metrics: None,
        deleting: false,
    };
    containers
        .table()
        .containers
        .insert(CONTAINER.to_owned(), container);
    containers
}

fn add_exec(containers: &Containers, key: &ProcessKey, process: Process) {
    let mut table = containers.table();
    table.pids.insert(process.pid, key.clone());
    let exec = Exec {
        process,
        process_json: Vec::new(),
        terminal: false,
    };
    let container = table.container(&key.container_id).unwrap();
    container.execs.insert(key.exec_id.clone(), exec);
}

fn exec_key() -> ProcessKey {
    ProcessKey {
        container_id: CONTAINER.to_owned(),
        exec_id: "shell".to_owned(),
    }
}

/// Reaps `child` once it has ended.
async fn reap(containers: &Containers, child: &mut Child) {
    while child.try_wait().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    containers.reaped(Ended {
        pid: child.id(),
        status: 137,
    });
}

/// Kills `child` when the cgroup's processes are to be, and reaps it.
async fn obey(containers: &Containers, folder: &Path, child: &mut Child) {
    let kill = folder.join("cgroup.kill");
    while std::fs::read_to_string(&kill).unwrap() != "1" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The files of a real cgroup are not in the way of its removal.
    std::fs::remove_file(kill).unwrap();
    child.kill().unwrap();
    reap(containers, child).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_init_is_deleted_with_its_container_in_every_phase() {
    let init = ProcessKey::init(CONTAINER);
    for phase in [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
    ] {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("cgroup");
        std::fs::create_dir(&folder).unwrap();
        let mut child = sleeper();
        let containers = container_in(&folder, process_of(&child, phase));
        let (deleted, ()) = tokio::join!(
            containers.delete(&init),
            obey(&containers, &folder, &mut child)
        );
        deleted.unwrap();
        assert!(!folder.exists(), "{phase:?}");
        assert!(containers.table().pids.is_empty(), "{phase:?}");
        let again = containers.delete(&init).await;
        assert!(
            matches!(again, Err(ContainerError::NotFound(_))),
            "{phase:?}"
        );
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_exec_that_runs_is_killed_and_deleted_and_its_container_stays() {
    let key = exec_key();
    for phase in [Phase::Starting, Phase::Running] {
        let directory = tempfile::tempdir().unwrap();
        let init = Process::new(Phase::Running, ProcessStreams::default());
        let containers = container_in(directory.path(), init);
        let mut child = sleeper();
        add_exec(&containers, &key, process_of(&child, phase));
        // Two at once: neither minds the other.
        let (first, second, ()) = tokio::join!(
            containers.delete(&key),
            containers.delete(&key),
            reap(&containers, &mut child)
        );
        first.unwrap();
        second.unwrap();
        assert!(containers.table().process(&key).is_err(), "{phase:?}");
        assert!(containers.table().container(CONTAINER).is_ok(), "{phase:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_exec_without_a_process_is_deleted_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let init = Process::new(Phase::Running, ProcessStreams::default());
    let containers = container_in(directory.path(), init);
    for phase in [Phase::Created, Phase::Ended] {
        let promised = Process::new(phase, ProcessStreams::default());
        add_exec(&containers, &exec_key(), promised);
        containers.delete(&exec_key()).await.unwrap();
        let again = containers.delete(&exec_key()).await;
        assert!(matches!(again, Err(ContainerError::NotFound(_))));
    }
}
