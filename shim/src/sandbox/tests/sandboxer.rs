//! A pod as containerd's sandboxer "shim" drives it: through the sandbox service, without a spec.

use std::path::Path;

use podvisor_proto::containerd::any_of;
use podvisor_proto::containerd::pod_config::{LinuxPodSandboxConfig, PodSandboxConfig};
use podvisor_proto::containerd::sandbox::*;
use podvisor_proto::containerd::task::WaitRequest;
use podvisor_proto::ttrpc::{Code, Status as TtrpcStatus};

use super::{CONTAINER, Pod, SANDBOX, code};

impl Pod {
    async fn create_sandbox(&self, netns: &str) -> Result<CreateSandboxResponse, TtrpcStatus> {
        let config = PodSandboxConfig {
            hostname: "web".into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = CreateSandboxRequest {
            sandbox_id: SANDBOX.into(),
            bundle_path: self.folder.path().display().to_string(),
            options: Some(any_of(&config)),
            netns_path: netns.into(),
            ..CreateSandboxRequest::default()
        };
        self.sandbox.create_sandbox(request).await
    }

    async fn sandbox_state(&self) -> String {
        let sandbox_id = SANDBOX.to_owned();
        let request = SandboxStatusRequest {
            sandbox_id,
            verbose: true,
        };
        let status = self.sandbox.sandbox_status(request).await.unwrap();
        assert_ne!(status.pid, 0);
        assert_eq!(status.sandbox_id, SANDBOX);
        status.state
    }

    async fn stop_sandbox(&self) {
        let request = StopSandboxRequest {
            sandbox_id: SANDBOX.into(),
            timeout_secs: 0,
        };
        self.sandbox.stop_sandbox(request).await.unwrap();
    }
}

fn shutdown() -> ShutdownSandboxRequest {
    ShutdownSandboxRequest {
        sandbox_id: SANDBOX.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_lives_and_lets_its_network_go_before_its_stop_is_over() {
    let pod = Pod::unplaced();
    assert_eq!(pod.sandbox_state().await, "SANDBOX_NOTREADY");
    pod.create_sandbox("/run/netns/x").await.unwrap();
    let again = pod.create_sandbox("/run/netns/x").await;
    assert_eq!(code(again), Code::AlreadyExists);
    let sandbox_id = SANDBOX.to_owned();
    let started = pod
        .sandbox
        .start_sandbox(StartSandboxRequest { sandbox_id })
        .await;
    assert!(started.unwrap().created_at.is_some());
    assert_eq!(pod.sandbox_state().await, "SANDBOX_READY");
    {
        let state = pod.guest.state.lock().unwrap();
        let leaf = format!("kubepods/pod1/podvisor-{SANDBOX}");
        assert_eq!(state.cgroup.as_deref(), Some(Path::new(&leaf)));
        assert_eq!(state.oom_score, Some(-998));
        assert_eq!(state.files.as_ref().unwrap().hostname, "web");
    }
    pod.create(CONTAINER).await.unwrap();
    pod.start(CONTAINER, "").await.unwrap();

    pod.stop_sandbox().await;
    assert!(!pod.guest.state.lock().unwrap().redirected);
    assert_eq!(pod.sandbox_state().await, "SANDBOX_NOTREADY");
    assert_eq!(pod.wait(CONTAINER, "").await, 137);
    let id = SANDBOX.to_owned();
    let wait = WaitSandboxRequest { sandbox_id: id };
    assert_eq!(
        pod.sandbox.wait_sandbox(wait).await.unwrap().exit_status,
        137
    );
    pod.stop_sandbox().await;
    pod.delete(CONTAINER, "").await.unwrap();
    pod.sandbox.shutdown_sandbox(shutdown()).await.unwrap();
    pod.actor.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_on_the_hosts_network_is_refused_and_shut_down() {
    let pod = Pod::unplaced();
    let refused = pod.create_sandbox("").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("host network"), "{refused}");
    let request = WaitRequest {
        id: SANDBOX.into(),
        exec_id: String::new(),
    };
    assert_eq!(code(pod.client.wait(request).await), Code::NotFound);
    pod.stop_sandbox().await;
    pod.sandbox.shutdown_sandbox(shutdown()).await.unwrap();
    pod.actor.await.unwrap();
}
