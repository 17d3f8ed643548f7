//! The client with an agent that answers from a script.

use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream, duplex, split};
use tokio::task::JoinHandle;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What the agent does with a command.
enum Reply {
    Json(Value),
    Bytes(Vec<u8>),
    Silence,
    Hangup,
}

/// An agent that synchronizes and has `answer` do the rest; it tells the commands it got.
fn agent(
    mut answer: impl FnMut(&Value) -> Reply + Send + 'static,
) -> (GuestAgent<DuplexStream>, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = duplex(1 << 16);
    let serving = tokio::spawn(async move {
        let (read, mut write) = split(theirs);
        let mut lines = BufReader::new(read);
        let mut seen = Vec::new();
        loop {
            let mut line = Vec::new();
            if lines.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                return seen;
            }
            let begin = line
                .iter()
                .rposition(|&byte| byte == RESYNC)
                .map_or(0, |at| at + 1);
            let command: Value = serde_json::from_slice(&line[begin..]).unwrap();
            let reply = match command["execute"].as_str() {
                Some("guest-sync-delimited") => {
                    let answer = json!({ "return": command["arguments"]["id"] });
                    Reply::Bytes([&[RESYNC], format!("{answer}\n").as_bytes()].concat())
                }
                _ => {
                    seen.push(command.clone());
                    answer(&command)
                }
            };
            let bytes = match reply {
                Reply::Json(json) => format!("{json}\n").into_bytes(),
                Reply::Bytes(bytes) => bytes,
                Reply::Silence => continue,
                Reply::Hangup => return seen,
            };
            if write.write_all(&bytes).await.is_err() {
                return seen;
            }
        }
    });
    (GuestAgent::new(ours, SECOND), serving)
}

#[tokio::test]
async fn an_agent_that_is_there_answers_a_probe() {
    let (agent, serving) = agent(|_| Reply::Json(json!({ "return": {} })));
    let qga = Qga::new(Box::new(agent.stream));
    qga.probe().await.unwrap();
    drop(qga);
    assert_eq!(serving.await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_and_none_are_told_apart() {
    let (silent, _serving) = agent(|_| Reply::Silence);
    let error = Qga::new(Box::new(silent.stream)).probe().await.unwrap_err();
    assert!(matches!(error, QgaError::Timeout { .. }), "{error}");
    let closed = QgaError::from(io::Error::from(io::ErrorKind::NotConnected));
    assert!(closed.to_string().contains(PORT), "{closed}");
}

#[tokio::test]
async fn a_program_runs_with_input_to_its_end() {
    let mut looks = 0;
    let (agent, serving) = agent(move |command| {
        Reply::Json(match command["execute"].as_str() {
            Some("guest-exec") => json!({ "return": { "pid": 41 } }),
            _ => {
                assert_eq!(command["arguments"]["pid"], 41);
                looks += 1;
                if looks < 3 {
                    json!({ "return": { "exited": false } })
                } else {
                    json!({ "return": {
                        "exited": true, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy",
                        "err-truncated": true,
                    } })
                }
            }
        })
    });
    let program = Program {
        path: "/bin/cat".to_owned(),
        arguments: vec!["-".to_owned()],
        environment: vec!["A=b".to_owned()],
        input: b"text".to_vec(),
    };
    let qga = Qga::new(Box::new(agent.stream));
    let pid = qga.start(&program).await.unwrap();
    let ended = qga.wait(pid).await.unwrap();
    let expected = Ended {
        code: 3,
        output: b"out".to_vec(),
        error: b"err".to_vec(),
        complete: false,
    };
    assert_eq!(ended, expected);
    drop(qga);
    let seen = serving.await.unwrap();
    let expected = json!({
        "path": "/bin/cat", "arg": ["-"], "env": ["A=b"], "capture-output": true,
        "input-data": "dGV4dA==",
    });
    assert_eq!(seen[0]["arguments"], expected);
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn a_signal_is_a_code_as_shells_count_it() {
    let (mut agent, _) =
        agent(|_| Reply::Json(json!({ "return": { "exited": true, "signal": 9 } })));
    let ended = agent.status(GuestPid(1)).await.unwrap().unwrap();
    assert_eq!((ended.code, ended.output.len()), (137, 0));
}

#[tokio::test]
async fn a_refusal_says_why() {
    let (mut agent, _) = agent(|_| {
        Reply::Json(json!({ "error": { "class": "GenericError", "desc": "no \u{1b}such file" } }))
    });
    let error = agent.start(&Program::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent refuses 'guest-exec': no such file"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_is_a_timeout_and_may_be_asked_again() {
    let mut first = true;
    let (mut agent, _) = agent(move |_| {
        if std::mem::take(&mut first) {
            return Reply::Silence;
        }
        Reply::Json(json!({ "return": { "pid": 7 } }))
    });
    let error = agent.start(&Program::default()).await.unwrap_err();
    assert!(
        matches!(
            error,
            QgaError::Timeout {
                command: "guest-exec",
                ..
            }
        ),
        "{error}"
    );
    assert!(!agent.in_step);
    assert_eq!(agent.start(&Program::default()).await.unwrap(), GuestPid(7));
}

#[tokio::test]
async fn what_others_left_in_the_stream_is_skipped() {
    let (ours, mut theirs) = duplex(1 << 16);
    theirs
        .write_all(b"{\"return\": {\"version\": \"old\"}}\n\xff{\"return\": 77}\n")
        .await
        .unwrap();
    let mut agent = GuestAgent::new(ours, SECOND);
    let serve = async {
        let mut line = Vec::new();
        let mut lines = BufReader::new(&mut theirs);
        lines.read_until(b'\n', &mut line).await.unwrap();
        assert_eq!(line[0], RESYNC);
        theirs
            .write_all(b"\xff{\"return\": 1}\n\n{\"return\": {}}\n")
            .await
            .unwrap();
    };
    let (pinged, ()) = tokio::join!(agent.ping(), serve);
    pinged.unwrap();
}

#[tokio::test]
async fn an_agent_that_ends_is_an_error_at_once() {
    let (agent, _) = agent(|_| Reply::Hangup);
    let qga = Qga::new(Box::new(agent.stream));
    let error = qga.wait(GuestPid(1)).await.unwrap_err();
    assert!(matches!(error, QgaError::Port(_)), "{error}");
}

#[tokio::test]
async fn answers_and_input_are_bounded() {
    let (mut agent, _) = agent(|_| Reply::Bytes(vec![b'x'; MAX_ANSWER_LEN + PIECE]));
    const PIECE: usize = 64 << 10;
    agent.timeout = 60 * SECOND;
    let error = agent.ping().await.unwrap_err();
    assert!(matches!(error, QgaError::TooLong), "{error}");
    let program = Program {
        input: vec![0; MAX_INPUT_LEN + 1],
        ..Program::default()
    };
    let error = agent.start(&program).await.unwrap_err();
    assert!(matches!(error, QgaError::Input), "{error}");
}

#[tokio::test]
async fn nonsense_is_malformed() {
    for answer in ["[]", "{}", "{\"return\": {\"pid\": \"x\"}}", "\u{fffd}"] {
        let line = format!("{answer}\n").into_bytes();
        let (mut agent, _) = agent(move |_| Reply::Bytes(line.clone()));
        let error = agent.start(&Program::default()).await.unwrap_err();
        assert!(
            matches!(error, QgaError::Malformed("guest-exec")),
            "{answer}: {error}"
        );
    }
}
