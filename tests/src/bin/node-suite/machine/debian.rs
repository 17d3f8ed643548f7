//! The Debian machine: stock kernel, systemd, cloud-init and sshd.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podvisor_tests::streaming::Wanted;
use podvisor_tests::streaming::channel::{STATUS, STDIN};
use podvisor_tests::{Console, Container, Cri, LoopDevice, Pod, PodBuilder, wait};

use super::{DEBIAN_BOOT, machine, machine_pod, transcript};
use crate::case::{Case, long};

pub const DEBIAN: &str = "docker.io/podvisor/debian-machine:13";
const DEBIAN_TREE: &str = "docker.io/podvisor/debian-tree:13";
const PASSWORD: &str = "let me in";
/// Longer than systemd takes to end, on an emulated node.
const GRACE: Duration = Duration::from_secs(120);
const SHOWN: Duration = Duration::from_secs(60);

pub fn cases() -> Vec<Case> {
    vec![
        long("a_debian_machine_does_what_people_do_with_it", first_boot),
        long("a_debian_machine_is_the_same_after_its_pod", persistent),
        long("a_debian_tree_boots_as_a_machine", tree),
    ]
}

/// What the user's own cloud-init data says.
pub fn user_data() -> String {
    format!(
        "#cloud-config\n\
         password: {PASSWORD}\n\
         chpasswd: {{expire: false}}\n\
         ssh_pwauth: false\n\
         write_files:\n\
         - {{path: /etc/from-user-data, content: written by cloud-init}}\n\
         runcmd:\n\
         - [sh, -c, 'echo ran > /run/ran']\n"
    )
}

/// A key of the test's own, and what a client uses of it.
struct Key {
    folder: tempfile::TempDir,
    public: String,
}

impl Key {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "suite", "-f"])
            .arg(folder.path().join("key"))
            .status()?;
        ensure!(made.success(), "ssh-keygen: {made}");
        let public = fs::read_to_string(folder.path().join("key.pub"))?;
        Ok(Self { folder, public })
    }

    /// Runs a command over SSH through a port of the node.
    fn ssh(&self, port: u16, command: &str) -> Result<String> {
        let output = Command::new("ssh")
            .arg("-i")
            .arg(self.folder.path().join("key"))
            .args(["-p", &port.to_string()])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
            .arg("-o")
            .arg(format!(
                "UserKnownHostsFile={}",
                self.folder.path().join("hosts").display()
            ))
            .args(["debian@127.0.0.1", command])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ssh: {}: {error}", output.status);
        Ok(said)
    }
}

fn debian<'c>(cri: &'c Cri, name: &str) -> PodBuilder<'c> {
    machine_pod(cri, name)
        .memory_mib(512)
        .annotation("podvisor.io/cloud-init", &user_data())
}

/// Someone who is logged in, when cloud-init has done all it has to do.
pub fn logged_in(machine: &Container<'_, '_>) -> Result<Console> {
    let mut console = Console::attach(machine)?;
    console
        .log_in("debian", Some(PASSWORD), DEBIAN_BOOT)
        .with_context(|| transcript(machine))?;
    console.run_within("cloud-init status --wait", DEBIAN_BOOT)?;
    Ok(console)
}

fn first_boot(cri: &Cri) -> Result<()> {
    let key = Key::new()?;
    let pod = debian(cri, "debian").annotation("podvisor.io/ssh-keys", key.public.trim());
    let pod = pod.run()?;
    let machine = machine(&pod, DEBIAN).env("GREETING", "from the pod");
    let machine = machine.start()?;
    let mut console = logged_in(&machine)?;
    cloud_init(&pod, &mut console)?;
    agent(&machine).with_context(|| transcript(&machine))?;
    ssh(&pod, &key, &mut console)?;
    let begin = Instant::now();
    machine.stop(GRACE)?;
    let took = begin.elapsed();
    let status = machine.status()?;
    ensure!(
        status.exit_code == 0 && took < GRACE,
        "{status:?} after {took:?}: {}",
        transcript(&machine)
    );
    Ok(())
}

