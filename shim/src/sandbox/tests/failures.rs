//! What fails halfway: nobody is left waiting, and nothing is left behind.

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::guest_agent::fifo;
use super::machines::MACHINE;
use super::*;
use crate::io::Stdio;
use crate::sandbox::CreateRequest;
use crate::sandbox::actor::GuestState;
use crate::sandbox::work::Message;

/// Well below what a deletion gives output to be taken.
const AT_ONCE: Duration = Duration::from_secs(5);

impl Pod {
    /// Makes an exec whose output goes to a FIFO; yields who reads that.
    async fn exec_with_output(&self, exec: &str) -> tokio::task::JoinHandle<String> {
        let stdout = fifo(self.folder.path(), exec);
        // Like containerd's: it is there before any writer.
        let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        let request = ExecProcessRequest {
            id: CONTAINER.into(),
            exec_id: exec.into(),
            stdout: stdout.display().to_string(),
            spec: Some(Any {
                type_url: "Process".into(),
                value: b"{}".to_vec(),
            }),
            ..ExecProcessRequest::default()
        };
        self.client.exec(request).await.unwrap();
        tokio::spawn(async move {
            let mut text = String::new();
            reader.read_to_string(&mut text).await.unwrap();
            text
        })
    }

    async fn pause(&self) {
        let id = CONTAINER.to_owned();
        self.client.pause(PauseRequest { id }).await.unwrap();
    }

    async fn resume(&self) {
        let id = CONTAINER.to_owned();
        self.client.resume(ResumeRequest { id }).await.unwrap();
    }

    /// Deletes the last of the pod's tasks; nothing keeps its server then.
    pub(super) async fn ends_once(self, deleted: &str) {
        self.delete(deleted, "").await.unwrap();
        let shutdown = self.client.shutdown(ShutdownRequest::default());
        shutdown.await.unwrap();
        self.actor.await.unwrap();
    }
}

async fn ends(reader: tokio::task::JoinHandle<String>) -> String {
    let ended = tokio::time::timeout(AT_ONCE, reader).await;
    ended.expect("the output ends").unwrap()
}

#[tokio::test]
async fn the_output_of_what_does_not_start_ends_with_what_was_said() {
    let pod = Pod::running().await;
    pod.guest.state.lock().unwrap().says = "said".into();
    let output = pod.exec_with_output("missing").await;
    assert_eq!(code(pod.start(CONTAINER, "missing").await), Code::NotFound);
    assert_eq!(ends(output).await, "said");
    pod.delete(CONTAINER, "missing").await.unwrap();
}

#[tokio::test]
async fn the_output_of_what_ended_before_its_start_ends() {
    let pod = Pod::running().await;
    let output = pod.exec_with_output("e").await;
    pod.guest.exit(CONTAINER, "e", 137);
    assert_eq!(pod.wait(CONTAINER, "e").await, 137);
    assert_eq!(
        code(pod.start(CONTAINER, "e").await),
        Code::FailedPrecondition
    );
    ends(output).await;
}

#[tokio::test]
async fn nothing_is_started_in_what_is_paused() {
    let pod = Pod::running().await;
    let output = pod.exec_with_output("early").await;
    pod.pause().await;
    let refusals = [
        pod.exec(CONTAINER, "late").await.unwrap_err(),
        pod.start(CONTAINER, "early").await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("paused"), "{refused}");
    }
    ends(output).await;
    pod.delete(CONTAINER, "early").await.unwrap();
    pod.resume().await;
    pod.exec(CONTAINER, "late").await.unwrap();
    pod.start(CONTAINER, "late").await.unwrap();
}

#[tokio::test]
async fn nothing_is_started_in_a_machine_that_is_paused() {
    let pod = Pod::new();
    pod.run_machine().await;
    pod.pause().await;
    let refused = pod.exec(CONTAINER, "e").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("paused"), "{refused}");
}

#[tokio::test]
async fn a_pod_that_is_ended_while_its_machine_boots_is_settled() {
    let pod = Pod::of_kind(MACHINE).await;
    pod.guest.state.lock().unwrap().silent = true;
    pod.create_machine(CONTAINER).await.unwrap();
    let (started, exit, ()) =
        tokio::join!(pod.start(CONTAINER, ""), pod.wait(CONTAINER, ""), async {
            pod.eventually(|state| !state.launched.is_empty()).await;
            pod.kill(SANDBOX, "", 9).await.unwrap();
        });
    started.unwrap_err();
    assert_eq!(exit, 137);
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    pod.delete(CONTAINER, "").await.unwrap();
    pod.ends_once(SANDBOX).await;
}

#[tokio::test]
async fn a_guest_that_comes_up_as_its_boot_is_given_up_is_stopped() {
    let (pod, mut actor, begin) = Pod::idle(Some("no-such-group/podvisor-pod".into()));
    let request = CreateRequest {
        id: SANDBOX.into(),
        bundle: pod.bundle(SANDBOX, "sandbox").into(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        config_path: None,
        pod: None,
    };
    let (reply, created) = oneshot::channel();
    actor.create(request, reply);
    let booting = match &actor.guest {
        GuestState::Booting(booting) => booting.clone(),
        _ => panic!("it does not boot"),
    };
    while !booting.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What it came to waits in the owner's inbox.
    actor.signal_sandbox(9, Ok(())).unwrap();
    begin.send(actor).ok();
    let error = created.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ended while it booted"), "{error}");
    assert_eq!(pod.guest.ended(), Some(EndReason::Killed));
    assert_eq!(code(pod.delete(SANDBOX, "").await), Code::NotFound);
    let shutdown = pod.client.shutdown(ShutdownRequest::default());
    shutdown.await.unwrap();
    pod.actor.await.unwrap();
}

#[tokio::test]
async fn a_machine_whose_start_was_given_up_does_not_start_later() {
    let (pod, mut actor, begin) = Pod::idle(None);
    let delayed = |epoch| {
        let (reply, started) = oneshot::channel();
        let container = CONTAINER.to_owned();
        let message = Message::PetDelayed {
            epoch,
            container,
            reply,
        };
        (message, started)
    };
    actor.epoch = 2;
    let (earlier, given_up) = delayed(1);
    let (current, started) = delayed(2);
    actor.outbox.send(earlier).ok();
    actor.outbox.send(current).ok();
    begin.send(actor).ok();
    let error = given_up.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ended while it booted"), "{error}");
    started.await.unwrap().unwrap();
    drop(pod);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_made_without_an_answer_is_taken_back() {
    let pod = Pod::new();
    pod.create(SANDBOX).await.unwrap();
    pod.guest.state.lock().unwrap().mumbles = true;
    assert_eq!(code(pod.create(CONTAINER).await), Code::DeadlineExceeded);
    let state = pod.guest.state.lock().unwrap();
    assert!(state.processes.is_empty() && state.exports.is_empty() && state.mounted.is_empty());
}
