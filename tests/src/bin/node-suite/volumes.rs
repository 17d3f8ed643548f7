//! Volumes as a kubelet makes them: emptyDirs on disk and in memory, parts of them, host paths of
//! every type, mounts below them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use podvisor_proto::cri::v1::{ImageSpec, Mount, MountPropagation};
use podvisor_tests::{Container, Cri, Handler, Pod, PodBuilder, wait};

use crate::case::{Case, gate};
use crate::in_pod;

/// Ends at once, successfully: an ELF file for i386 (elf(5)) with one segment, whose code is
/// `mov eax, 1; xor ebx, ebx; int 0x80`.
const PROGRAM_OF_32_BITS: &[u8] = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\
    \x02\0\x03\0\x01\0\0\0\x54\x80\x04\x08\x34\0\0\0\0\0\0\0\0\0\0\0\
    \x34\0\x20\0\x01\0\0\0\0\0\0\0\
    \x01\0\0\0\0\0\0\0\0\x80\x04\x08\0\x80\x04\x08\
    \x5d\0\0\0\x5d\0\0\0\x05\0\0\0\0\x10\0\0\
    \xb8\x01\0\0\0\x31\xdb\xcd\x80";

pub fn cases() -> Vec<Case> {
    vec![
        gate("an_empty_dir_is_one_for_all_containers", empty_dir).shared(),
        gate("a_memory_volume_is_made_anew_with_its_size", memory).shared(),
        gate("huge_pages_are_the_guests", huge_pages),
        gate("host_paths_are_seen_with_the_mounts_below_them", host_paths).shared(),
        gate("an_image_is_a_volume", image),
        gate("what_a_vm_cannot_share_is_refused_by_name", refused).shared(),
    ]
}

/// Cases of what containerd lets only those handlers have that it has asked for their features.
pub fn of_handlers() -> Vec<Case> {
    vec![gate("read_only_volumes_are_so_as_far_as_runcs", read_only)]
}

/// A mount on the node, for as long as this lives.
pub struct NodeMount(PathBuf);

impl NodeMount {
    /// A file system in memory.
    pub fn tmpfs(target: &Path, options: &str) -> Result<Self> {
        Self::make("tmpfs", target, Some("tmpfs"), MsFlags::empty(), options)
    }

    fn bind(source: &Path, target: &Path) -> Result<Self> {
        let source = source.to_str().context("no UTF-8")?;
        Self::make(source, target, None, MsFlags::MS_BIND, "")
    }

    fn make(
        source: &str,
        target: &Path,
        kind: Option<&str>,
        flags: MsFlags,
        options: &str,
    ) -> Result<Self> {
        mount(Some(source), target, kind, flags, Some(options))
            .with_context(|| format!("mount {source} at {}", target.display()))?;
        Ok(Self(target.to_owned()))
    }
}

impl Drop for NodeMount {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

/// A part of a volume as the kubelet makes it for a `subPath`: a bind mount of its own.
pub fn sub_path(pod: &Pod<'_>, part: &Path) -> Result<(PathBuf, NodeMount)> {
    let target = pod.volume("volume-subpaths/part")?;
    let bound = NodeMount::bind(part, &target)?;
    Ok((target, bound))
}

/// Writes in one container are seen by the others at once, also by one that may only read, or
/// that has a part of the volume.
fn empty_dir(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "empty-dir").run()?;
    let volume = pod.volume("volumes/kubernetes.io~empty-dir/cache")?;
    fs::create_dir(volume.join("part"))?;
    let (part, _bound) = sub_path(&pod, &volume.join("part"))?;
    let reader = in_pod::with_program(pod.container("reader"))?.mount(&part, "/part");
    let reader = reader.mount_read_only(&volume, "/all").start()?;
    let writer = in_pod::with_program(pod.container("writer"))?.mount(&part, "/part");
    let writer = writer.mount(&volume, "/all");
    let writer = writer.command(&in_pod::command(in_pod::HOLD_LOCKS, "/all/part/lock"));
    let writer = writer.start()?;
    for word in ["one", "two", "three"] {
        writer.shell(&format!("echo {word} > /part/file; echo {word} > /all/top"))?;
        let seen = reader.shell("cat /all/part/file /all/top")?;
        ensure!(seen == format!("{word}\n{word}"), "{word}: {seen}");
    }
    ensure!(fs::read_to_string(volume.join("top"))? == "three\n", "host");
    let write = reader.exec(&["touch", "/all/new"])?;
    ensure!(write.stderr.contains("Read-only"), "wrote: {write:?}");
    guest_lacks(&writer, &volume)?;
    locks(&writer, &reader)
}