fn cloud_init(pod: &Pod<'_>, console: &mut Console) -> Result<()> {
    let failed = console.run("systemctl --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    let name = console.run("hostname")?;
    ensure!(name == pod.hostname(), "called {name}");
    let files = console.run("cat /etc/from-user-data; echo; cat /run/ran")?;
    ensure!(
        files == "written by cloud-init\nran",
        "user's data: {files}"
    );
    let addresses = console.run("ip -o address show scope global")?;
    for address in pod.addresses()? {
        ensure!(
            addresses.contains(&format!(" {address}/")),
            "{address} is missing: {addresses}"
        );
    }
    let resolver = console.run("cat /etc/resolv.conf")?;
    ensure!(resolver.contains("10.96.0.10"), "name servers: {resolver}");
    let greeting = console.run("sh -lc 'echo $GREETING'")?;
    ensure!(greeting == "from the pod", "environment: {greeting:?}");
    Ok(())
}

/// Commands, their codes and copies, by the agent that cloud-init brought in.
fn agent(machine: &Container<'_, '_>) -> Result<()> {
    wait::until("the agent", SHOWN, || {
        Ok(machine.exec(&["true"]).ok().map(drop))
    })?;
    let output = machine.exec(&["sh", "-c", "systemctl is-active ssh; exit 3"])?;
    ensure!(
        output.stdout == "active\n" && output.code == 3,
        "{output:?}"
    );
    // As kubectl cp does it: an archive through a command's input.
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("copied"), "copied\n".repeat(9000))?;
    let archive = Command::new("tar")
        .args(["--create", "--file=-", "--directory"])
        .arg(folder.path())
        .arg("copied")
        .output()?;
    let wanted = Wanted {
        stdin: true,
        terminal: false,
    };
    let mut unpack = machine.exec_stream(&["tar", "-xmf", "-", "-C", "/tmp"], wanted)?;
    for piece in archive.stdout.chunks(16 << 10) {
        unpack.send(STDIN, piece)?;
    }
    let status = unpack.finish()?.text(STATUS);
    ensure!(status.contains("Success"), "{status}");
    let len = machine.exec(&["stat", "-c", "%s", "/tmp/copied"])?;
    ensure!(len.stdout == "63000\n", "{len:?}");
    Ok(())
}

/// A real client through a forwarded port, to the host key that the console shows.
fn ssh(pod: &Pod<'_>, key: &Key, console: &mut Console) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let said = std::thread::scope(|scope| {
        let client = scope.spawn(|| key.ssh(port, "hostname; id -un; sudo -n id -u"));
        forward(pod, &listener)?;
        let said = client.join();
        said.map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
    })?;
    ensure!(said == format!("{}\ndebian\n0\n", pod.hostname()), "{said}");
    let known = fs::read_to_string(key.folder.path().join("hosts"))?;
    let own = console.run("cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub")?;
    ensure!(known.contains(&own), "{own} is not in {known}");
    Ok(())
}

/// Carries one connection to the machine's sshd, as `kubectl port-forward` does.
fn forward(pod: &Pod<'_>, listener: &TcpListener) -> Result<()> {
    let (mut local, _) = listener.accept()?;
    let mut remote = pod.dial(([127, 0, 0, 1], 22).into())?;
    let (mut from_local, mut to_remote) = (local.try_clone()?, remote.try_clone()?);
    let sending = std::thread::spawn(move || {
        let sent = std::io::copy(&mut from_local, &mut to_remote);
        // Fails where the other end was faster.
        let _ = to_remote.shutdown(std::net::Shutdown::Write);
        sent
    });
    std::io::copy(&mut remote, &mut local)?;
    local.shutdown(std::net::Shutdown::Both)?;
    let sent = sending.join();
    sent.map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
    Ok(())
}

/// All that makes a machine the same one, its SSH host key among it.
const WHO: &str = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; \
    sudo cat /sys/class/dmi/id/product_uuid /sys/class/dmi/id/product_serial; \
    cat /sys/class/net/e*/address; cat /home/debian/kept 2> /dev/null; true";

fn persistent(cri: &Cri) -> Result<()> {
    let disk = LoopDevice::new(4 << 30)?;
    let on_disk = |work: fn(&mut Console) -> Result<()>| {
        let pod = debian(cri, "debian").called("debian-0").run()?;
        let machine = machine(&pod, DEBIAN).device(disk.path(), "/", "mrw");
        let machine = machine.start()?;
        let mut console = logged_in(&machine)?;
        work(&mut console)?;
        let who = console.run(WHO)?;
        machine.stop(GRACE)?;
        let status = machine.status()?;
        ensure!(status.exit_code == 0, "{status:?}");
        anyhow::Ok(who)
    };
    let first = on_disk(|console| console.run("echo kept > /home/debian/kept; sync").map(drop))?;
    let second = on_disk(|_| Ok(()))?;
    ensure!(first == second, "another machine: {first}, then {second}");
    ensure!(second.ends_with("kept"), "{second}");
    Ok(())
}

fn tree(cri: &Cri) -> Result<()> {
    let pod = debian(cri, "tree").run()?;
    let machine = machine(&pod, DEBIAN_TREE).start()?;
    let mut console = Console::attach(&machine)?;
    console
        .log_in("debian", Some(PASSWORD), DEBIAN_BOOT)
        .with_context(|| transcript(&machine))?;
    // 2: done, with something to complain of, such as a root that cannot grow.
    console.run_within("cloud-init status --wait; test $? -ne 1", DEBIAN_BOOT)?;
    let kernel = console.run("uname -r; cat /proc/1/comm")?;
    ensure!(
        kernel.contains("cloud-amd64") && kernel.ends_with("systemd"),
        "{kernel}"
    );
    machine.stop(GRACE)?;
    let status = machine.status()?;
    ensure!(status.exit_code == 0, "{status:?}");
    Ok(())
}
