//! The agent's API as this side calls it: every call has a deadline, and the agent says its
//! version first.

use std::io;
use std::time::Duration;

use podvisor_proto::agent::v1::{AgentClient, Ready};
use podvisor_proto::agent::{AGENT_PORT, PROTOCOL_VERSION};
use podvisor_proto::ttrpc::{CallOptions, Client};
use prost::Message;
use thiserror::Error;
use tokio::io::AsyncReadExt;

use super::{Machine, Stream};

/// Messages that come with their length are some hundred bytes; a longer one is none.
const MESSAGE_LEN_MAX: usize = 4096;

/// Why the agent cannot be talked to.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The connection failed.
    #[error("the agent's connection failed")]
    Io(#[from] io::Error),
    /// A message makes no sense.
    #[error("a message of the agent is not understood")]
    Malformed,
    /// Kernel image and shim are of different releases.
    #[error("the agent speaks version {agent} of the API, this program {PROTOCOL_VERSION}")]
    Version {
        /// The agent's version.
        agent: u32,
    },
}

/// Waits until the agent says that it is ready.
///
/// # Errors
/// [`AgentError`].
pub async fn wait_ready(machine: &dyn Machine) -> Result<Ready, AgentError> {
    let mut stream = machine.accept_ready().await?;
    let ready = read_delimited(&mut stream).await?;
    let ready = Ready::decode(ready.as_slice()).map_err(|_| AgentError::Malformed)?;
    if ready.protocol_version != PROTOCOL_VERSION {
        return Err(AgentError::Version {
            agent: ready.protocol_version,
        });
    }
    Ok(ready)
}

/// Connects to the agent's API, whose calls, this one included, may take `timeout` each.
///
/// # Errors
/// [`AgentError::Io`], of kind `TimedOut` when it takes longer.
pub async fn connect(machine: &dyn Machine, timeout: Duration) -> Result<AgentClient, AgentError> {
    let connecting = tokio::time::timeout(timeout, machine.connect(AGENT_PORT));
    let stream = connecting.await.map_err(io::Error::from)??;
    let client = AgentClient::new(Client::new(stream));
    Ok(client.with_options(CallOptions::new().with_timeout(timeout)))
}

/// Reads one message with its length before it, as a varint of at most two bytes.
///
/// # Errors
/// [`AgentError::Io`], [`AgentError::Malformed`] for a length that no message has.
pub async fn read_delimited(stream: &mut Stream) -> Result<Vec<u8>, AgentError> {
    let low = stream.read_u8().await?;
    let mut len = usize::from(low & 0x7f);
    if low & 0x80 != 0 {
        len |= usize::from(stream.read_u8().await?) << 7;
    }
    if len > MESSAGE_LEN_MAX {
        return Err(AgentError::Malformed);
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn read(bytes: &[u8]) -> Result<Vec<u8>, AgentError> {
        let (mut ours, theirs) = tokio::io::duplex(8192);
        ours.write_all(bytes).await.unwrap();
        drop(ours);
        read_delimited(&mut (Box::new(theirs) as Stream)).await
    }

    #[tokio::test]
    async fn a_message_follows_its_length() {
        assert_eq!(read(&[3, 1, 2, 3]).await.unwrap(), [1, 2, 3]);
        let long = [[0x80 | 0x2c, 0x02].as_slice(), &[7; 300]].concat();
        assert_eq!(read(&long).await.unwrap().len(), 300);
    }

    #[tokio::test]
    async fn a_length_that_no_message_has_is_refused() {
        assert!(matches!(
            read(&[0xff, 0xff, 1]).await,
            Err(AgentError::Malformed)
        ));
        assert!(matches!(read(&[5, 1]).await, Err(AgentError::Io(_))));
    }
}
