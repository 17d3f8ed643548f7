//! Port forwarding. containerd dials a pod's ports from inside the pod's network namespace on the
//! host, where nothing of the pod listens; listeners of ours take the connection, and the agent
//! dials the same address in the guest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podvisor_proto::agent::FORWARD_PORT;
use podvisor_proto::agent::v1::{ForwardReply, ForwardRequest};
use prost::Message;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::guest::client::{AgentError, read_delimited};
use crate::guest::{Machine, Stream};
use crate::host::{HostError, HostOps, NamespaceListeners, NetworkRequest};
use crate::io::copy;
use crate::sandbox::chain;

/// Connections forwarded at once. Further ones wait in the listeners' queues: each one's buffers are
/// memory of the pod.
const CONNECTIONS_MAX: usize = 256;
/// How long the guest may take to answer. It dials itself, so only a stuck one takes long.
const DIAL: Duration = Duration::from_secs(30);
/// How long a service may answer after its client has ended its own direction: whether such a client
/// is still there shows only when something is sent to it.
const AFTER_CLIENT: Duration = Duration::from_secs(3600);
/// The pause after a connection that could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why no port of a pod is forwarded.
#[derive(Debug, Error)]
enum ForwardError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot wait for connections")]
    Runtime(#[from] io::Error),
}

/// Why a connection is broken off.
#[derive(Debug, Error)]
enum CarryError {
    #[error("client or guest")]
    Io(#[from] io::Error),
    #[error("the agent's answer")]
    Answer(#[from] AgentError),
    #[error("the guest did not answer within {} s", DIAL.as_secs())]
    Timeout,
    #[error("refused by the guest: {0}")]
    Refused(String),
    #[error("the service went on for {} s after its client had ended", AFTER_CLIENT.as_secs())]
    Abandoned,
}

/// Forwards the connections to a pod's network namespace. Dropping the future ends all of them.
pub async fn serve(host: Arc<dyn HostOps>, request: NetworkRequest, machine: Arc<dyn Machine>) {
    let opened = tokio::task::spawn_blocking(move || host.listen(&request)).await;
    // Without a thread the server is ending.
    let Ok(opened) = opened else { return };
    let forwarded = match opened {
        Ok(listeners) => forward_all(listeners, &machine).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = forwarded {
        tracing::warn!(
            error = chain(&error),
            "no port of this pod can be forwarded"
        );
    }
}

async fn forward_all(
    listeners: NamespaceListeners,
    machine: &Arc<dyn Machine>,
) -> Result<(), ForwardError> {
    let _steering = listeners.steering;
    let ipv4 = TcpListener::from_std(listeners.ipv4)?;
    let ipv6 = listeners.ipv6.map(TcpListener::from_std).transpose()?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = accept(&ipv4, ipv6.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((client, _)) => drop(connections.spawn(forward(client, Arc::clone(machine)))),
                    Err(error) => {
                        tracing::warn!(%error, "a connection is not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
}

async fn accept(
    ipv4: &TcpListener,
    ipv6: Option<&TcpListener>,
) -> io::Result<(TcpStream, SocketAddr)> {
    match ipv6 {
        Some(ipv6) => tokio::select! {
            accepted = ipv4.accept() => accepted,
            accepted = ipv6.accept() => accepted,
        },
        None => ipv4.accept().await,
    }
}

/// Carries one connection. One that the guest refuses, or that breaks on the way, is reset: the
/// client then knows that it does not have everything.
async fn forward(mut client: TcpStream, machine: Arc<dyn Machine>) {
    let carried = async {
        let target = client.local_addr()?;
        client.set_nodelay(true)?;
        let guest = tokio::time::timeout(DIAL, dial(&*machine, target)).await;
        let guest = guest.map_err(|_| CarryError::Timeout)??;
        carry(&mut client, guest).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(error = chain(&error), "a forwarded connection");
        // It fails for a connection that is gone already.
        let _ = client.set_zero_linger();
    }
}

/// Moves bytes both ways. The end of one direction is passed on, and leaves the other as it is.
async fn carry(client: &mut TcpStream, guest: Stream) -> Result<(), CarryError> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let requests = async {
        copy(&mut from_client, &mut to_guest).await?;
        to_guest.shutdown().await
    };
    let answers = async {
        copy(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(requests, answers);
    tokio::select! {
        ended = &mut requests => {
            ended?;
            let answers = tokio::time::timeout(AFTER_CLIENT, answers).await;
            answers.map_err(|_| CarryError::Abandoned)??;
        }
        ended = &mut answers => {
            ended?;
            requests.await?;
        }
    }
    Ok(())
}

/// Connects to what listens at `target` in the guest.
async fn dial(machine: &dyn Machine, target: SocketAddr) -> Result<Stream, CarryError> {
    let mut stream = machine.connect(FORWARD_PORT).await?;
    let address = match target {
        SocketAddr::V4(target) => target.ip().octets().to_vec(),
        SocketAddr::V6(target) => target.ip().octets().to_vec(),
    };
    let request = ForwardRequest {
        address,
        port: target.port().into(),
    };
    stream
        .write_all(&request.encode_length_delimited_to_vec())
        .await?;
    let reply = read_delimited(&mut stream).await?;
    let reply = ForwardReply::decode(reply.as_slice()).map_err(|_| AgentError::Malformed)?;
    if reply.error.is_empty() {
        Ok(stream)
    } else {
        Err(CarryError::Refused(reply.error))
    }
}
