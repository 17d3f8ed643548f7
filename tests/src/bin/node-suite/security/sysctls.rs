//! Kernel settings of a pod.

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::{Cri, Handler, PodBuilder};

use crate::case::{Case, gate};

/// Those that Kubernetes calls safe, and an unsafe one.
const SETTINGS: [(&str, &str); 6] = [
    ("kernel.shm_rmid_forced", "1"),
    ("fs.mqueue.msg_max", "100"),
    ("net.ipv4.ip_local_port_range", "2000\t2999"),
    ("net.ipv4.ping_group_range", "0\t1000"),
    ("net.ipv4.ip_unprivileged_port_start", "80"),
    ("net.ipv4.tcp_keepalive_time", "601"),
];

pub fn cases() -> Vec<Case> {
    vec![gate("sysctls_hold_in_every_container", sysctls)]
}

fn sysctls(cri: &Cri) -> Result<()> {
    let names = SETTINGS.map(|(name, _)| format!("/proc/sys/{}", name.replace('.', "/")));
    let script = format!("cat {}", names.join(" "));
    let expected = SETTINGS.map(|(_, value)| value).join("\n");
    for handler in [Handler::Runc, Handler::Podvisor] {
        let pod = PodBuilder::new(cri, handler, "sysctl");
        let pod = SETTINGS
            .iter()
            .fold(pod, |pod, (name, value)| pod.sysctl(name, value))
            .run()?;
        let found = pod.container("idle").start()?.shell(&script)?;
        ensure!(found == expected, "{handler:?}:\n{found}");
    }
    for (name, value) in [
        ("kernel.no_such_setting", "1"),
        ("net.ipv4.ip_local_port_range", "many"),
    ] {
        let pod = PodBuilder::new(cri, Handler::Podvisor, "wrong").sysctl(name, value);
        let error = pod.run().err().context("a wrong setting was taken")?;
        ensure!(format!("{error:#}").contains(name), "{error:#}");
    }
    Ok(())
}
