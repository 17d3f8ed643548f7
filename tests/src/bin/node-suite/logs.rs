//! What containers leave: logs, which the kubelet rotates, and termination messages.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::log_file::ContainerLog;
use podvisor_tests::{Cri, Handler, PodBuilder, wait};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("logs_are_rotated_without_a_loss", rotation),
        gate("termination_messages_reach_the_node", termination_messages),
    ]
}

fn rotation(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "rotation").run()?;
    // A line longer than containerd's 16 KiB comes in parts.
    let script = "head -c 20000 /dev/zero | tr '\\0' x; echo; i=0; \
        while true; do i=$((i+1)); echo $i; sleep 0.05; done";
    let counter = pod.container("counter").script(script).start()?;
    let count = || Ok::<_, anyhow::Error>(counter.log()?.stdout.lines().count());
    wait::until("first lines", Duration::from_secs(30), || {
        Ok((count()? > 10).then_some(()))
    })?;
    let (current, rotated) = (counter.log_path(), pod.log_folder().join("rotated.log"));
    fs::rename(&current, &rotated)?;
    counter.reopen_log()?;
    wait::until("lines after the rotation", Duration::from_secs(30), || {
        Ok((count()? > 10).then_some(()))
    })?;
    counter.stop(Duration::ZERO)?;
    let before = fs::read_to_string(&rotated)?;
    ensure!(
        before.contains(" stdout P xxx"),
        "the long line is in one part"
    );
    let text = ContainerLog::parse(&before)?.stdout + &counter.log()?.stdout;
    let (long, numbers) = text.split_once('\n').context("an empty log")?;
    ensure!(long.len() == 20000, "{} characters of 20000", long.len());
    for (line, number) in numbers.lines().zip(1..) {
        ensure!(line == number.to_string(), "line {number} is {line:?}");
    }
    Ok(())
}

fn termination_messages(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "messages").run()?;
    let folder = pod.volume("messages")?;
    let mut containers = Vec::new();
    for name in ["one", "two"] {
        // As the kubelet makes it: an empty file that anybody may write.
        let file = folder.join(name);
        fs::write(&file, "")?;
        let script = format!("echo -n from {name} > /dev/termination-log; exit 3");
        let container = pod
            .container(name)
            .mount(&file, "/dev/termination-log")
            .read_only_root()
            .script(&script);
        containers.push((container.start()?, file));
    }
    for (container, file) in containers {
        let status = container.wait(Duration::from_secs(30))?;
        let message = fs::read_to_string(&file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        ensure!(
            status.exit_code == 3 && message == format!("from {name}"),
            "{}: {message:?}",
            status.exit_code
        );
    }
    Ok(())
}
