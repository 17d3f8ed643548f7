//! Very many connections at a time into one pod.
//!
//! The pod's end takes connections, keeps them all, and sends back what each one says.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podvisor_tests::{Cri, Handler, PodBuilder, wait};

use crate::case::{Case, long};
use crate::in_pod;

const CONNECTIONS: usize = 10_000;
const PORT: u16 = 7;

pub fn cases() -> Vec<Case> {
    vec![long("a_pod_holds_10000_connections", ten_thousand)]
}

/// Takes [`CONNECTIONS`] connections to a port, then listens to each in turn, for ever.
pub fn hold(port: &str) -> Result<()> {
    allow_files()?;
    let port: u16 = port.parse().context("port")?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let mut connections = Vec::with_capacity(CONNECTIONS);
    while connections.len() < CONNECTIONS {
        let (mut connection, _) = listener.accept()?;
        echo(&mut connection)?;
        connections.push(connection);
    }
    loop {
        for connection in &mut connections {
            echo(connection)?;
        }
    }
}

fn echo(connection: &mut TcpStream) -> Result<()> {
    let mut word = [0; 4];
    connection.read_exact(&mut word)?;
    Ok(connection.write_all(&word)?)
}

/// Lets this process have a descriptor for each connection, and some more.
fn allow_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = most.max(2 * u64::try_from(CONNECTIONS)?);
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of open files")
}

/// Says a number on a connection and expects it back.
fn ask(connection: &mut TcpStream, number: usize) -> Result<()> {
    let word = u32::try_from(number)?.to_le_bytes();
    connection.write_all(&word)?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer)?;
    ensure!(answer == word, "{answer:?} came back for {word:?}");
    Ok(())
}

fn ten_thousand(cri: &Cri) -> Result<()> {
    allow_files()?;
    let pod = PodBuilder::new(cri, Handler::Podvisor, "many")
        .memory_mib(512)
        .run()?;
    let port = PORT.to_string();
    let _holder = in_pod::with_program(pod.container("holder"))?
        .command(&in_pod::command(in_pod::HOLD_CONNECTIONS, &port))
        .start()?;
    let address = pod.addresses()?.first().cloned().context("no address")?;
    let connect = || TcpStream::connect((address.as_str(), PORT));
    let mut connections = vec![wait::until("holder", Duration::from_secs(30), || {
        Ok(connect().ok())
    })?];
    for number in 0..CONNECTIONS {
        if number > 0 {
            connections.push(connect().with_context(|| format!("connection {number}"))?);
        }
        let connection = connections.last_mut().context("no connection")?;
        connection.set_read_timeout(Some(Duration::from_secs(60)))?;
        ask(connection, number).with_context(|| format!("connection {number}"))?;
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        ask(connection, number).with_context(|| format!("connection {number}, again"))?;
    }
    Ok(())
}
