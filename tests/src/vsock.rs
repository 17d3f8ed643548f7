//! Talking to an agent whose machine has no pod: connections of the vsock device as tokio's streams.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use podvisor_devices::vsock::{VsockHost, VsockStream};
use podvisor_proto::agent::v1::{AgentClient, Ready};
use podvisor_proto::agent::{AGENT_PORT, STREAM_PORT};
use podvisor_proto::ttrpc::{CallOptions, Client};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// A connection.
pub struct Stream(VsockStream);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = ready!(self.0.poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown_write(cx)
    }
}

/// Waits for the agent's report.
///
/// # Errors
/// The connection fails, or says no report.
pub async fn ready(host: &VsockHost) -> Result<Ready> {
    let mut stream = Stream(host.accept_ready().await.context("wait for the agent")?);
    let len = stream.read_u8().await.context("read the agent's report")?;
    let mut report = vec![0; usize::from(len)];
    stream.read_exact(&mut report).await?;
    Ok(Ready::decode(report.as_slice())?)
}

/// Connects to the agent's API.
///
/// # Errors
/// The connection fails.
pub async fn agent(host: &VsockHost) -> Result<AgentClient> {
    let stream = host.connect(AGENT_PORT).await.context("call the agent")?;
    let client = AgentClient::new(Client::new(Stream(stream)));
    Ok(client.with_options(CallOptions::new().with_timeout(CALL_LIMIT)))
}

/// Opens a stream of a process by its token.
///
/// # Errors
/// The connection fails.
pub async fn stream(host: &VsockHost, token: &[u8]) -> Result<Stream> {
    let stream = host.connect(STREAM_PORT).await.context("open a stream")?;
    let mut stream = Stream(stream);
    stream.write_all(token).await?;
    Ok(stream)
}
