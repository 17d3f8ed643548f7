//! Pods whose container is a machine of its own.

use std::io::Write as _;

use super::*;

/// The annotation that makes a pod one of machines.
pub(super) const MACHINE: &str = r#","podvisor.io/boot":"machine""#;

impl Pod {
    /// A running pod of a kind.
    pub(super) async fn of_kind(annotations: &str) -> Self {
        let pod = Self::new();
        pod.run_kind(annotations).await;
        pod
    }

    async fn run_kind(&self, annotations: &str) {
        let request = CreateTaskRequest {
            id: SANDBOX.into(),
            bundle: self.annotated_bundle(SANDBOX, "sandbox", annotations),
            ..CreateTaskRequest::default()
        };
        self.client.create(request).await.unwrap();
        self.start(SANDBOX, "").await.unwrap();
    }

    /// Runs a machine in a pod that is not running yet.
    pub(super) async fn run_machine(&self) {
        self.run_kind(MACHINE).await;
        self.create_machine(CONTAINER).await.unwrap();
        self.start(CONTAINER, "").await.unwrap();
    }

    /// Creates a container whose image brings a disk, with its output in a file.
    pub(super) async fn create_machine(&self, id: &str) -> Result<CreateTaskResponse, TtrpcStatus> {
        let bundle = self.bundle(id, "container");
        self.create_in(id, bundle).await
    }

    /// Creates such a container with mounts of (destination, source, access).
    async fn create_with(
        &self,
        id: &str,
        mounts: &[(&str, &std::path::Path, &str)],
    ) -> Result<CreateTaskResponse, TtrpcStatus> {
        let bundle = self.bundle(id, "container");
        let config = std::path::Path::new(&bundle).join("config.json");
        let mut spec: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        spec["mounts"] = mounts
            .iter()
            .map(|(destination, source, access)| {
                serde_json::json!({"destination": destination, "source": source, "type": "bind",
                    "options": ["rbind", access]})
            })
            .collect();
        std::fs::write(config, spec.to_string()).unwrap();
        self.create_in(id, bundle).await
    }

    async fn create_in(&self, id: &str, bundle: String) -> Result<CreateTaskResponse, TtrpcStatus> {
        let folder = std::path::Path::new(&bundle).join("rootfs/disk");
        std::fs::create_dir_all(&folder).unwrap();
        let mut disk = std::fs::File::create(folder.join("a.raw")).unwrap();
        disk.write_all(&[7; 4096]).unwrap();
        let request = CreateTaskRequest {
            id: id.into(),
            bundle,
            stdout: format!("file://{}", self.transcript_path().display()),
            ..CreateTaskRequest::default()
        };
        self.client.create(request).await
    }

    fn transcript_path(&self) -> PathBuf {
        self.folder.path().join("transcript")
    }

    fn transcript(&self) -> String {
        std::fs::read_to_string(self.transcript_path()).unwrap_or_default()
    }

    fn launched(&self) -> Vec<bool> {
        self.guest.state.lock().unwrap().launched.clone()
    }

    async fn running_machine() -> Self {
        let pod = Self::new();
        pod.run_machine().await;
        pod
    }

    /// Makes an exec, once the machine's agent answers: to it, any container is the machine.
    async fn exec_in_machine(&self, exec: &str) {
        let init = (CONTAINER.to_owned(), String::new());
        self.guest.state.lock().unwrap().processes.insert(init);
        for _ in 0..1000 {
            if self.exec(CONTAINER, exec).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no agent answers");
    }

    pub(super) async fn eventually(&self, condition: impl Fn(&fake::State) -> bool) {
        for _ in 0..1000 {
            if condition(&self.guest.state.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never comes");
    }
}

#[tokio::test]
async fn a_machine_lives_and_ends_with_its_container() {
    let pod = Pod::of_kind(MACHINE).await;
    assert_eq!(pod.status(SANDBOX).await, Status::Running);
    pod.create_machine(CONTAINER).await.unwrap();
    assert!(pod.launched().is_empty());
    pod.start(CONTAINER, "").await.unwrap();
    assert_eq!(pod.launched(), [true]);
    pod.guest.end(EndReason::Shutdown);
    assert_eq!(pod.wait(CONTAINER, "").await, 0);
    assert_eq!(pod.status(SANDBOX).await, Status::Running);
    pod.delete(CONTAINER, "").await.unwrap();
    pod.create_machine("c2").await.unwrap();
    pod.start("c2", "").await.unwrap();
    assert_eq!(pod.launched(), [true, true]);
    pod.kill(SANDBOX, "", 9).await.unwrap();
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    assert_eq!(pod.wait("c2", "").await, 137);
}

#[tokio::test]
async fn a_guest_that_was_booted_in_advance_makes_room_for_a_machine() {
    let pod = Pod::of_kind("").await;
    assert_eq!(pod.launched(), [false]);
    pod.create_machine(CONTAINER).await.unwrap();
    pod.start(CONTAINER, "").await.unwrap();
    assert_eq!(pod.launched(), [false, true]);
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
    assert_eq!(pod.status(SANDBOX).await, Status::Running);
}

#[tokio::test]
async fn a_machine_is_alone_in_its_pod() {
    let pod = Pod::running_machine().await;
    assert_eq!(code(pod.create_machine("c2").await), Code::InvalidArgument);
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
}

#[tokio::test]
async fn a_gentle_signal_presses_the_power_button_and_a_hard_one_pulls_the_plug() {
    let pod = Pod::running_machine().await;
    pod.kill(CONTAINER, "", 15).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "").await, 0);
    let pod = Pod::running_machine().await;
    pod.kill(CONTAINER, "", 9).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "").await, 137);
}

