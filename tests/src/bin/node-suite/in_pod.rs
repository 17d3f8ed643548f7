//! This program as the pod's end of a case: for what the images' tools cannot do, containers run it
//! from the node.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use podvisor_tests::ContainerBuilder;

use crate::connections;

/// Keeps connections to the port that the argument names.
pub const HOLD_CONNECTIONS: &str = "hold-connections";
/// Prints the names of what is moved into a folder.
pub const WATCH: &str = "watch";
/// Takes both kinds of lock of a file, and keeps them.
pub const HOLD_LOCKS: &str = "hold-locks";
/// Prints whether the two kinds of lock of a file can be had.
pub const TRY_LOCKS: &str = "try-locks";
/// Makes a file of one page of 2 MiB.
pub const ALLOCATE: &str = "allocate";

/// The argument before a task and what it is done to.
const MARK: &str = "--in-pod";
/// Where a container has this program.
const PROGRAM: &str = "/node-suite";
/// What the program is linked with, on the node; the image of test containers has no such folders.
const LIBRARIES: [&str; 2] = ["/lib64", "/lib/x86_64-linux-gnu"];
const HUGE_PAGE_LEN: i64 = 2 << 20;

/// Gives a container this program.
pub fn with_program<'p, 'c>(
    container: ContainerBuilder<'p, 'c>,
) -> Result<ContainerBuilder<'p, 'c>> {
    let program = std::env::current_exe()?;
    let container = container.mount_read_only(&program, PROGRAM);
    Ok(LIBRARIES.iter().fold(container, |container, folder| {
        container.mount_read_only(Path::new(folder), folder)
    }))
}

/// The command of a task in a container that has this program.
pub fn command<'a>(task: &'a str, argument: &'a str) -> [&'a str; 4] {
    [PROGRAM, MARK, task, argument]
}

/// Does the task that this program was started for, if it was.
pub fn run() -> Option<ExitCode> {
    let mut words = std::env::args().skip_while(|word| word != MARK).skip(1);
    let (task, argument) = (words.next()?, words.next()?);
    let done = match task.as_str() {
        HOLD_CONNECTIONS => connections::hold(&argument),
        WATCH => watch(Path::new(&argument)),
        HOLD_LOCKS => hold_locks(Path::new(&argument)),
        TRY_LOCKS => try_locks(Path::new(&argument)).map(|locks| println!("{locks}")),
        ALLOCATE => allocate(Path::new(&argument)),
        _ => Err(anyhow::anyhow!("no task {task}")),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Prints `watching`, and then a name for each event.
fn watch(folder: &Path) -> Result<()> {
    let inotify = Inotify::init(InitFlags::empty())?;
    inotify.add_watch(folder, AddWatchFlags::IN_MOVED_TO)?;
    println!("watching");
    loop {
        for event in inotify.read_events()? {
            println!("{}", event.name.unwrap_or_default().display());
        }
    }
}

fn hold_locks(path: &Path) -> Result<()> {
    let file = open(path)?;
    let locks = take_locks(&file)?;
    println!("{locks}");
    loop {
        thread::park();
    }
}

fn try_locks(path: &Path) -> Result<String> {
    take_locks(&open(path)?)
}

fn open(path: &Path) -> Result<File> {
    let options = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .to_owned();
    options
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Takes the lock of the open file (flock) and the process's (fcntl), and tells which it got.
fn take_locks(file: &File) -> Result<String> {
    let flock = match file.try_lock() {
        Ok(()) => "taken",
        Err(TryLockError::WouldBlock) => "busy",
        Err(TryLockError::Error(error)) => bail!("flock: {error}"),
    };
    let whole_file = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK)?,
        l_whence: i16::try_from(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let fcntl = match fcntl(file, FcntlArg::F_SETLK(&whole_file)) {
        Ok(_) => "taken",
        Err(Errno::EAGAIN | Errno::EACCES) => "busy",
        Err(errno) => bail!("fcntl: {errno}"),
    };
    Ok(format!("flock {flock}, fcntl {fcntl}"))
}

fn allocate(path: &Path) -> Result<()> {
    let allocated = fallocate(open(path)?, FallocateFlags::empty(), 0, HUGE_PAGE_LEN);
    allocated.map_err(io::Error::from).context("fallocate")
}
