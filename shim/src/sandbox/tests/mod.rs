//! A pod over a guest that is a table, through the very service that containerd calls.

mod failures;
pub mod fake;
mod fake_agent;
pub mod fake_host;
mod guest_agent;
mod machines;
mod ports;
mod resources;
mod sandboxer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podvisor_proto::containerd::Any;
use podvisor_proto::containerd::sandbox::{SandboxClient, SandboxServer};
use podvisor_proto::containerd::task::*;
use podvisor_proto::containerd::types::Mount;
use podvisor_proto::ttrpc::{Client, Code, Server, Status as TtrpcStatus};
use podvisor_vmm::EndReason;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::{Actor, Placement, Settings};
use crate::events::Publisher;
use crate::guest::boot::BootTools;
use crate::host::record::{Record, RecordKeeper};
use crate::release::Release;
use crate::service::{SandboxService, TaskService};
use crate::timeline::Timeline;
use fake::{FakeLauncher, Guest};
use fake_host::FakeHost;

const SANDBOX: &str = "pod";
const CONTAINER: &str = "c1";

/// A pod, and containerd's side of it.
struct Pod {
    guest: Arc<Guest>,
    client: TaskClient,
    sandbox: SandboxClient,
    folder: tempfile::TempDir,
    actor: tokio::task::JoinHandle<()>,
}

impl Pod {
    fn new() -> Self {
        Self::placed(Some("no-such-group/podvisor-pod".into()))
    }

    /// A pod whose place is told by its creation.
    fn unplaced() -> Self {
        Self::placed(None)
    }

    fn placed(cgroup: Option<PathBuf>) -> Self {
        let (pod, actor, begin) = Self::idle(cgroup);
        begin.send(actor).ok();
        pod
    }

