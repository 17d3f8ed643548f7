//! Port forwarding: connections from the host to services of the guest, wherever in the guest they
//! listen.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podvisor_proto::agent::v1::{ForwardReply, ForwardRequest};
use prost::Message as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes,
};
use tokio::net::TcpStream;

/// Bytes copied at once, in each direction of a connection.
const CHUNK: usize = 32 << 10;
/// A request has at most 16 bytes of address and a port: its length is one byte.
const MAX_REQUEST_LEN: u8 = 0x7f;

/// Connects to the service that the host asks for, tells whether that worked, and carries bytes
/// until both directions have ended.
pub async fn serve<C: AsyncRead + AsyncWrite + Unpin>(mut connection: C) {
    if let Err(error) = forward(&mut connection).await {
        // A service may break its connections as often as it likes.
        tracing::debug!(%error, "a forwarded connection ended");
    }
}

async fn forward<C: AsyncRead + AsyncWrite + Unpin>(connection: &mut C) -> io::Result<()> {
    let (address, port) = read_request(connection).await?;
    let dialled = dial(address, port).await;
    let error = match &dialled {
        Ok(_) => String::new(),
        Err(error) => format!("connect to port {port}: {error}"),
    };
    let reply = ForwardReply { error }.encode_length_delimited_to_vec();
    connection.write_all(&reply).await?;
    let mut service = dialled?;
    service.set_nodelay(true)?;
    copy_bidirectional_with_sizes(connection, &mut service, CHUNK, CHUNK)
        .await
        .map(drop)
}

async fn read_request(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<(IpAddr, u16)> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let len = connection.read_u8().await?;
    if len > MAX_REQUEST_LEN {
        return Err(malformed());
    }
    let mut request = vec![0; usize::from(len)];
    connection.read_exact(&mut request).await?;
    let request = ForwardRequest::decode(request.as_slice())?;
    let address = ip_address(&request.address).ok_or_else(malformed)?;
    let port = u16::try_from(request.port).map_err(|_| malformed())?;
    Ok((address, port))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Connects to a service. One that listens on the other family's loopback address only is found,
/// too: who dials `localhost` would try one after the other, and on the host the first answers
/// always.
async fn dial(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((address, port)).await {
        Err(error) if address == Ipv4Addr::LOCALHOST => {
            let other = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
            // That there is no service at all is better told of the address that was asked for.
            other.map_err(|_| error)
        }
        dialled => dialled,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::net::TcpListener;

    use super::*;

    async fn request(address: IpAddr, port: u16) -> (DuplexStream, String) {
        let address = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let request = ForwardRequest {
            address,
            port: port.into(),
        };
        let (mut host, guest) = duplex(1 << 16);
        tokio::spawn(serve(guest));
        let request = request.encode_length_delimited_to_vec();
        host.write_all(&request).await.unwrap();
        let len = host.read_u8().await.unwrap();
        let mut reply = vec![0; usize::from(len)];
        host.read_exact(&mut reply).await.unwrap();
        let reply = ForwardReply::decode(reply.as_slice()).unwrap();
        (host, reply.error)
    }

    /// A service that answers what it was told once it was told everything.
    async fn service(address: &str) -> u16 {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut told = Vec::new();
            stream.read_to_end(&mut told).await.unwrap();
            stream.write_all(&told).await.unwrap();
        });
        port
    }

    async fn echo(mut host: DuplexStream) -> String {
        host.write_all(b"hello").await.unwrap();
        host.shutdown().await.unwrap();
        let mut answer = String::new();
        host.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_direction_ends_for_itself() {
        let port = service("127.0.0.1:0").await;
        let (host, error) = request(Ipv4Addr::LOCALHOST.into(), port).await;
        assert_eq!(error, "");
        assert_eq!(echo(host).await, "hello");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_service_of_the_other_loopback_address_is_found() {
        let port = service("[::1]:0").await;
        let (host, error) = request(Ipv4Addr::LOCALHOST.into(), port).await;
        assert_eq!(error, "");
        assert_eq!(echo(host).await, "hello");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_port_without_a_service_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (mut host, error) = request(Ipv4Addr::LOCALHOST.into(), port).await;
        assert!(error.contains(&port.to_string()), "{error}");
        assert!(error.contains("refused"), "{error}");
        assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_that_makes_no_sense_ends_the_connection() {
        for bytes in [&[0x80, 1][..], &[2, 0x0a, 0], &[0], &[1, 0xff]] {
            let (mut host, guest) = duplex(64);
            host.write_all(bytes).await.unwrap();
            serve(guest).await;
            assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0, "{bytes:?}");
        }
    }
}