/// What containers of runc have and the guest's kernel or its file system has not.
fn guest_lacks(container: &Container<'_, '_>, all: &Path) -> Result<()> {
    let made = container.exec(&["mknod", "/all/null", "c", "1", "3"])?;
    ensure!(made.stderr.contains("not permitted"), "a node: {made:?}");
    container.shell("mknod /dev/null-2 c 1 3 && echo gone > /dev/null-2")?;
    let program = all.join("program");
    fs::write(&program, PROGRAM_OF_32_BITS)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let ran = container.exec(&["env", "/all/program"])?;
    ensure!(ran.code != 0, "a program of 32 bits ran");
    let sctp = container.shell("grep -c ^SCTP /proc/net/protocols || true")?;
    ensure!(sctp == "0", "it has SCTP");
    Ok(())
}

/// Locks in one container are those of the other, until their holder ends.
fn locks(holder: &Container<'_, '_>, other: &Container<'_, '_>) -> Result<()> {
    let held = wait::until("the locks", Duration::from_secs(20), || {
        let log = holder.log()?.stdout;
        Ok((!log.is_empty()).then_some(log))
    })?;
    ensure!(held == "flock taken, fcntl taken\n", "{held}");
    let tried = || other.exec(&in_pod::command(in_pod::TRY_LOCKS, "/part/lock"));
    let busy = tried()?;
    ensure!(busy.stdout == "flock busy, fcntl busy\n", "{busy:?}");
    holder.stop(Duration::ZERO)?;
    let free = tried()?;
    ensure!(free.stdout == held, "their holder is gone: {free:?}");
    Ok(())
}

fn memory(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "memory").run()?;
    let volume = pod.volume("volumes/kubernetes.io~empty-dir/scratch")?;
    let _tmpfs = NodeMount::tmpfs(&volume, "size=2m,mode=0777")?;
    fs::create_dir(volume.join("part"))?;
    let (part, _bound) = sub_path(&pod, &volume.join("part"))?;
    let first = pod.container("first").mount(&volume, "/scratch");
    let large = pod.volume("volumes/kubernetes.io~empty-dir/shm")?;
    let _large = NodeMount::tmpfs(&large, "size=128m,mode=1777")?;
    let first = first.mount(&large, "/dev/shm");
    let first = first.mount(&part, "/part").start()?;
    let table = first.shell("grep ' /scratch ' /proc/mounts")?;
    ensure!(table.contains(" tmpfs rw,"), "no tmpfs: {table}");
    ensure!(first.shell("stat -c %a /scratch")? == "777", "mode");
    first.shell("echo kept > /scratch/file; echo part > /part/file")?;
    ensure!(first.shell("cat /scratch/part/file")? == "part", "sub-path");
    let full = first.exec(&["dd", "if=/dev/zero", "of=/scratch/big", "bs=1M", "count=3"])?;
    ensure!(full.stderr.contains("No space left"), "{full:?}");
    let size = first.shell("df -m /dev/shm | awk 'END {print $2}'")?;
    ensure!(size == "128", "{size} MiB of shared memory");
    first.shell("echo large > /dev/shm/file")?;
    first.stop(Duration::ZERO)?;
    first.remove()?;
    let second = pod.container("second").user(1000, 1000, &[]);
    let second = second.mount(&large, "/large");
    let second = second.mount(&volume, "/data").start()?;
    ensure!(second.shell("cat /data/file")? == "kept", "content");
    let shared = second.shell("cat /large/file; ls /dev/shm")?;
    ensure!(shared == "large", "the pod's shared memory: {shared}");
    second.shell("touch /data/mine")?;
    ensure!(!volume.join("file").exists(), "it is on the host, too");
    Ok(())
}