    /// A pod whose owner does nothing before it is sent to where it runs.
    fn idle(cgroup: Option<PathBuf>) -> (Self, Actor, oneshot::Sender<Actor>) {
        let guest = Arc::new(Guest::default());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("podvisor-agent"), "a program").unwrap();
        let placement = Placement {
            cgroup,
            release: Release::at(folder.path()),
        };
        let (actor, sandbox) = Actor::new(Settings {
            placement: Ok(placement),
            tools: BootTools {
                host: Arc::new(FakeHost(Arc::clone(&guest))),
                launcher: Arc::new(FakeLauncher(Arc::clone(&guest))),
                timeline: Timeline::since_exec(),
            },
            publisher: Publisher::spawn(None, "k8s.io"),
            record: RecordKeeper::new(Record::of_this_process(), folder.path().to_owned()),
        });
        let (begin, begun) = oneshot::channel::<Actor>();
        let running = tokio::spawn(async move {
            if let Ok(actor) = begun.await {
                actor.run().await;
            }
        });
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = SandboxService::new(sandbox.clone(), None);
        let server = Server::new()
            .with_service(TaskServer::new(Arc::new(TaskService::new(sandbox))))
            .with_service(SandboxServer::new(Arc::new(service)));
        tokio::spawn(async move { server.serve(theirs).await });
        let client = Client::new(ours);
        let sandbox = SandboxClient::new(client.clone());
        let client = TaskClient::new(client);
        let pod = Self {
            guest,
            client,
            sandbox,
            folder,
            actor: running,
        };
        (pod, actor, begin)
    }

    fn bundle(&self, id: &str, kind: &str) -> String {
        self.annotated_bundle(id, kind, "")
    }

    /// A bundle with more annotations, each as `,"key":"value"`.
    fn annotated_bundle(&self, id: &str, kind: &str, annotations: &str) -> String {
        let bundle = self.folder.path().join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let score = if kind == "sandbox" { -998 } else { 900 };
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","root":{{"path":"rootfs"}},
                "process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}},"oomScoreAdj":{score}}},
                "annotations":{{"io.kubernetes.cri.container-type":"{kind}",
                                "io.kubernetes.cri.sandbox-id":"{SANDBOX}"{annotations}}},
                "linux":{{"namespaces":[{{"type":"pid"}},{{"type":"ipc"}},
                    {{"type":"network","path":"/run/netns/x"}}]}}}}"#
        );
        std::fs::write(bundle.join("config.json"), spec).unwrap();
        bundle.display().to_string()
    }

    async fn create(&self, id: &str) -> Result<CreateTaskResponse, TtrpcStatus> {
        let kind = if id == SANDBOX {
            "sandbox"
        } else {
            "container"
        };
        let rootfs = Mount {
            r#type: "overlay".into(),
            ..Mount::default()
        };
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: self.bundle(id, kind),
            rootfs: if id == SANDBOX { vec![] } else { vec![rootfs] },
            ..CreateTaskRequest::default()
        };
        self.client.create(request).await
    }

    async fn start(&self, id: &str, exec: &str) -> Result<StartResponse, TtrpcStatus> {
        self.client
            .start(StartRequest {
                id: id.into(),
                exec_id: exec.into(),
            })
            .await
    }

    async fn kill(&self, id: &str, exec: &str, signal: u32) -> Result<(), TtrpcStatus> {
        let request = KillRequest {
            id: id.into(),
            exec_id: exec.into(),
            signal,
            all: false,
        };
        self.client.kill(request).await
    }

    async fn wait(&self, id: &str, exec: &str) -> u32 {
        let wait = self.client.wait(WaitRequest {
            id: id.into(),
            exec_id: exec.into(),
        });
        let answer = tokio::time::timeout(Duration::from_secs(3600), wait)
            .await
            .unwrap();
        answer.unwrap().exit_status
    }

    async fn delete(&self, id: &str, exec: &str) -> Result<DeleteResponse, TtrpcStatus> {
        self.client
            .delete(DeleteRequest {
                id: id.into(),
                exec_id: exec.into(),
            })
            .await
    }

    async fn exec(&self, id: &str, exec: &str) -> Result<(), TtrpcStatus> {
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: Some(Any {
                type_url: "Process".into(),
                value: b"{}".to_vec(),
            }),
            ..ExecProcessRequest::default()
        };
        self.client.exec(request).await
    }

    async fn status(&self, id: &str) -> Status {
        let request = StateRequest {
            id: id.into(),
            exec_id: String::new(),
        };
        self.client.state(request).await.unwrap().status()
    }

    /// A pod with one running container.
    async fn running() -> Self {
        let pod = Self::new();
        pod.create(SANDBOX).await.unwrap();
        pod.start(SANDBOX, "").await.unwrap();
        pod.create(CONTAINER).await.unwrap();
        pod.start(CONTAINER, "").await.unwrap();
        pod
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, TtrpcStatus>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test(start_paused = true)]
async fn a_pod_lives_and_leaves_nothing() {
    let pod = Pod::running().await;
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
    assert!(pod.guest.state.lock().unwrap().redirected);
    pod.kill(CONTAINER, "", 15).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "").await, 143);
    assert_eq!(pod.delete(CONTAINER, "").await.unwrap().exit_status, 143);
    pod.kill(SANDBOX, "", 9).await.unwrap();
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    pod.delete(SANDBOX, "").await.unwrap();
    pod.client
        .shutdown(ShutdownRequest {
            id: SANDBOX.into(),
            now: false,
        })
        .await
        .unwrap();
    pod.actor.await.unwrap();
    let state = pod.guest.state.lock().unwrap();
    assert!(state.processes.is_empty() && state.exports.is_empty() && state.mounted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_dies_ends_every_process_and_later_errors_say_why() {
    let pod = Pod::running().await;
    pod.exec(CONTAINER, "e").await.unwrap();
    pod.start(CONTAINER, "e").await.unwrap();
    pod.guest.end(EndReason::GuestPanic {
        message: "attempted to kill init".into(),
    });
    for (id, exec) in [(CONTAINER, "e"), (CONTAINER, ""), (SANDBOX, "")] {
        assert_eq!(pod.wait(id, exec).await, 255);
    }
    let refused = pod.create("c2").await.unwrap_err();
    assert!(
        refused.message().contains("attempted to kill init"),
        "{refused}"
    );
    assert_eq!(code(pod.kill(CONTAINER, "", 9).await), Code::NotFound);
    pod.delete(CONTAINER, "e").await.unwrap();
    pod.delete(CONTAINER, "").await.unwrap();
    pod.delete(SANDBOX, "").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn execs_come_and_go_and_a_missing_command_is_not_found() {
    let pod = Pod::running().await;
    pod.exec(CONTAINER, "e").await.unwrap();
    assert_eq!(code(pod.exec(CONTAINER, "e").await), Code::AlreadyExists);
    assert_eq!(
        code(pod.kill(CONTAINER, "e", 15).await),
        Code::FailedPrecondition
    );
    pod.start(CONTAINER, "e").await.unwrap();
    pod.guest.exit(CONTAINER, "e", 3);
    assert_eq!(pod.wait(CONTAINER, "e").await, 3);
    assert_eq!(code(pod.kill(CONTAINER, "e", 9).await), Code::NotFound);
    assert_eq!(pod.delete(CONTAINER, "e").await.unwrap().exit_status, 3);
    pod.exec(CONTAINER, "missing").await.unwrap();
    let missing = pod.start(CONTAINER, "missing").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(
        missing.message().contains("executable file not found"),
        "{missing}"
    );
    assert_eq!(
        pod.delete(CONTAINER, "missing").await.unwrap().exit_status,
        127
    );
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn a_kill_ends_even_a_guest_that_does_not_answer() {
    let pod = Pod::running().await;
    pod.guest.state.lock().unwrap().deaf = true;
    pod.kill(CONTAINER, "", 9).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "").await, 255);
}

#[tokio::test(start_paused = true)]
async fn a_refused_container_leaves_nothing() {
    let pod = Pod::new();
    pod.create(SANDBOX).await.unwrap();
    pod.guest.state.lock().unwrap().refuses = true;
    let refused = pod.create(CONTAINER).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("process.user"), "{refused}");
    assert_eq!(code(pod.delete(CONTAINER, "").await), Code::NotFound);
    let state = pod.guest.state.lock().unwrap();
    assert!(state.exports.is_empty() && state.mounted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_fails_the_pod_with_its_console() {
    let pod = Pod::new();
    pod.guest.state.lock().unwrap().silent = true;
    let error = pod.create(SANDBOX).await.unwrap_err();
    for part in [
        "60 s",
        "sent 0 packets, its processors left guest mode 1234 times, 0 of them in the last second",
        "the last line of the console",
    ] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(code(pod.delete(SANDBOX, "").await), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn calls_in_the_wrong_order_are_refused_by_their_codes() {
    let pod = Pod::running().await;
    assert_eq!(code(pod.create(SANDBOX).await), Code::AlreadyExists);
    assert_eq!(
        code(pod.start(CONTAINER, "").await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(pod.delete(CONTAINER, "").await),
        Code::FailedPrecondition
    );
    assert_eq!(code(pod.start("other", "").await), Code::NotFound);
    assert_eq!(code(pod.delete("other", "").await), Code::NotFound);
    let connected = pod
        .client
        .connect(ConnectRequest { id: "other".into() })
        .await
        .unwrap();
    assert_eq!(connected.shim_pid, std::process::id());
    let pids = pod
        .client
        .pids(PidsRequest { id: SANDBOX.into() })
        .await
        .unwrap();
    assert!(!pids.processes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_with_living_tasks_ends_nothing() {
    let pod = Pod::running().await;
    pod.client
        .shutdown(ShutdownRequest {
            id: CONTAINER.into(),
            now: false,
        })
        .await
        .unwrap();
    assert_eq!(pod.status(CONTAINER).await, Status::Running);
    assert!(!pod.actor.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_hosts_oom_killer_sees_the_containers_score() {
    let pod = Pod::new();
    let score = |pod: &Pod| pod.guest.state.lock().unwrap().oom_score;
    pod.create(SANDBOX).await.unwrap();
    assert_eq!(score(&pod), Some(-998));
    pod.create(CONTAINER).await.unwrap();
    assert_eq!(score(&pod), Some(900));
    pod.delete(CONTAINER, "").await.unwrap();
    assert_eq!(score(&pod), Some(-998));
}

/// A call of containerd, in any order.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    Start,
    Exec,
    StartExec,
    Kill,
    ExitExec,
    DeleteExec,
    Delete,
    GuestEnds,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        Just(Call::Create),
        Just(Call::Start),
        Just(Call::Exec),
        Just(Call::StartExec),
        Just(Call::Kill),
        Just(Call::ExitExec),
        Just(Call::DeleteExec),
        Just(Call::Delete),
        Just(Call::GuestEnds),
    ];
    prop::collection::vec(call, 1..16)
}

async fn play(calls: &[Call]) {
    let pod = Pod::new();
    pod.create(SANDBOX).await.unwrap();
    pod.start(SANDBOX, "").await.unwrap();
    for call in calls {
        // Each is answered, whatever the answer.
        match call {
            Call::Create => drop(pod.create(CONTAINER).await),
            Call::Start => drop(pod.start(CONTAINER, "").await),
            Call::Exec => drop(pod.exec(CONTAINER, "e").await),
            Call::StartExec => drop(pod.start(CONTAINER, "e").await),
            Call::Kill => drop(pod.kill(CONTAINER, "", 9).await),
            Call::ExitExec => pod.guest.exit(CONTAINER, "e", 0),
            Call::DeleteExec => drop(pod.delete(CONTAINER, "e").await),
            Call::Delete => drop(pod.delete(CONTAINER, "").await),
            Call::GuestEnds => pod.guest.end(EndReason::TripleFault),
        }
    }
    // However it went, the pod can be taken down.
    pod.kill(SANDBOX, "", 9).await.ok();
    pod.wait(SANDBOX, "").await;
    pod.delete(CONTAINER, "").await.ok();
    pod.delete(SANDBOX, "").await.unwrap();
    pod.client
        .shutdown(ShutdownRequest::default())
        .await
        .unwrap();
    pod.actor.await.unwrap();
    let state = pod.guest.state.lock().unwrap();
    assert!(state.exports.is_empty() && state.mounted.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_order_of_calls_is_answered_and_leaves_nothing(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(&calls));
    }
}
