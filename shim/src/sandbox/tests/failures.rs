//! What fails halfway: nobody is left waiting, and nothing is left behind.

use super::guest_agent::{fifo, read};
use super::*;

/// Well below what a deletion gives output to be taken.
const AT_ONCE: Duration = Duration::from_secs(5);

impl Pod {
    /// Makes an exec whose output goes to a FIFO; yields who reads that.
    async fn exec_with_output(&self, exec: &str) -> tokio::task::JoinHandle<String> {
        let stdout = fifo(self.folder.path(), exec);
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
        read(stdout)
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
