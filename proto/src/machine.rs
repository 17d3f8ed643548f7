//! How the agent comes into a machine: it lies on a disk that the host adds, cloud-init or a person
//! starts it from there, and it reports to the host as in any guest.

/// Label of the disk, and so of its file system.
pub const SEED_LABEL: &str = "CIDATA";
/// The agent's file on that disk.
pub const AGENT_FILE: &str = "podvisor-agent";
/// First argument of the agent in a machine.
pub const AGENT_ARGUMENT: &str = "machine";
/// Where the machine has it: a file system of its own, for a distribution's /run may forbid
/// execution.
pub const AGENT_FOLDER: &str = "/run/podvisor/agent";
/// The service's name where there is systemd.
pub const UNIT_NAME: &str = "podvisor-agent.service";

/// Is there once the agent has mounted the pod's volumes.
pub const VOLUMES_MOUNTED: &str = "/run/podvisor/volumes-mounted";

/// The service for systemd: early, and for as long as the machine runs.
pub const UNIT: &str = "\
[Unit]
Description=Podvisor agent: exec, probes and ports of the pod that this machine is
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/run/podvisor/agent/podvisor-agent machine
Restart=on-failure
RestartSec=1
OOMScoreAdjust=-900
TasksMax=infinity
LimitNOFILE=1048576
";

/// Shell commands that start the agent, at every boot and by hand: from the disk, as a service where
/// there is systemd, in the background elsewhere. A second run changes nothing.
#[must_use]
pub fn start_commands() -> String {
    format!(
        "\
folder={AGENT_FOLDER}
if [ ! -x $folder/{AGENT_FILE} ]; then
  mkdir -p $folder.disk $folder
  disk=/dev/disk/by-label/{SEED_LABEL}
  [ -e $disk ] || disk=$(blkid -L {SEED_LABEL})
  mount -o ro $disk $folder.disk
  mount -t tmpfs -o mode=0755,nosuid,nodev podvisor-agent $folder
  cp $folder.disk/{AGENT_FILE} $folder/{AGENT_FILE}.new
  chmod 0755 $folder/{AGENT_FILE}.new
  mv $folder/{AGENT_FILE}.new $folder/{AGENT_FILE}
  umount $folder.disk
fi
if [ -d /run/systemd/system ]; then
  cat > /run/systemd/system/{UNIT_NAME} <<'END'
{UNIT}END
  systemctl daemon-reload
  systemctl start --no-block {UNIT_NAME}
else
  setsid $folder/{AGENT_FILE} {AGENT_ARGUMENT} </dev/null >/dev/null 2>&1 &
fi
"
    )
}

/// Shell commands that wait until the agent has mounted the pod's volumes: what cloud-init runs next
/// may look for them. A machine that cannot have them is not held up for long.
#[must_use]
pub fn wait_commands() -> String {
    format!(
        "\
tries=0
while [ ! -e {VOLUMES_MOUNTED} ] && [ $tries -lt 100 ]; do
  sleep 0.2
  tries=$((tries + 1))
done
[ -e {VOLUMES_MOUNTED} ] || echo 'the volumes of the pod are not there yet' >&2
"
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_unit_starts_what_the_commands_install() {
        let start = format!("ExecStart={AGENT_FOLDER}/{AGENT_FILE} {AGENT_ARGUMENT}\n");
        assert!(UNIT.contains(&start));
    }

    #[test]
    fn the_commands_are_a_script() {
        let mut shell = Command::new("sh")
            .args(["-n", "/dev/stdin"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut script = shell.stdin.take().unwrap();
        let commands = start_commands() + &wait_commands();
        script.write_all(commands.as_bytes()).unwrap();
        drop(script);
        assert!(shell.wait().unwrap().success());
    }
}
