//! Executions in a machine where only QEMU's guest agent answers.

use std::io::{Read as _, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex, split};

use super::*;

/// A machine with an agent that runs `cat`, fails to find anything else, and lets `sleep` run until
/// it is killed.
async fn serve(port: DuplexStream) {
    let (read, mut write) = split(port);
    let mut lines = BufReader::new(read);
    let (mut output, mut killed) = (json!(""), false);
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let begin = line.iter().rposition(|&byte| byte == 0xff);
        let command: Value = serde_json::from_slice(&line[begin.map_or(0, |at| at + 1)..]).unwrap();
        let arguments = &command["arguments"];
        let (path, pid) = (arguments["path"].as_str(), arguments["pid"].as_u64());
        let answer = match (command["execute"].as_str(), path, pid) {
            (Some("guest-sync-delimited"), ..) => {
                write.write_all(&[0xff]).await.unwrap();
                json!({ "return": arguments["id"] })
            }
            (Some("guest-exec"), Some("cat"), _) => {
                output = arguments.get("input-data").cloned().unwrap_or(json!(""));
                json!({ "return": { "pid": 1 } })
            }
            (Some("guest-exec"), Some("sleep"), _) => json!({ "return": { "pid": 2 } }),
            (Some("guest-exec"), Some("/bin/sh"), _) => {
                killed |= arguments["arg"] == json!(["-c", "kill -9 2"]);
                json!({ "return": { "pid": 3 } })
            }
            (Some("guest-exec"), ..) => {
                json!({ "error": { "class": "GenericError", "desc": "No such file or directory" } })
            }
            (Some("guest-exec-status"), _, Some(2)) if !killed => {
                json!({ "return": { "exited": false } })
            }
            (Some("guest-exec-status"), ..) => json!({ "return": {
                "exited": true, "exitcode": 3, "out-data": output, "err-data": BASE64.encode("said"),
            } }),
            _ => json!({ "return": {} }),
        };
        write
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .unwrap();
    }
}

impl Pod {
    /// A running machine without our agent.
    async fn machine_with_qga() -> Self {
        let pod = Self::new();
        let (ours, theirs) = duplex(1 << 16);
        *pod.guest.qga.lock().unwrap() = Some(ours);
        tokio::spawn(serve(theirs));
        pod.guest.state.lock().unwrap().agentless = true;
        pod.run_machine().await;
        pod
    }

    async fn command(&self, exec: &str, words: &[&str], terminal: bool) -> Result<(), TtrpcStatus> {
        let process = json!({ "args": words, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "terminal": terminal });
        let path = |stream: &str| {
            let path = self.folder.path().join(format!("{exec}-{stream}"));
            if path.exists() {
                path.display().to_string()
            } else {
                String::new()
            }
        };
        let request = ExecProcessRequest {
            id: CONTAINER.into(),
            exec_id: exec.into(),
            terminal,
            stdin: path("stdin"),
            stdout: path("stdout"),
            stderr: path("stderr"),
            spec: Some(Any {
                type_url: "Process".into(),
                value: process.to_string().into_bytes(),
            }),
        };
        self.client.exec(request).await
    }
}

pub(super) fn fifo(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    path
}

fn read(path: PathBuf) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::open(path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    })
}

#[tokio::test]
async fn a_command_gets_its_input_and_gives_output_and_code_back() {
    let pod = Pod::machine_with_qga().await;
    let folder = pod.folder.path();
    let [stdin, stdout, stderr] =
        ["e1-stdin", "e1-stdout", "e1-stderr"].map(|name| fifo(folder, name));
    pod.command("e1", &["cat"], false).await.unwrap();
    pod.start(CONTAINER, "e1").await.unwrap();
    let (out, err) = (read(stdout), read(stderr));
    let writing = tokio::task::spawn_blocking(move || {
        let mut stdin = std::fs::OpenOptions::new().write(true).open(stdin).unwrap();
        stdin.write_all(b"typed").unwrap();
    });
    writing.await.unwrap();
    let request = CloseIoRequest {
        id: CONTAINER.into(),
        exec_id: "e1".into(),
        stdin: true,
    };
    pod.client.close_io(request).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "e1").await, 3);
    pod.delete(CONTAINER, "e1").await.unwrap();
    assert_eq!(out.await.unwrap(), "typed");
    assert_eq!(err.await.unwrap(), "said");
}

#[tokio::test]
async fn what_cannot_be_run_is_an_error_at_once() {
    let pod = Pod::machine_with_qga().await;
    let error = pod.command("e1", &["cat"], true).await.unwrap_err();
    assert!(error.message().contains("leave out -t"), "{error}");
    pod.command("e2", &["nothing"], false).await.unwrap();
    let error = pod.start(CONTAINER, "e2").await.unwrap_err();
    assert!(error.message().contains("No such file"), "{error}");
    assert_eq!(pod.wait(CONTAINER, "e2").await, 127);
}

#[tokio::test]
async fn a_kill_waits_for_no_agent_and_reaches_the_machine() {
    let pod = Pod::machine_with_qga().await;
    pod.command("e1", &["sleep"], false).await.unwrap();
    pod.start(CONTAINER, "e1").await.unwrap();
    pod.kill(CONTAINER, "e1", 9).await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "e1").await, 137);
    // The agent answers to others meanwhile.
    pod.command("e2", &["cat"], false).await.unwrap();
    pod.start(CONTAINER, "e2").await.unwrap();
    assert_eq!(pod.wait(CONTAINER, "e2").await, 3);
}
