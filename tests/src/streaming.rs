//! Streams through CRI's streaming server, as tests read them: to a text, a length or the end.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use podvisor::streaming::{self, Stream};
use podvisor_proto::cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};

use crate::container::Container;
use crate::pod::Pod;

pub use podvisor::streaming::channel;

/// Channels of the first forwarded port; each begins with the port in two bytes.
pub mod port_channel {
    /// The connection's bytes, both ways.
    pub const DATA: u8 = 0;
    /// Why it failed.
    pub const ERROR: u8 = 1;
}

/// No stream of a healthy node is silent for longer when something is awaited.
const SILENCE: Duration = Duration::from_secs(60);

/// What a stream is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// A terminal; then there is no standard error.
    pub terminal: bool,
}

/// An open stream.
pub struct Session {
    stream: Stream,
    received: Received,
}

/// What has arrived, by channel.
#[derive(Debug, Default)]
pub struct Received(BTreeMap<u8, Vec<u8>>);

impl Received {
    /// The bytes of a channel.
    #[must_use]
    pub fn bytes(&self, channel: u8) -> &[u8] {
        self.0.get(&channel).map_or(&[], Vec::as_slice)
    }

    /// The bytes of a channel, to take from.
    pub fn channel(&mut self, channel: u8) -> &mut Vec<u8> {
        self.0.entry(channel).or_default()
    }

    /// A channel as text.
    #[must_use]
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.bytes(channel)).into_owned()
    }
}

impl Session {
    fn connect(url: &str) -> Result<Self> {
        let stream = Stream::connect(url)?;
        stream.set_read_timeout(SILENCE)?;
        Ok(Self {
            stream,
            received: Received::default(),
        })
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        self.stream.send(channel, data)?;
        Ok(())
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.stream.resize(columns, rows)?;
        Ok(())
    }

    /// Waits until what has arrived on a channel ends with `text`.
    ///
    /// # Errors
    /// When the stream ends before, or is silent for a minute.
    pub fn wait_for(&mut self, channel: u8, text: &str) -> Result<()> {
        while !self.received.bytes(channel).ends_with(text.as_bytes()) {
            if !self.receive()? {
                bail!("the stream ended before {text:?}: {:?}", self.received);
            }
        }
        Ok(())
    }

    /// Waits until a channel has `len` bytes.
    ///
    /// # Errors
    /// When the stream ends before, or is silent for a minute.
    pub fn wait_for_len(&mut self, channel: u8, len: usize) -> Result<()> {
        while self.received.bytes(channel).len() < len {
            if !self.receive()? {
                let got = self.received.bytes(channel).len();
                bail!("the stream ended after {got} of {len} bytes");
            }
        }
        Ok(())
    }

    /// Receives until `look` finds in what has arrived what it waits for, at most `limit`; `look` may
    /// take from that.
    ///
    /// # Errors
    /// When the stream ends before.
    pub fn receive_until<T>(
        &mut self,
        limit: Duration,
        mut look: impl FnMut(&mut Received) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        loop {
            let found = look(&mut self.received);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || left.is_zero() {
                self.set_patience(SILENCE)?;
                return Ok(found);
            }
            self.set_patience(left)?;
            if self.receive_once()? == Some(false) {
                bail!("the stream ended");
            }
        }
    }

    /// How long the stream may be silent from now on when something is awaited.
    ///
    /// # Errors
    /// When it cannot be set.
    pub fn set_patience(&self, limit: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(limit)?)
    }

    /// Waits until the server ends the stream, and yields all that has arrived.
    ///
    /// # Errors
    /// When the stream is silent for a minute.
    pub fn finish(mut self) -> Result<Received> {
        while self.receive()? {}
        Ok(self.received)
    }

    /// Takes what has arrived so far on all channels.
    pub fn take(&mut self) -> Received {
        std::mem::take(&mut self.received)
    }

    /// Receives a message; false at the stream's end.
    fn receive(&mut self) -> Result<bool> {
        let received = self.receive_once()?;
        received.with_context(|| format!("the stream is silent after {:?}", self.received))
    }

    /// As [`Self::receive`]; None when the stream is silent for too long.
    fn receive_once(&mut self) -> Result<Option<bool>> {
        match self.stream.receive()? {
            streaming::Received::Data(channel, data) => {
                self.received.0.entry(channel).or_default().extend(data);
                Ok(Some(true))
            }
            streaming::Received::Nothing => Ok(None),
            streaming::Received::End => Ok(Some(false)),
        }
    }
}

impl Container<'_, '_> {
    /// Runs a command with its streams open.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn exec_stream(&self, command: &[&str], wanted: Wanted) -> Result<Session> {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.into()).collect(),
            tty: wanted.terminal,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.terminal,
        };
        let answer = self
            .pod
            .cri
            .call("Exec", |mut c| async move { c.exec(request).await })?;
        Session::connect(&answer.url)
    }

    /// Attaches to the container's own streams.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn attach(&self, wanted: Wanted) -> Result<Session> {
        let request = AttachRequest {
            container_id: self.id.clone(),
            stdin: wanted.stdin,
            tty: wanted.terminal,
            stdout: true,
            stderr: !wanted.terminal,
        };
        let answer = self
            .pod
            .cri
            .call("Attach", |mut c| async move { c.attach(request).await })?;
        Session::connect(&answer.url)
    }
}

impl Pod<'_> {
    /// Connects to a port of the pod through containerd.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn port_forward(&self, port: u16) -> Result<Session> {
        let request = PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
        };
        let answer = self.cri.call("PortForward", |mut c| async move {
            c.port_forward(request).await
        })?;
        let mut session = Session::connect(&answer.url)?;
        for channel in [port_channel::DATA, port_channel::ERROR] {
            session.wait_for_len(channel, size_of::<u16>())?;
        }
        session.take();
        Ok(session)
    }

    /// Connects to an address from inside the pod's network namespace on the node, as containerd
    /// does for a forwarded port.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        let namespace = std::fs::File::open(self.network_namespace()?)?;
        let dialling = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect(address)
        });
        let dialled = dialling.join();
        let dialled = dialled.map_err(|_| anyhow::anyhow!("the dialling thread panicked"))?;
        let stream = dialled.with_context(|| format!("dial {address} in the pod's namespace"))?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(stream)
    }

    /// The pod's network namespace on the node.
    fn network_namespace(&self) -> Result<String> {
        const FOLDER: &str = "/var/run/netns/";
        let file = self.bundle().join("config.json");
        let spec =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let name = spec
            .split_once(FOLDER)
            .and_then(|(_, rest)| rest.split_once('"'))
            .with_context(|| format!("no network namespace in {}", file.display()))?;
        Ok(format!("{FOLDER}{}", name.0))
    }
}
