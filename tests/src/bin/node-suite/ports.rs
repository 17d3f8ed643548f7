//! Forwarded ports: through containerd as `kubectl port-forward` does, beside a runc pod, and from
//! inside the pod's network namespace as containerd itself does, where more can be seen.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::port_channel::{DATA, ERROR};
use podvisor_tests::{Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate, long};

pub fn cases() -> Vec<Case> {
    vec![
        gate("ports_are_forwarded_to_services_on_any_address", forward),
        gate("forwarded_connections_carry_both_ways_at_once", |cri| {
            carry(cri, 16, 4)
        }),
        long("a_forwarded_connection_carries_1_gib", |cri| {
            carry(cri, 1024, 1)
        }),
    ]
}

/// Web servers on every address and on one of each family, and one that sends back what it gets.
const SERVICES: &str = "mkdir /www; echo here > /www/name; httpd -h /www -p 8080; \
    httpd -h /www -p 127.0.0.1:8081; httpd -h /www -p '[::1]:8082'; nc -ll -p 9000 -e cat";
const ECHO: u16 = 9000;
/// Nobody listens there.
const CLOSED: u16 = 81;
const REQUEST: &[u8] = b"GET /name HTTP/1.0\r\n\r\n";

fn forward(cri: &Cri) -> Result<()> {
    for handler in [Handler::Runc, Handler::Podvisor] {
        let pod = PodBuilder::new(cri, handler, "ports").run()?;
        let services = pod.container("services").script(SERVICES).start()?;
        let listening = "netstat -tln | grep -c -e :808 -e :9000; true";
        wait::until("services", Duration::from_secs(30), || {
            Ok((services.shell(listening)? == "4").then_some(()))
        })?;
        for port in [8080, 8081, 8082] {
            let mut session = pod.port_forward(port)?;
            session.send(DATA, REQUEST)?;
            session
                .wait_for(DATA, "here\n")
                .with_context(|| format!("{handler:?} pod, port {port}"))?;
        }
        let answer = pod.port_forward(CLOSED)?.finish()?;
        ensure!(
            !answer.bytes(ERROR).is_empty(),
            "{handler:?} pod: a closed port is not told"
        );
        for address in ["127.0.0.1:8081", "[::1]:8080", "[::1]:8082"] {
            let mut connection = pod.dial(address.parse()?)?;
            connection.write_all(REQUEST)?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            ensure!(
                answer.ends_with("here\n"),
                "{handler:?} pod, {address}: {answer:?}"
            );
        }
    }
    Ok(())
}

fn echo_address() -> SocketAddr {
    ([127, 0, 0, 1], ECHO).into()
}

fn carry(cri: &Cri, mib: usize, connections: usize) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "carry").run()?;
    let services = pod.container("services").script(SERVICES).start()?;
    wait::until("services", Duration::from_secs(30), || {
        Ok((services.shell("netstat -tln")?.contains(":9000")).then_some(()))
    })?;
    refusal_is_quick(&pod)?;
    let mut idle = pod.dial(echo_address())?;
    let carrying: Vec<_> = (0..connections)
        .map(|_| {
            let connection = pod.dial(echo_address())?;
            Ok(thread::spawn(move || echo(connection, mib)))
        })
        .collect::<Result<_>>()?;
    for thread in carrying {
        let carried = thread.join();
        carried.map_err(|_| anyhow::anyhow!("a carrying thread panicked"))??;
    }
    // One that was silent meanwhile is served as before.
    idle.write_all(b"still there")?;
    idle.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    idle.read_to_string(&mut answer)?;
    ensure!(answer == "still there", "{answer:?}");
    Ok(())
}

/// A connection to a closed port ends at once, by a reset or by a refusal.
fn refusal_is_quick(pod: &Pod<'_>) -> Result<()> {
    let start = Instant::now();
    let answer = pod
        .dial(([127, 0, 0, 1], CLOSED).into())
        .and_then(|mut connection| Ok(connection.read(&mut [0; 1])?));
    ensure!(answer.is_err(), "a closed port answered: {answer:?}");
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(5), "refused after {took:?}");
    Ok(())
}

/// Sends a pattern, ends sending, and compares what comes back to its end.
fn echo(connection: TcpStream, mib: usize) -> Result<()> {
    // A prime length: a piece that is lost or doubled shows.
    let pattern: Vec<u8> = (0..=u8::MAX).cycle().take(1_048_573).collect();
    let mut sending = connection.try_clone()?;
    let sent = pattern.clone();
    let sender = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..mib {
            sending.write_all(&sent)?;
        }
        sending.shutdown(Shutdown::Write)
    });
    let mut receiving = connection;
    let mut piece = vec![0; pattern.len()];
    for number in 0..mib {
        receiving
            .read_exact(&mut piece)
            .with_context(|| format!("MiB {number} of {mib}"))?;
        ensure!(
            piece == pattern,
            "MiB {number} of {mib} is not what was sent"
        );
    }
    ensure!(receiving.read(&mut piece)? == 0, "more came than was sent");
    let sender = sender.join();
    sender.map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
    Ok(())
}
