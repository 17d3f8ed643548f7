//! The device under Linux's own FUSE client: this machine's kernel mounts the file system, and
//! what it would send over a guest's queues is carried over the test driver's.
//!
//! Takes root and /dev/fuse.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use vm_memory::{Bytes, GuestAddress};

use super::super::limits::OpenFileBudget;
use super::*;
use crate::virtio::testing::{Buffer, DriverQueue};

/// The largest request or answer: 1 MiB of data and its headers.
const MESSAGE_MAX: usize = (1 << 20) + (8 << 10);

/// A mount of a device, in a mount namespace of the thread that made it.
struct Mount {
    host: TempDir,
    place: TempDir,
    exports: Exports,
    carrier: Option<JoinHandle<()>>,
}

impl Mount {
    fn new(cache: CachePolicy) -> Self {
        enter_mount_namespace();
        let source = tempfile::tempdir().unwrap();
        Self::of(source, cache, OpenFileBudget::of_process())
    }

    /// Mounts what exports `host`, in the namespace that the thread is in.
    fn of(host: TempDir, cache: CachePolicy, budget: OpenFileBudget) -> Self {
        let place = tempfile::tempdir().unwrap();
        let exports = Exports::with_budget(budget).unwrap();
        let source = OwnedFd::from(File::open(host.path()).unwrap());
        let options = ExportOptions {
            writes: Writes::Everything,
            cache,
        };
        exports.add("data", source, options).unwrap();
        let fuse = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        // As virtio-fs does: access is checked by the kernel that mounts.
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            fuse.as_raw_fd()
        );
        mount(c"fuse", place.path(), 0, &options);
        let carried = exports.clone();
        let carrier = std::thread::spawn(move || carry(fuse, &carried));
        Self {
            host,
            place,
            exports,
            carrier: Some(carrier),
        }
    }

    /// A path as the guest sees it.
    fn guest(&self, path: &str) -> PathBuf {
        self.place.path().join("data").join(path)
    }

    /// The same on the host.
    fn host(&self, path: &str) -> PathBuf {
        self.host.path().join(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let place = CString::new(self.place.path().to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
        let carried = self.carrier.take().unwrap().join();
        assert!(carried.is_ok() || std::thread::panicking());
    }
}

/// Gives the thread a namespace of its own for its mounts.
fn enter_mount_namespace() {
    // SAFETY: this changes nothing but where this thread's mounts are seen.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    mount(c"none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
}

fn mount(kind: &CStr, place: &Path, flags: u64, options: &str) {
    let place = CString::new(place.to_str().unwrap()).unwrap();
    let options = CString::new(options).unwrap();
    // SAFETY: all are C strings that outlive the call.
    let mounted = unsafe {
        libc::mount(
            c"pod".as_ptr(),
            place.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    assert_eq!(mounted, 0, "{}", io::Error::last_os_error());
}

/// Carries requests from the kernel to the device and back until the mount is gone.
fn carry(mut fuse: File, exports: &Exports) {
    let config = FsConfig::new(FsTag::try_from("pod").unwrap());
    let nothing: ThreadStart = Arc::new(|| Ok(()));
    let mut device = VirtioFs::new(config, exports, &nothing).unwrap();
    let mut driver = TestDriver::new(8 << 20, &[512, 512]);
    driver.start(&mut device, EVENT_IDX);
    let len = MESSAGE_MAX as u64;
    let (request, answer) = (driver.allocate(len, 4096), driver.allocate(len, 4096));
    let mut message = vec![0; MESSAGE_MAX];
    while let Ok(len) = fuse.read(&mut message) {
        let header = *InHeader::from_slice(&message[..size_of::<InHeader>()]).unwrap();
        driver
            .memory
            .write_slice(&message[..len], GuestAddress(request))
            .unwrap();
        let readable = Buffer {
            address: request,
            len: u32::try_from(len).unwrap(),
            writable: false,
        };
        let forgets = [Opcode::Forget as u32, Opcode::BatchForget as u32];
        if forgets.contains(&header.opcode) {
            finish(&mut driver.queues[HIGH_PRIORITY], &[readable]);
            continue;
        }
        let room = u32::try_from(MESSAGE_MAX).unwrap();
        let writable = Buffer {
            address: answer,
            len: room,
            writable: true,
        };
        let written = finish(&mut driver.queues[REQUESTS], &[readable, writable]);
        driver
            .memory
            .read_slice(&mut message[..written], GuestAddress(answer))
            .unwrap();
        // The kernel takes no answer for a request that was interrupted or cut off by unmounting.
        let _ = fuse.write(&message[..written]);
    }
}

/// Has the device finish one request; how many bytes it wrote.
fn finish(queue: &mut DriverQueue, buffers: &[Buffer]) -> usize {
    queue.add(buffers);
    queue.kick();
    loop {
        if let Some(used) = queue.used() {
            return usize::try_from(used.len).unwrap();
        }
        std::thread::yield_now();
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
}

/// Copies a tree to the mount, compares both sides and removes it.
fn copy_in_and_out(mount: &Mount) {
    let source = tempfile::tempdir().unwrap();
    for directory in 0..10 {
        let directory = source.path().join(format!("directory{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..100 {
            fs::write(directory.join(format!("file{file}")), vec![1; file * 997]).unwrap();
        }
        symlink("file1", directory.join("link")).unwrap();
        fs::hard_link(directory.join("file2"), directory.join("again")).unwrap();
    }
    fs::write(source.path().join("large"), vec![3; 5 << 20]).unwrap();
    run("cp", &["-a".as_ref(), source.path(), &mount.guest("copy")]);
    run("diff", &["-r".as_ref(), source.path(), &mount.host("copy")]);
    run(
        "diff",
        &["-r".as_ref(), source.path(), &mount.guest("copy")],
    );
    let twice = fs::metadata(mount.guest("copy/directory1/again")).unwrap();
    assert_eq!(twice.nlink(), 2);
    run("rm", &["-r".as_ref(), &mount.guest("copy")]);
    assert!(!mount.host("copy").exists());
}

#[test]
fn a_tree_is_copied_in_and_out_unharmed() {
    copy_in_and_out(&Mount::new(CachePolicy::Always));
}

#[test]
fn a_tree_is_copied_in_and_out_where_files_are_kept_as_handles() {
    enter_mount_namespace();
    let host = tempfile::tempdir_in("/dev/shm").unwrap();
    let none_held = OpenFileBudget {
        held_early: 0,
        held: 2,
        opened: 64,
    };
    let mount = Mount::of(host, CachePolicy::Always, none_held);
    copy_in_and_out(&mount);
}

#[test]
fn a_container_root_on_an_overlay_is_changed_like_any_directory() {
    enter_mount_namespace();
    let layers = tempfile::tempdir_in("/dev/shm").unwrap();
    let layer = |name: &str| layers.path().join(name);
    for name in ["lower", "upper", "work", "lower/etc"] {
        fs::create_dir(layer(name)).unwrap();
    }
    for file in 0..100 {
        fs::write(layer("lower/etc").join(format!("file{file}")), "lower").unwrap();
    }
    let root = tempfile::tempdir().unwrap();
    let options =
        ["lower", "upper", "work"].map(|name| format!("{name}dir={}", layer(name).display()));
    mount(c"overlay", root.path(), 0, &options.join(","));
    let mount = Mount::of(root, CachePolicy::Always, OpenFileBudget::of_process());
    copy_in_and_out(&mount);
    fs::write(mount.guest("etc/file1"), "changed").unwrap();
    fs::rename(mount.guest("etc/file2"), mount.guest("etc/moved")).unwrap();
    fs::remove_file(mount.guest("etc/file3")).unwrap();
    assert_eq!(fs::read(mount.guest("etc/file1")).unwrap(), b"changed");
    assert_eq!(fs::read(layer("lower/etc/file1")).unwrap(), b"lower");
    assert_eq!(fs::read_dir(mount.guest("etc")).unwrap().count(), 99);
    fs::remove_dir_all(mount.guest("etc")).unwrap();
    assert!(!mount.host("etc").exists());
    mount.exports.remove("data").unwrap();
    // Nothing of ours keeps the overlay busy.
    let place = CString::new(mount.host.path().to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    let unmounted = unsafe { libc::umount2(place.as_ptr(), 0) };
    assert_eq!(unmounted, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_program_on_the_mount_runs() {
    let mount = Mount::new(CachePolicy::Always);
    let program = fs::read_link("/proc/self/exe").unwrap();
    fs::copy(program, mount.guest("program")).unwrap();
    run(
        mount.guest("program").to_str().unwrap(),
        &["--list".as_ref()],
    );
}

#[test]
fn another_users_files_are_theirs_and_checked_by_group() {
    let mount = Mount::new(CachePolicy::Always);
    fs::create_dir(mount.guest("shared")).unwrap();
    chown(mount.guest("shared"), Some(0), Some(5000)).unwrap();
    fs::set_permissions(mount.guest("shared"), PermissionsExt::from_mode(0o2770)).unwrap();
    // A process of the volume's group, as fsGroup makes it.
    let touch = |groups: &str, name: &str| {
        let file = mount.guest("shared").join(name);
        let setpriv = [
            "--reuid", "1001", "--regid", "1001", "--groups", groups, "touch",
        ];
        Command::new("setpriv")
            .args(setpriv)
            .arg(file)
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(touch("5000", "allowed"));
    assert!(!touch("5001", "refused"));
    let metadata = fs::metadata(mount.host("shared/allowed")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1001, 5000));
}

#[test]
fn ranges_are_copied_on_the_host_and_file_systems_synced() {
    let mount = Mount::new(CachePolicy::Always);
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(mount.guest("from"), &content).unwrap();
    let from = File::open(mount.guest("from")).unwrap();
    let to = File::create(mount.guest("to")).unwrap();
    let copied = rustix::fs::copy_file_range(&from, None, &to, None, content.len()).unwrap();
    assert_eq!(copied, content.len());
    assert_eq!(fs::read(mount.host("to")).unwrap(), content);
    rustix::fs::syncfs(&to).unwrap();
}

#[test]
fn what_the_host_changes_is_seen_within_the_bound() {
    let mount = Mount::new(CachePolicy::Bounded(std::time::Duration::from_millis(100)));
    fs::write(mount.host("file"), "first").unwrap();
    let mut opened = File::open(mount.guest("file")).unwrap();
    let mut content = String::new();
    opened.read_to_string(&mut content).unwrap();
    assert_eq!(content, "first");
    assert!(!mount.guest("new").exists());
    fs::write(mount.host("file"), "other").unwrap();
    fs::write(mount.host("new"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(fs::read_to_string(mount.guest("file")).unwrap(), "other");
    assert!(mount.guest("new").exists());
    fs::remove_file(mount.host("new")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert!(!mount.guest("new").exists());
}

#[test]
fn writes_of_others_take_set_user_id_off() {
    let mount = Mount::new(CachePolicy::Always);
    fs::write(mount.guest("program"), "content").unwrap();
    fs::set_permissions(mount.guest("program"), PermissionsExt::from_mode(0o4777)).unwrap();
    let append = "printf x >> \"$1\"";
    let arguments = [
        "--reuid",
        "1001",
        "--regid",
        "1001",
        "--clear-groups",
        "sh",
        "-c",
    ];
    let program = mount.guest("program");
    let shell = Command::new("setpriv")
        .args(arguments)
        .arg(append)
        .arg("sh")
        .arg(program)
        .status();
    assert!(shell.unwrap().success());
    let metadata = fs::metadata(mount.host("program")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o777);
    assert_eq!(metadata.len(), 8);
}

#[test]
fn appended_direct_and_locked_files_work() {
    let mount = Mount::new(CachePolicy::Always);
    let path = mount.guest("file");
    for line in ["one\n", "two\n"] {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    assert_eq!(
        fs::read_to_string(mount.host("file")).unwrap(),
        "one\ntwo\n"
    );
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let mut content = [0; 3];
    direct.unwrap().read_exact(&mut content).unwrap();
    assert_eq!(&content, b"one");
    let (a, b) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    a.lock().unwrap();
    assert!(b.try_lock().is_err());
}

#[test]
fn a_removed_file_is_used_to_its_end_and_an_export_comes_back() {
    let mount = Mount::new(CachePolicy::Always);
    let mut file = File::create_new(mount.guest("file")).unwrap();
    fs::remove_file(mount.guest("file")).unwrap();
    file.write_all(b"content").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 7);
    mount.exports.remove("data").unwrap();
    assert!(file.write_all(b"more").is_err());
    assert!(fs::metadata(mount.guest("")).is_err());
    let source = OwnedFd::from(File::open(mount.host.path()).unwrap());
    let options = ExportOptions {
        writes: Writes::Nothing,
        cache: CachePolicy::Always,
    };
    mount.exports.add("data", source, options).unwrap();
    assert!(fs::metadata(mount.guest("")).is_ok());
    let refused = fs::write(mount.guest("new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}
