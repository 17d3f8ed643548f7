//! The init of a guest that loads its first disk: it runs every workload, reports each on the
//! console, and powers off.
//!
//! `begin NAME` and `end NAME OPERATIONS NANOSECONDS`, one a line. Requests are direct and
//! asynchronous (Linux AIO), so that the queue depth is that of the disk's queue.

use std::error::Error;
use std::ffi::{c_long, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Instant;

const DISK: &str = "/dev/vda";
const SEQUENTIAL_LEN: usize = 128 << 10;
const RANDOM_LEN: usize = 4 << 10;
const MAX_DEPTH: usize = 32;

/// What is asked of the disk.
struct Workload {
    name: &'static str,
    writes: bool,
    is_random: bool,
    depth: usize,
    operations: u64,
}

const fn workload(
    name: &'static str,
    writes: bool,
    is_random: bool,
    depth: usize,
    operations: u64,
) -> Workload {
    Workload {
        name,
        writes,
        is_random,
        depth,
        operations,
    }
}

const WORKLOADS: [Workload; 8] = [
    workload("seq_read_1", false, false, 1, 600),
    workload("seq_read_32", false, false, 32, 1000),
    workload("seq_write_1", true, false, 1, 600),
    workload("seq_write_32", true, false, 32, 1000),
    workload("random_read_1", false, true, 1, 1500),
    workload("random_read_32", false, true, 32, 6000),
    workload("random_write_1", true, true, 1, 1500),
    workload("random_write_32", true, true, 32, 6000),
];

/// `struct iocb` (linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;

fn main() {
    if let Err(error) = run() {
        println!("failed {error}");
    }
    // SAFETY: the call takes a number; what it does is what this program ends with.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

fn run() -> Result<(), Box<dyn Error>> {
    mount_devices()?;
    let mut options = File::options();
    let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let disk = options.open(DISK)?;
    let len = io::Seek::seek(&mut &disk, io::SeekFrom::End(0))?;
    let mut load = Load::new(disk, len)?;
    // Once through all of it: the host has it in memory then.
    let all = len / SEQUENTIAL_LEN as u64;
    load.run(&workload("warm_up", false, false, 4, all))?;
    for workload in &WORKLOADS {
        println!("begin {}", workload.name);
        let start = Instant::now();
        load.run(workload)?;
        let took = start.elapsed().as_nanos();
        println!("end {} {} {took}", workload.name, workload.operations);
    }
    println!("done 1 1");
    Ok(())
}

fn mount_devices() -> io::Result<()> {
    // SAFETY: the strings end with NUL and outlive the call.
    let result = unsafe {
        libc::mount(
            c"devtmpfs".as_ptr(),
            c"/dev".as_ptr(),
            c"devtmpfs".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    check(result.into()).map(drop)
}

fn check(result: c_long) -> io::Result<c_long> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The disk, and buffers for as many requests as there may be at once.
struct Load {
    disk: File,
    len: u64,
    context: c_ulong,
    buffers: Vec<Vec<u64>>,
    random: u64,
}

impl Load {
    fn new(disk: File, len: u64) -> io::Result<Self> {
        let mut context: c_ulong = 0;
        let depth = c_long::try_from(MAX_DEPTH).map_err(io::Error::other)?;
        // SAFETY: the pointer is to a valid context number, which is zero as it has to be.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        check(result)?;
        // Room to begin at a page.
        let words = SEQUENTIAL_LEN / 8 + 512;
        Ok(Self {
            disk,
            len,
            context,
            buffers: vec![vec![0x5a5a_5a5a; words]; MAX_DEPTH],
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Where the request number `number` goes.
    fn offset(&mut self, workload: &Workload, number: u64) -> u64 {
        if !workload.is_random {
            let pieces = self.len / SEQUENTIAL_LEN as u64;
            return number % pieces * SEQUENTIAL_LEN as u64;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % (self.len / RANDOM_LEN as u64) * RANDOM_LEN as u64
    }

    fn submit(&mut self, workload: &Workload, number: u64, slot: usize) -> io::Result<()> {
        let len = match workload.is_random {
            true => RANDOM_LEN,
            false => SEQUENTIAL_LEN,
        };
        let offset = self.offset(workload, number);
        let buffer = self.buffers.get(slot).ok_or(io::ErrorKind::NotFound)?;
        let mut request = Request {
            data: slot as u64,
            opcode: if workload.writes { WRITE } else { READ },
            file: u32::try_from(self.disk.as_raw_fd()).map_err(io::Error::other)?,
            buffer: (buffer.as_ptr().addr() as u64).next_multiple_of(4096),
            len: len as u64,
            offset: i64::try_from(offset).map_err(io::Error::other)?,
            ..Request::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: the list has one pointer to a request, which the kernel copies; its buffer lives
        // as long as the load, and is used by nobody else until the request has ended.
        let result =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1_i64, list.as_mut_ptr()) };
        check(result).map(drop)
    }

    fn run(&mut self, workload: &Workload) -> io::Result<()> {
        let (mut begun, mut ended) = (0, 0);
        for slot in 0..workload.depth {
            self.submit(workload, begun, slot)?;
            begun += 1;
        }
        let mut events = [Event::default(); MAX_DEPTH];
        while ended < workload.operations {
            let most = MAX_DEPTH as i64;
            let none = std::ptr::null::<libc::timespec>();
            let events_at = events.as_mut_ptr();
            // SAFETY: there is room for as many events as are asked for.
            let got = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    1_i64,
                    most,
                    events_at,
                    none,
                )
            };
            let got = usize::try_from(check(got)?).map_err(io::Error::other)?;
            for event in events.iter().take(got) {
                if event.result <= 0 {
                    return Err(io::Error::other(format!("result {}", event.result)));
                }
                ended += 1;
                if begun < workload.operations {
                    let slot = usize::try_from(event.data).map_err(io::Error::other)?;
                    self.submit(workload, begun, slot)?;
                    begun += 1;
                }
            }
        }
        Ok(())
    }
}
