//! Connections to a pod's ports.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{CONTAINER, Pod, SANDBOX};

/// Where connections to the pod's ports are taken.
async fn listening(pod: &Pod) -> SocketAddr {
    let waiting = async {
        loop {
            if let Some(address) = pod.guest.state.lock().unwrap().listening {
                return address;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
}

async fn pod_with_a_container() -> Pod {
    let pod = Pod::new();
    pod.create(SANDBOX).await.unwrap();
    pod.start(SANDBOX, "").await.unwrap();
    pod.create(CONTAINER).await.unwrap();
    assert_eq!(pod.guest.state.lock().unwrap().listening, None);
    pod.start(CONTAINER, "").await.unwrap();
    pod
}

async fn answer(address: SocketAddr) -> io::Result<String> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"hello").await?;
    client.shutdown().await?;
    let mut text = String::new();
    client.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn a_connection_reaches_the_same_address_in_the_guest() {
    let pod = pod_with_a_container().await;
    let address = listening(&pod).await;
    let expected = format!("[127, 0, 0, 1]:{} hello", address.port());
    let (one, other) = tokio::join!(answer(address), answer(address));
    assert_eq!(one.unwrap(), expected);
    assert_eq!(other.unwrap(), expected);
}

#[tokio::test]
async fn a_connection_that_the_guest_refuses_is_reset() {
    let pod = pod_with_a_container().await;
    let address = listening(&pod).await;
    pod.guest.state.lock().unwrap().refuses = true;
    let mut client = TcpStream::connect(address).await.unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn connections_end_with_the_pod() {
    let pod = pod_with_a_container().await;
    let address = listening(&pod).await;
    let mut open = TcpStream::connect(address).await.unwrap();
    pod.kill(SANDBOX, "", 9).await.unwrap();
    assert_eq!(pod.wait(SANDBOX, "").await, 137);
    // What it said at last may come first.
    while open.read_u8().await.is_ok() {}
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}