/// The guest has huge pages of its own: those of a container's limit at hand from its start, others
/// as long as there is memory.
fn huge_pages(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "huge-pages").run()?;
    let volume = pod.volume("volumes/kubernetes.io~empty-dir/huge")?;
    let flags = MsFlags::empty();
    let _hugetlbfs = NodeMount::make("none", &volume, Some("hugetlbfs"), flags, "pagesize=2M")?;
    let user = |name: &str| -> Result<_> {
        Ok(in_pod::with_program(pod.container(name))?.mount(&volume, "/huge"))
    };
    let allocate =
        |user: &Container<'_, '_>, file| user.exec(&in_pod::command(in_pod::ALLOCATE, file));
    let free = user("free")?.start()?;
    let allocated = allocate(&free, "/huge/one")?;
    ensure!(allocated.code == 0, "without a limit: {allocated:?}");
    free.shell("rm /huge/one")?;
    let limited = user("limited")?.huge_pages(4 << 20).start()?;
    let table = limited.shell("grep ' /huge ' /proc/mounts")?;
    ensure!(table.contains(" hugetlbfs rw,"), "no hugetlbfs: {table}");
    let total = limited.shell("awk '/HugePages_Total/ {print $2}' /proc/meminfo")?;
    ensure!(total == "2", "{total} huge pages");
    for (file, succeeds) in [("/huge/1", true), ("/huge/2", true), ("/huge/3", false)] {
        let allocated = allocate(&limited, file)?;
        ensure!((allocated.code == 0) == succeeds, "{file}: {allocated:?}");
    }
    let greedy = pod.container("greedy").huge_pages(16 << 30).start();
    let error = format!("{:#}", greedy.err().context("16 GiB of huge pages")?);
    ensure!(error.contains("hugepageLimits"), "{error}");
    Ok(())
}

fn host_paths(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "host-paths").run()?;
    let folder = pod.volume("host")?;
    let (private, slave) = (folder.join("private"), folder.join("slave"));
    let source = folder.join("source");
    for path in [&private.join("late"), &slave.join("late"), &source] {
        fs::create_dir_all(path)?;
    }
    fs::write(source.join("flag"), "flag")?;
    fs::write(folder.join("file"), "a file")?;
    symlink(&source, folder.join("link"))?;
    for (name, minor) in [("tun", 200), ("fuse", 229)] {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        mknod(&folder.join(name), SFlag::S_IFCHR, mode, makedev(10, minor))?;
    }
    let container = pod.container("mounts").mount(&private, "/private");
    let container = container.mount_with(&slave, "/slave", |mount| {
        mount.set_propagation(MountPropagation::PropagationHostToContainer);
    });
    let container = container.mount(&folder.join("file"), "/file");
    let container = container.mount(&folder.join("link"), "/link");
    let container = container.mount_read_only(Path::new("/proc"), "/node-proc");
    let container = container.mount(&folder.join("tun"), "/dev/net/tun");
    let container = container.mount(&folder.join("fuse"), "/dev/fuse");
    let container = container
        .mount(Path::new("/dev/null"), "/nothing")
        .start()?;
    let devices = container.shell("stat -c %t:%T /dev/net/tun /dev/fuse")?;
    ensure!(devices == "a:c8\na:e5", "tun and fuse: {devices}");
    // By read(2): the cat of busybox asks the guest's page cache by sendfile(2).
    let read =
        "for name in sys/kernel/random/boot_id uptime; do dd if=/node-proc/$name 2>/dev/null; done";
    let read = container.shell(read)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let uptime = read.strip_prefix(&boot_id);
    let uptime = uptime.with_context(|| format!("read {read:?}, not {boot_id:?}"))?;
    ensure!(uptime.contains('.'), "uptime of the node: {uptime:?}");
    let _late = NodeMount::bind(&source, &private.join("late"))?;
    let _later = NodeMount::bind(&source, &slave.join("late"))?;
    let seen = wait::until("a later mount", Duration::from_secs(20), || {
        let list = container.shell("ls -A /private/late /slave/late")?;
        Ok(list.contains("flag").then_some(list))
    })?;
    ensure!(seen == "/private/late:\n\n/slave/late:\nflag", "{seen}");
    let seen = container.shell("cat /file; echo; cat /link/flag; echo; cat /nothing")?;
    ensure!(seen == "a file\nflag", "{seen}");
    container.shell("echo more >> /file; echo gone > /nothing")?;
    let file = fs::read_to_string(folder.join("file"))?;
    ensure!(file == "a filemore\n", "on the host: {file}");
    Ok(())
}

/// The files of an image, which nobody can change. Before 2.1 containerd has no such volumes.
fn image(cri: &Cri) -> Result<()> {
    const IMAGE: &str = "docker.io/library/busybox:latest";
    let pod = PodBuilder::new(cri, Handler::Podvisor, "image").run()?;
    let container = pod
        .container("image")
        .mount_with(Path::new(""), "/image", |mount| {
            mount.image = Some(ImageSpec {
                image: IMAGE.into(),
                ..ImageSpec::default()
            });
            mount.readonly = true;
        });
    let container = match container.start() {
        Err(_) if containerd_is_older()? => return Ok(()),
        started => started?,
    };
    let files = container.shell("cmp /bin/busybox /image/bin/busybox && ls /image")?;
    ensure!(files.contains("etc"), "what the image has: {files}");
    ensure!(
        write(&container, "/image/file")?.contains("Read-only"),
        "wrote"
    );
    Ok(())
}

