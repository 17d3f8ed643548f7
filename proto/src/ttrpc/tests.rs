//! Server and client against each other, and against peers that break the protocol.

mod frames;
mod peers;

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::DuplexStream;
use tokio::sync::Notify;

use super::*;

/// Methods that show how the server treats its handlers. Requests and responses are strings.
#[derive(Default)]
struct Echo {
    /// Lets `Wait` end.
    release: Notify,
    /// Told when `Wait` has ended.
    ended: Notify,
}

impl Service for Arc<Echo> {
    fn name(&self) -> &'static str {
        "test.Echo"
    }

    fn call(&self, method: &str, payload: Bytes) -> CallFuture {
        let echo = Arc::clone(self);
        match method {
            "Echo" => service::answer(payload, |text: String| ready(Ok(text))),
            "Fail" => service::answer(payload, |text: String| {
                ready(Err::<String, _>(Status::not_found(text)))
            }),
            "Panic" => service::answer(payload, |_: String| panics()),
            "Large" => service::answer(payload, |_: String| ready(Ok("x".repeat(MESSAGE_LEN_MAX)))),
            "Wait" => service::answer(payload, move |text: String| async move {
                echo.release.notified().await;
                echo.ended.notify_one();
                Ok(text)
            }),
            _ => service::unknown_method(self.name(), method),
        }
    }
}

#[expect(clippy::unused_async, reason = "a handler that panics when it runs")]
async fn panics() -> Result<String, Status> {
    panic!("on purpose")
}

/// A server on the far end of the returned stream, and its service.
fn served() -> (DuplexStream, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = Server::new().with_service(Arc::clone(&echo));
    tokio::spawn(async move { server.serve(far).await });
    (near, echo)
}

async fn call(client: &Client, method: &str, text: &str) -> Result<String, Status> {
    call_with(client, method, text, &CallOptions::new()).await
}

async fn call_with(
    client: &Client,
    method: &str,
    text: &str,
    options: &CallOptions,
) -> Result<String, Status> {
    client
        .unary("test.Echo", method, &text.to_owned(), options)
        .await
}

/// Ends a test that hangs.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("must not hang")
}

#[tokio::test]
async fn a_call_returns_what_the_handler_answers() {
    let client = Client::new(served().0);
    assert_eq!(
        soon(call(&client, "Echo", "hello")).await,
        Ok("hello".to_owned())
    );
    let status = soon(call(&client, "Fail", "no such pod"))
        .await
        .unwrap_err();
    assert_eq!(status, Status::not_found("no such pod"));
}

#[tokio::test]
async fn unknown_services_and_methods_are_unimplemented() {
    let client = Client::new(served().0);
    let method = soon(call(&client, "Nothing", "")).await.unwrap_err();
    assert_eq!(method.code(), Code::Unimplemented);
    let service: Result<String, _> =
        soon(client.unary("test.Nobody", "Echo", &String::new(), &CallOptions::new())).await;
    assert_eq!(service.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_a_fast_one() {
    let (stream, echo) = served();
    let client = Client::new(stream);
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", "slow").await }
    });
    assert_eq!(
        soon(call(&client, "Echo", "fast")).await,
        Ok("fast".to_owned())
    );
    assert!(!slow.is_finished());
    echo.release.notify_one();
    assert_eq!(soon(slow).await.unwrap(), Ok("slow".to_owned()));
}

#[tokio::test]
async fn a_panicking_handler_fails_its_own_call_only() {
    let client = Client::new(served().0);
    let status = soon(call(&client, "Panic", "")).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(
        soon(call(&client, "Echo", "still there")).await,
        Ok("still there".to_owned())
    );
}

#[tokio::test]
async fn messages_that_are_too_long_fail_their_own_call_only() {
    let client = Client::new(served().0);
    let long = "x".repeat(MESSAGE_LEN_MAX);
    let request = soon(call(&client, "Echo", &long)).await.unwrap_err();
    assert_eq!(request.code(), Code::ResourceExhausted);
    let response = soon(call(&client, "Large", "")).await.unwrap_err();
    assert_eq!(response.code(), Code::ResourceExhausted);
    assert_eq!(
        soon(call(&client, "Echo", "short")).await,
        Ok("short".to_owned())
    );
}

#[tokio::test]
async fn the_longest_message_passes() {
    let client = Client::new(served().0);
    let text = "x".repeat(MESSAGE_LEN_MAX - 100);
    assert_eq!(soon(call(&client, "Echo", &text)).await, Ok(text));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_fails_the_call_and_leaves_the_handler_running() {
    let (stream, echo) = served();
    let client = Client::new(stream);
    let options = CallOptions::new().with_timeout(Duration::from_millis(50));
    let status = call_with(&client, "Wait", "", &options).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    echo.release.notify_one();
    soon(echo.ended.notified()).await;
    assert_eq!(
        soon(call(&client, "Echo", "next")).await,
        Ok("next".to_owned())
    );
}

#[tokio::test]
async fn a_handler_runs_to_its_end_after_the_connection_has_ended() {
    let (stream, echo) = served();
    let client = Client::new(stream);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", "").await }
    });
    soon(call(&client, "Echo", "both are at work now"))
        .await
        .unwrap();
    waiting.abort();
    drop(client);
    let _ = waiting.await;
    echo.release.notify_one();
    soon(echo.ended.notified()).await;
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_and_the_rest_goes_on() {
    let (stream, echo) = served();
    let client = Client::new(stream);
    let waits: Vec<_> = (0..REQUESTS_IN_FLIGHT_MAX)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "Wait", "").await })
        })
        .collect();
    let refused = soon(async {
        loop {
            match call(&client, "Echo", "").await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => break status,
            }
        }
    });
    assert_eq!(refused.await.code(), Code::ResourceExhausted);
    for wait in waits {
        echo.release.notify_one();
        soon(echo.ended.notified()).await;
        drop(wait);
    }
    soon(call(&client, "Echo", "room again")).await.unwrap();
}
