//! What no well-meaning caller sends, and hosts that lack what a machine needs: an error that
//! says what is wrong, and the pods that run go on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::containerd::types::Mount;
use podvisor_tests::task::Shim;
use podvisor_tests::{Cri, Handler, PodBuilder};

use crate::case::{Case, gate};

pub fn cases() -> Vec<Case> {
    vec![
        gate("a_bundle_without_config_is_refused", |_| without_config()),
        gate(
            "malformed_frames_harm_only_their_connection",
            malformed_frames,
        ),
        gate("a_root_that_cannot_be_mounted_is_named", bad_root),
        gate("a_node_without_kvm_says_so", without_kvm),
    ]
}

fn shim(bundle: &Path, words: &[&str]) -> Result<Output> {
    let mut command = Command::new("/usr/local/bin/containerd-shim-podvisor-v2");
    let address = [
        "-namespace",
        "k8s.io",
        "-address",
        "/run/containerd/containerd.sock",
    ];
    let command = command
        .args(address)
        .args(["-publish-binary", "containerd", "-id", "lonely"]);
    command
        .args(words)
        .current_dir(bundle)
        .output()
        .context("run the shim")
}

/// A bundle without a spec may be that of a sandbox, which containerd describes later; a container
/// in one is refused, and the server goes with `delete`.
fn without_config() -> Result<()> {
    let bundle = tempfile::tempdir()?;
    let output = shim(bundle.path(), &["start"])?;
    ensure!(output.status.success(), "{output:?}");
    let created = Shim::of_bundle(bundle.path())
        .and_then(|shim| shim.create("lonely", bundle.path(), Vec::new()));
    let path = bundle.path().display().to_string();
    let output = shim(bundle.path(), &["-bundle", &path, "delete"])?;
    ensure!(output.status.success(), "delete: {output:?}");
    let error = created.err().context("a container without a spec")?;
    ensure!(
        format!("{error:#}").contains("config.json"),
        "config.json is not in the error: {error:#}"
    );
    Ok(())
}

fn malformed_frames(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "frames").run()?;
    let container = pod.container("idle").start()?;
    let socket = Shim::socket(&pod)?;
    // Length, stream, type, flags: of 4 GiB; a response nobody asked for; no protobuf; half.
    let frames: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        &[0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0],
        &[0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 1],
    ];
    for frame in frames {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(frame)?;
        // Whether an answer comes or the connection ends does not matter here.
        drop(stream.read(&mut [0; 64]));
    }
    ensure!(
        container.shell("echo alive")? == "alive",
        "the pod is harmed"
    );
    let stat = |pid| fs::read_to_string(format!("/proc/{pid}/schedstat"));
    let pid = pod.shim_pid()?;
    let busy = || -> Result<u64> { Ok(stat(pid)?.split(' ').next().unwrap_or("0").parse()?) };
    let before = busy()?;
    std::thread::sleep(Duration::from_secs(2));
    let used = Duration::from_nanos(busy()? - before);
    ensure!(
        used < Duration::from_secs(1),
        "the shim spins: {used:?} of 2 s"
    );
    Ok(())
}

fn bad_root(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "root").run()?;
    let container = pod.container("idle").start()?;
    let good = pod.bundle().with_file_name(&container.id);
    let bundle = tempfile::tempdir()?;
    fs::copy(good.join("config.json"), bundle.path().join("config.json"))?;
    fs::create_dir(bundle.path().join("rootfs"))?;
    let mount = Mount {
        r#type: "nofs".into(),
        source: "nothing".into(),
        ..Mount::default()
    };
    let shim = Shim::connect(&pod)?;
    let error = shim
        .create("broken", bundle.path(), vec![mount])
        .err()
        .context("it mounted")?;
    let error = format!("{error:#}");
    ensure!(
        error.contains("nofs"),
        "the file system is not in the error: {error}"
    );
    ensure!(
        shim.state("broken").is_err(),
        "a container that failed is still there"
    );
    ensure!(
        container.shell("echo alive")? == "alive",
        "the pod is harmed"
    );
    Ok(())
}

fn without_kvm(cri: &Cri) -> Result<()> {
    fs::rename("/dev/kvm", "/dev/kvm.away")?;
    let result = PodBuilder::new(cri, Handler::Podvisor, "kvm")
        .run()
        .map(drop);
    fs::rename("/dev/kvm.away", "/dev/kvm")?;
    let error = format!("{:#}", result.err().context("a pod ran without KVM")?);
    ensure!(
        error.contains("/dev/kvm"),
        "/dev/kvm is not in the error: {error}"
    );
    Ok(())
}
