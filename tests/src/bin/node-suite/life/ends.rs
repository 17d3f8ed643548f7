//! How containers end: codes, reasons and signals, as runc's do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::ContainerState;
use podvisor_tests::registry::{Form, Layout};
use podvisor_tests::{Cri, Handler, Pod, PodBuilder, wait};
use serde_json::json;

use crate::case::{Case, beside_runc, gate};

const END: Duration = Duration::from_secs(60);
const STOPSIGNAL_IMAGE: &str = "registry.example/suite/stopsignal:1";

pub fn cases() -> Vec<Case> {
    vec![
        gate("containers_end_with_runcs_codes_and_reasons", as_runc),
        beside_runc("an_images_stop_signal_and_no_grace_are_kept", signals),
    ]
}

/// What containerd tells of an end.
#[derive(Debug, PartialEq, Eq)]
struct End {
    what: &'static str,
    code: i32,
    reason: String,
}

const COMMANDS: [(&str, &[&str]); 6] = [
    ("success", &["true"]),
    ("failure", &["sh", "-c", "exit 3"]),
    (
        "killed child",
        &["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"],
    ),
    ("missing file", &["/no/such/file"]),
    ("missing command", &["no-such-command"]),
    ("folder", &["/tmp"]),
];

fn as_runc(cri: &Cri) -> Result<()> {
    let of = |handler| -> Result<Vec<End>> {
        let pod = PodBuilder::new(cri, handler, "ends").run()?;
        COMMANDS
            .iter()
            .map(|&(what, command)| end_of(&pod, what, command))
            .collect()
    };
    let (runc, ours) = (of(Handler::Runc)?, of(Handler::Podvisor)?);
    for (runc, ours) in runc.iter().zip(&ours) {
        ensure!(runc == ours, "runc: {runc:?}, VM: {ours:?}");
    }
    Ok(())
}

fn end_of(pod: &Pod<'_>, what: &'static str, command: &[&str]) -> Result<End> {
    let name = what.replace(' ', "-").to_lowercase();
    let container = pod.container(&name).command(command).create()?;
    if let Err(error) = container.start() {
        let word = command.first().context("no command")?;
        ensure!(
            format!("{error:#}").contains(word),
            "{word} is not in the error: {error:#}"
        );
    }
    let status = container.wait(END).context(what)?;
    Ok(End {
        what,
        code: status.exit_code,
        reason: status.reason,
    })
}

fn signals(cri: &Cri, handler: Handler) -> Result<()> {
    let layout = Layout::create()?;
    let config = json!({
        "Env": ["PATH=/bin"],
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["trap 'echo usr1; exit 6' USR1; trap 'echo term' TERM; echo up; while :; do sleep 0.1; done"],
        "StopSignal": "SIGUSR1",
    });
    layout.add(Form::Oci, config, &[STOPSIGNAL_IMAGE])?;
    let pod = PodBuilder::new(cri, handler, "signals").run()?;
    let by_image = pod.container("by-image").image(STOPSIGNAL_IMAGE);
    let by_image = by_image.command(&[]).start()?;
    let deaf = pod.container("deaf");
    let deaf = deaf
        .script("trap '' TERM; echo up; while :; do sleep 0.1; done")
        .start()?;
    for container in [&by_image, &deaf] {
        wait::until("trap", Duration::from_secs(20), || {
            Ok(container.log()?.stdout.contains("up").then_some(()))
        })?;
    }
    by_image.stop(END)?;
    let status = by_image.status()?;
    ensure!(
        status.exit_code == 6 && by_image.log()?.stdout == "up\nusr1\n",
        "{status:?}, log {:?}",
        by_image.log()?
    );
    let asked = Instant::now();
    deaf.stop(Duration::ZERO)?;
    // An emulated CPU may take longer than one second for a kill.
    ensure!(
        asked.elapsed() < Duration::from_secs(5),
        "a stop without grace took {:?}",
        asked.elapsed()
    );
    let status = deaf.status()?;
    ensure!(
        status.state() == ContainerState::ContainerExited && status.exit_code == 137,
        "{status:?}"
    );
    cri.remove_image(STOPSIGNAL_IMAGE)
}
