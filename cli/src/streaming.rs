//! Streams through CRI's streaming server, as the kubelet offers them to `kubectl`: over WebSocket,
//! where every message begins with the number of its channel (`v4.channel.k8s.io`,
//! k8s.io/apimachinery, pkg/util/httpstream/wsstream).

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use thiserror::Error;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::error::ProtocolError;
use tungstenite::http::HeaderValue;
use tungstenite::{Bytes, Message, WebSocket};

/// Channels of commands and attachments.
pub mod channel {
    /// Standard input.
    pub const STDIN: u8 = 0;
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// How it ended: a `v1.Status` in JSON.
    pub const STATUS: u8 = 3;
    /// Sizes for the terminal, in JSON.
    pub const RESIZE: u8 = 4;
}

const PROTOCOL: &str = "v4.channel.k8s.io";

/// Why a stream is none, or not any more.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The server's address is not one that we can connect to.
    #[error("{0:?} is not the address of a streaming server")]
    Url(String),
    /// There is no connection.
    #[error("cannot connect to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the host said.
        source: io::Error,
    },
    /// The server does not take the request.
    #[error("the streaming server refused: {0}")]
    Handshake(String),
    /// The stream broke.
    #[error("the stream broke")]
    Broken(#[source] Box<tungstenite::Error>),
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<TcpStream>,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes of a channel.
    Data(u8, Bytes),
    /// Nothing so far: a stream that does not block has nothing now.
    Nothing,
    /// The server has ended the stream.
    End,
}

impl Stream {
    /// Connects to the address that a call such as Attach answered.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn connect(url: &str) -> Result<Self, StreamError> {
        let authority = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split('/').next())
            .ok_or_else(|| StreamError::Url(url.to_owned()))?;
        let request = url.replacen("http", "ws", 1).into_client_request();
        let mut request = request.map_err(|_| StreamError::Url(url.to_owned()))?;
        let protocol = HeaderValue::from_static(PROTOCOL);
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let socket = TcpStream::connect(authority).map_err(|source| StreamError::Connect {
            authority: authority.to_owned(),
            source,
        })?;
        let (socket, _) = tungstenite::client(request, socket)
            .map_err(|error| StreamError::Handshake(error.to_string()))?;
        Ok(Self { socket })
    }

    /// Lets no call block from here on.
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn set_nonblocking(&self) -> Result<(), StreamError> {
        self.socket.get_ref().set_nonblocking(true).map_err(broken)
    }

    /// Makes receiving fail after as long a silence.
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn set_read_timeout(&self, timeout: Duration) -> Result<(), StreamError> {
        let socket = self.socket.get_ref();
        socket.set_read_timeout(Some(timeout)).map_err(broken)
    }

    /// Sends bytes on a channel. Answers whether all is sent; the rest of a stream that does not block
    /// goes with [`Self::flush`].
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<bool, StreamError> {
        let message = [&[channel], data].concat();
        sent(self.socket.send(Message::Binary(message.into())))
    }

    /// Sends what could not be sent so far; answers whether all is sent.
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn flush(&mut self) -> Result<bool, StreamError> {
        sent(self.socket.flush())
    }

    /// Sets the size of the terminal; answers as [`Self::send`].
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<bool, StreamError> {
        let size = format!(r#"{{"Width":{columns},"Height":{rows}}}"#);
        self.send(channel::RESIZE, size.as_bytes())
    }

    /// Receives a message.
    ///
    /// # Errors
    /// [`StreamError::Broken`].
    pub fn receive(&mut self) -> Result<Received, StreamError> {
        loop {
            let message = match self.socket.read() {
                Ok(Message::Binary(message)) => message,
                Ok(Message::Text(message)) => message.into(),
                Ok(Message::Close(_)) => return Ok(Received::End),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(error) => return ended(error),
            };
            let mut data = message;
            if !data.is_empty() {
                let payload = data.split_off(1);
                let channel = data.first().copied().unwrap_or_default();
                return Ok(Received::Data(channel, payload));
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn broken(error: io::Error) -> StreamError {
    StreamError::Broken(Box::new(error.into()))
}

fn would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn sent(result: Result<(), tungstenite::Error>) -> Result<bool, StreamError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if would_block(&error) => Ok(false),
        Err(error) => Err(StreamError::Broken(Box::new(error))),
    }
}

/// What a failed read means.
fn ended(error: tungstenite::Error) -> Result<Received, StreamError> {
    use tungstenite::Error::{ConnectionClosed, Io, Protocol};
    match error {
        error if would_block(&error) => Ok(Received::Nothing),
        // containerd closes without the closing handshake.
        ConnectionClosed | Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Ok(Received::End)
        }
        Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::End),
        error => Err(StreamError::Broken(Box::new(error))),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A streaming server for tests.

    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use tungstenite::handshake::server::{Request, Response};

    use super::*;

    /// Serves one connection with `serve`; answers the address.
    #[expect(
        clippy::result_large_err,
        reason = "tungstenite's own type of a refusal"
    )]
    pub(crate) fn server(
        serve: impl FnOnce(&mut WebSocket<TcpStream>) + Send + 'static,
    ) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/attach/token", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let accept = |request: &Request, mut response: Response| {
                let protocol = request.headers()["Sec-WebSocket-Protocol"].clone();
                assert_eq!(protocol, PROTOCOL);
                let headers = response.headers_mut();
                headers.insert("Sec-WebSocket-Protocol", protocol);
                Ok(response)
            };
            let mut socket = tungstenite::accept_hdr(socket, accept).unwrap();
            serve(&mut socket);
        });
        (url, thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_told_apart_and_the_end_is_seen() {
        let (url, server) = testing::server(|socket| {
            let resized = socket.read().unwrap().into_data();
            assert_eq!(&*resized, b"\x04{\"Width\":80,\"Height\":25}");
            let input = socket.read().unwrap().into_data();
            assert_eq!(&*input, b"\x00ls\n");
            for message in [&b"\x01"[..], b"", b"\x01out", b"\x02err"] {
                let message = Message::Binary(Bytes::copy_from_slice(message));
                socket.send(message).unwrap();
            }
        });
        let mut stream = Stream::connect(&url).unwrap();
        assert!(stream.resize(80, 25).unwrap());
        assert!(stream.send(channel::STDIN, b"ls\n").unwrap());
        let data = |channel, text: &'static str| Received::Data(channel, text.into());
        for expected in [data(1, ""), data(1, "out"), data(2, "err"), Received::End] {
            assert_eq!(stream.receive().unwrap(), expected);
        }
        server.join().unwrap();
    }

    #[test]
    fn a_stream_that_does_not_block_has_nothing_now() {
        let (url, server) = testing::server(|socket| {
            // Until the client is gone.
            while socket.read().is_ok() {}
        });
        let mut stream = Stream::connect(&url).unwrap();
        stream.set_nonblocking().unwrap();
        assert_eq!(stream.receive().unwrap(), Received::Nothing);
        drop(stream);
        server.join().unwrap();
    }

    #[test]
    fn other_addresses_are_refused() {
        for url in ["", "https://127.0.0.1:1/x", "unix:///run/x"] {
            assert!(
                matches!(Stream::connect(url), Err(StreamError::Url(_))),
                "{url}"
            );
        }
        let refused = Stream::connect("http://127.0.0.1:1/x");
        assert!(matches!(refused, Err(StreamError::Connect { .. })));
    }
}