fn containerd_is_older() -> Result<bool> {
    let output = Command::new("containerd").arg("--version").output()?;
    Ok(String::from_utf8(output.stdout)?.contains(" 1."))
}

/// What may be written below read-only volumes, with runc and with us; recursively read-only ones
/// where containerd knows of them, as far as it lets pods have them.
fn read_only(cri: &Cri) -> Result<()> {
    let mut outcomes = Vec::new();
    for handler in [Handler::Runc, Handler::Podvisor] {
        let recursive = handler.features(cri)?.recursive_read_only_mounts;
        let pod = PodBuilder::new(cri, handler, "read-only").run()?;
        let folder = pod.volume("host")?;
        fs::create_dir(folder.join("below"))?;
        let _below = NodeMount::tmpfs(&folder.join("below"), "size=1m")?;
        let mut container = pod.container("mounts").mount_read_only(&folder, "/plain");
        if recursive {
            container = container.mount_with(&folder, "/whole", recursively);
            refused_recursive(&pod, &folder)?;
        }
        let container = container.start()?;
        let mut written = vec![
            write(&container, "/plain/file")?,
            write(&container, "/plain/below/file")?,
        ];
        if recursive {
            let whole = write(&container, "/whole/below/other")?;
            ensure!(whole.contains("Read-only"), "recursively: {whole}");
            written.push(write(&container, "/whole/file")?);
        }
        outcomes.push(written);
    }
    let [runcs, ours] = outcomes.as_slice() else {
        bail!("two handlers");
    };
    // A handler that is not asked for its features has no recursive ones to show.
    let mut common = runcs.iter().zip(ours);
    ensure!(
        common.all(|(runc, our)| runc == our),
        "runc: {runcs:?}, podvisor: {ours:?}"
    );
    Ok(())
}

fn recursively(mount: &mut Mount) {
    mount.readonly = true;
    mount.recursive_read_only = true;
}

/// What contradicts itself: writable, or with mounts that come later or go to the node.
fn refused_recursive(pod: &Pod<'_>, folder: &Path) -> Result<()> {
    let changes: [fn(&mut Mount); 3] = [
        |mount| mount.readonly = false,
        |mount| mount.set_propagation(MountPropagation::PropagationHostToContainer),
        |mount| mount.set_propagation(MountPropagation::PropagationBidirectional),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let container = pod.container("refused").mount_with(folder, "/x", |mount| {
            recursively(mount);
            change(mount);
        });
        ensure!(
            container.create().is_err(),
            "contradiction {number} was taken"
        );
    }
    Ok(())
}

fn write(container: &Container<'_, '_>, path: &str) -> Result<String> {
    let output = container.exec(&["touch", path])?;
    Ok(match output.stderr.rsplit_once(": ") {
        Some((_, reason)) => reason.trim().to_owned(),
        None => format!("exit {}", output.code),
    })
}

fn refused(cri: &Cri) -> Result<()> {
    let pod = PodBuilder::new(cri, Handler::Podvisor, "refused").run()?;
    let folder = pod.volume("host")?;
    let _socket = UnixListener::bind(folder.join("socket"))?;
    nix::unistd::mkfifo(&folder.join("pipe"), Mode::S_IRWXU)?;
    for (source, reason) in [
        (folder.join("socket"), "unix socket"),
        (folder.join("pipe"), "named pipe"),
        (PathBuf::from("/dev/kvm"), "device of the host"),
    ] {
        let container = pod.container(reason.replace(' ', "-").as_str());
        let error = container.mount(&source, "/x").start().err();
        let error = format!("{:#}", error.context("it started")?);
        ensure!(error.contains(reason) && error.contains("/x"), "{error}");
    }
    let shared = NodeMount::bind(&folder, &folder)?;
    let container = pod.container("bidirectional");
    let container = container.mount_with(&folder, "/x", |mount| {
        mount.set_propagation(MountPropagation::PropagationBidirectional);
    });
    let error = format!("{:#}", container.start().err().context("it started")?);
    ensure!(
        error.contains("Bidirectional") && error.contains("/x"),
        "{error}"
    );
    drop(shared);
    Ok(())
}