#[tokio::test]
async fn a_panic_is_the_transcripts_last_line() {
    let pod = Pod::running_machine().await;
    let message = "attempted to kill init".to_owned();
    pod.guest.console.lock().unwrap().take();
    pod.guest.end(EndReason::GuestPanic { message });
    assert_eq!(pod.wait(CONTAINER, "").await, 255);
    pod.delete(CONTAINER, "").await.unwrap();
    assert!(
        pod.transcript().contains("attempted to kill init"),
        "{}",
        pod.transcript()
    );
}

#[tokio::test]
async fn a_disk_that_does_not_boot_fails_the_start_with_what_was_found() {
    let pod = Pod::of_kind(MACHINE).await;
    pod.guest.state.lock().unwrap().unbootable = true;
    pod.create_machine(CONTAINER).await.unwrap();
    let starting = pod.start(CONTAINER, "");
    let (started, ()) = tokio::join!(starting, async {
        pod.eventually(|state| state.boots > 0).await;
        pod.guest.console.lock().unwrap().take();
    });
    let error = started.unwrap_err();
    assert!(error.message().contains("no partition table"), "{error}");
    assert_eq!(pod.status(CONTAINER).await, Status::Stopped);
    pod.delete(CONTAINER, "").await.unwrap();
    assert!(pod.transcript().contains("no partition table"));
}

#[tokio::test]
async fn commands_run_once_an_agent_answers() {
    let pod = Pod::of_kind(MACHINE).await;
    pod.guest.state.lock().unwrap().agentless = true;
    let (nobody, _) = tokio::io::duplex(64);
    *pod.guest.qga.lock().unwrap() = Some(nobody);
    pod.create_machine(CONTAINER).await.unwrap();
    pod.start(CONTAINER, "").await.unwrap();
    let error = pod.exec(CONTAINER, "e1").await.unwrap_err();
    assert!(error.message().contains("qemu-guest-agent"), "{error}");
    let pod = Pod::running_machine().await;
    pod.exec_in_machine("e1").await;
    pod.start(CONTAINER, "e1").await.unwrap();
    pod.guest.exit(CONTAINER, "e1", 3);
    assert_eq!(pod.wait(CONTAINER, "e1").await, 3);
}

#[tokio::test]
async fn a_reboot_boots_again_and_ends_what_ran() {
    let pod = Pod::running_machine().await;
    pod.eventually(|state| state.boots == 1).await;
    pod.exec_in_machine("e1").await;
    pod.start(CONTAINER, "e1").await.unwrap();
    pod.guest.restart();
    assert_eq!(pod.wait(CONTAINER, "e1").await, 255);
    pod.eventually(|state| state.boots == 2).await;
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
}

#[tokio::test]
async fn volumes_get_their_places_after_every_boot_and_follow_the_host() {
    let config = tempfile::tempdir().unwrap();
    std::fs::create_dir(config.path().join("..1")).unwrap();
    std::os::unix::fs::symlink("..1", config.path().join("..data")).unwrap();
    let data = tempfile::tempdir().unwrap();
    let pod = Pod::of_kind(MACHINE).await;
    let mounts = [
        ("/etc/app", config.path(), "ro"),
        ("/data", data.path(), "rw"),
    ];
    pod.create_with(CONTAINER, &mounts).await.unwrap();
    pod.start(CONTAINER, "").await.unwrap();
    pod.eventually(|state| state.volumes.len() == 1).await;
    let applied = pod.guest.state.lock().unwrap().applied;
    std::fs::write(config.path().join("..new"), "").unwrap();
    pod.eventually(|state| state.applied > applied).await;
    pod.guest.restart();
    pod.eventually(|state| state.volumes.len() == 2).await;
    let volumes = pod.guest.state.lock().unwrap().volumes.clone();
    let at = |place: &str, source: &str| (place.to_owned(), source.to_owned());
    let wanted = [
        at("/etc/app", "/run/podvisor/mirror/etc-app"),
        at("/data", "/run/podvisor/shared/data"),
    ];
    assert!(
        volumes.iter().all(|mounted| *mounted == wanted),
        "{volumes:?}"
    );
    assert!(pod.transcript().contains("mount -t virtiofs podvisor /mnt"));
}

#[tokio::test]
async fn a_volume_that_would_hide_a_machines_system_is_refused_by_its_place() {
    let data = tempfile::tempdir().unwrap();
    let pod = Pod::of_kind(MACHINE).await;
    let created = pod
        .create_with(CONTAINER, &[("/usr", data.path(), "rw")])
        .await;
    let error = created.unwrap_err();
    assert!(error.message().contains("mounts: /usr: "), "{error}");
}
