//! Standard streams: the guest's ends of a process's pipes or terminal, tied to
//! the vsock connections that ask for them by token. Copying stops when the other
//! side does not take more, so a slow reader slows the process and nothing else.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podvisor_proto::agent::STREAM_TOKEN_LEN;
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::sys::poll::{self, PolledFd};

/// Bytes copied at once; the buffer lives only while there is something to copy.
const CHUNK: usize = 64 << 10;

/// Names one stream; only the shim knows it.
pub type Token = [u8; STREAM_TOKEN_LEN];

/// The guest's end of a stream.
#[derive(Debug)]
pub enum Local {
    /// What the process writes is read here.
    Output(OwnedFd),
    /// What is written here, the process reads.
    Input(OwnedFd),
}

/// Every stream that was promised and not forgotten.
#[derive(Debug)]
pub struct StreamTable<C> {
    slots: Mutex<HashMap<Token, Slot<C>>>,
    arrivals: Notify,
}

#[derive(Debug)]
struct Slot<C> {
    connection: Option<C>,
    local: Option<Local>,
    connected: bool,
    copying: Option<AbortHandle>,
}

impl<C> Default for StreamTable<C> {
    fn default() -> Self {
        Self {
            slots: Mutex::new(HashMap::new()),
            arrivals: Notify::new(),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> StreamTable<C> {
    /// Promises a stream.
    ///
    /// # Errors
    ///
    /// What getrandom(2) said.
    pub fn issue(&self) -> io::Result<Token> {
        let mut token = Token::default();
        rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
        let slot = Slot {
            connection: None,
            local: None,
            connected: false,
            copying: None,
        };
        self.slots().insert(token, slot);
        Ok(token)
    }

    /// Ties a connection to the stream it asks for; false, and the connection is
    /// dropped, for a token that is unknown or taken.
    pub fn connect(&self, token: &Token, connection: C) -> bool {
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(token).filter(|slot| !slot.connected) else {
            return false;
        };
        slot.connected = true;
        slot.connection = Some(connection);
        slot.begin();
        self.arrivals.notify_waiters();
        true
    }

    /// Gives the guest's end of a stream; a forgotten stream closes it.
    pub fn supply(&self, token: &Token, local: Local) {
        if let Some(slot) = self.slots().get_mut(token) {
            slot.local = Some(local);
            slot.begin();
        }
    }

    /// Whether the shim has asked for the stream.
    #[must_use]
    pub fn is_connected(&self, token: &Token) -> bool {
        self.slots().get(token).is_some_and(|slot| slot.connected)
    }

    /// Waits until `done` holds, looking again whenever a stream was connected; false when it
    /// does not within `limit`.
    pub async fn wait_until(&self, limit: Duration, done: impl Fn() -> bool) -> bool {
        let wait = async {
            loop {
                let arrival = self.arrivals.notified();
                if done() {
                    return;
                }
                arrival.await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Closes the stream, whatever is in flight.
    pub fn forget(&self, token: &Token) {
        let slot = self.slots().remove(token);
        if let Some(copying) = slot.and_then(|slot| slot.copying) {
            copying.abort();
        }
    }

    /// Closes the stream when the guest's end of it was never there: nothing else would.
    pub fn forget_unsupplied(&self, token: &Token) {
        let mut slots = self.slots();
        let is_supplied = |slot: &Slot<C>| slot.local.is_some() || slot.copying.is_some();
        if slots.get(token).is_some_and(|slot| !is_supplied(slot)) {
            slots.remove(token);
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Token, Slot<C>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> Slot<C> {
    /// Starts copying once both ends are there.
    fn begin(&mut self) {
        if self.connection.is_none() || self.local.is_none() {
            return;
        }
        if let (Some(connection), Some(local)) = (self.connection.take(), self.local.take()) {
            self.copying = Some(tokio::spawn(copy(connection, local)).abort_handle());
        }
    }
}

/// Takes one connection of the stream port: its token, then its bytes.
pub async fn accept<C>(table: Arc<StreamTable<C>>, mut connection: C)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut token = Token::default();
    // A connection that ends early asked for nothing.
    if connection.read_exact(&mut token).await.is_ok() && !table.connect(&token, connection) {
        tracing::warn!("a stream was asked for by an unknown token");
    }
}

async fn copy<C: AsyncRead + AsyncWrite + Unpin>(mut connection: C, local: Local) {
    // Either end may go at any time, which is how streams end.
    let _ = match local {
        Local::Output(fd) => copy_output(fd, &mut connection).await,
        Local::Input(fd) => copy_input(&mut connection, fd).await,
    };
}

async fn copy_output(fd: OwnedFd, connection: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let source = nonblocking(fd, Interest::READABLE)?;
    loop {
        source.readable().await?.retain_ready();
        let mut buffer = vec![0_u8; CHUNK];
        // Until there is nothing more to read for now; then the buffer goes.
        loop {
            let mut guard = source.readable().await?;
            let read = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?));
            let count = match read {
                Err(_would_block) => break,
                // A terminal whose last user has gone.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => 0,
                Ok(count) => count?,
            };
            let Some(data) = buffer.get(..count).filter(|data| !data.is_empty()) else {
                return connection.shutdown().await;
            };
            connection.write_all(data).await?;
        }
    }
}

async fn copy_input(connection: &mut (impl AsyncRead + Unpin), fd: OwnedFd) -> io::Result<()> {
    let sink = nonblocking(fd, Interest::WRITABLE)?;
    loop {
        // One byte first: an idle stream then holds no buffer.
        let mut first = [0_u8; 1];
        if connection.read(&mut first).await? == 0 {
            return Ok(());
        }
        write_all(&sink, &first).await?;
        let mut buffer = vec![0_u8; CHUNK];
        while let Some(count) = read_now(connection, &mut buffer).await? {
            if count == 0 {
                return Ok(());
            }
            write_all(&sink, buffer.get(..count).unwrap_or_default()).await?;
        }
    }
}

/// Reads what has arrived already; `None` when that is nothing.
async fn read_now(
    connection: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> io::Result<Option<usize>> {
    tokio::select! {
        biased;
        count = connection.read(buffer) => count.map(Some),
        () = std::future::ready(()) => Ok(None),
    }
}

async fn write_all(sink: &PolledFd, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut guard = sink.writable().await?;
        match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
            Ok(count) => data = data.get(count?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

fn nonblocking(fd: OwnedFd, interest: Interest) -> io::Result<PolledFd> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?;
    poll::register(fd, interest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    fn output_of(table: &StreamTable<DuplexStream>) -> (Token, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let token = table.issue().unwrap();
        table.supply(&token, Local::Output(read));
        (token, write)
    }

    async fn dial(table: &Arc<StreamTable<DuplexStream>>, token: Token) -> DuplexStream {
        let (mut shim, guest) = duplex(1 << 10);
        shim.write_all(&token).await.unwrap();
        accept(table.clone(), guest).await;
        shim
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_arrives_whole_and_ends() {
        let table = Arc::new(StreamTable::default());
        let (token, write) = output_of(&table);
        let expected: Vec<u8> = (0..1_000_000_u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        let writer = std::thread::spawn({
            let data = expected.clone();
            move || std::io::Write::write_all(&mut std::fs::File::from(write), &data).unwrap()
        });
        let mut received = Vec::new();
        dial(&table, token)
            .await
            .read_to_end(&mut received)
            .await
            .unwrap();
        writer.join().unwrap();
        assert!(received == expected);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_written_before_the_end_is_delivered() {
        let table = Arc::new(StreamTable::default());
        let (token, write) = output_of(&table);
        rustix::io::write(&write, b"last words").unwrap();
        drop(write);
        let mut received = String::new();
        dial(&table, token)
            .await
            .read_to_string(&mut received)
            .await
            .unwrap();
        assert_eq!(received, "last words");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn closing_stdin_ends_it_after_the_bytes_in_flight() {
        let table = Arc::new(StreamTable::default());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let token = table.issue().unwrap();
        let mut shim = dial(&table, token).await;
        table.supply(&token, Local::Input(write));
        shim.write_all(b"to the process").await.unwrap();
        shim.shutdown().await.unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).unwrap();
            text
        });
        while !reader.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(reader.join().unwrap(), "to the process");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_opens_its_stream_once() {
        let table = Arc::new(StreamTable::default());
        let (token, _write) = output_of(&table);
        assert!(!table.is_connected(&token));
        let _first = dial(&table, token).await;
        assert!(table.is_connected(&token));
        let mut second = dial(&table, token).await;
        assert_eq!(second.read(&mut [0; 8]).await.unwrap(), 0);
        let mut unknown = dial(&table, [0; STREAM_TOKEN_LEN]).await;
        assert_eq!(unknown.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_a_stream_without_the_guests_end_is_closed_for_want_of_it() {
        let table = Arc::new(StreamTable::default());
        let bare = table.issue().unwrap();
        let mut shim = dial(&table, bare).await;
        table.forget_unsupplied(&bare);
        assert_eq!(shim.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(!table.is_connected(&bare));
        // One whose copy runs, and one that is not connected yet, deliver what was written.
        for is_first in [true, false] {
            let (token, write) = output_of(&table);
            let early = match is_first {
                true => Some(dial(&table, token).await),
                false => None,
            };
            rustix::io::write(&write, b"why").unwrap();
            drop(write);
            table.forget_unsupplied(&token);
            let mut shim = match early {
                Some(shim) => shim,
                None => dial(&table, token).await,
            };
            let mut received = String::new();
            shim.read_to_string(&mut received).await.unwrap();
            assert_eq!(received, "why");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn forgetting_closes_both_ends() {
        let table = Arc::new(StreamTable::default());
        let (token, write) = output_of(&table);
        let mut shim = dial(&table, token).await;
        table.forget(&token);
        assert_eq!(shim.read(&mut [0; 8]).await.unwrap(), 0);
        tokio::task::yield_now().await;
        assert!(rustix::io::write(&write, b"x").is_err());
    }
}
