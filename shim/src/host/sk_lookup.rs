//! Leads every TCP connection that reaches a network namespace's own stack to a listener of ours:
//! a `BPF_PROG_TYPE_SK_LOOKUP` program, which names the socket that takes a connection
//! (Documentation/bpf/prog_sk_lookup.rst, Linux 5.9).
//!
//! No packet is rewritten or tracked, and the accepted socket's own address is what was dialled. The
//! program is attached by a descriptor: with the descriptor, or the process, it is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// bpf(2) commands, and types of maps, programs and attachments (linux/bpf.h).
const BPF_MAP_CREATE: u64 = 0;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_PROG_LOAD: u64 = 5;
const BPF_LINK_CREATE: u64 = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// Where the listener of a family is in the program's map.
const IPV4_KEY: u32 = 0;
const IPV6_KEY: u32 = 1;
const MAP_ENTRIES: u32 = 2;
/// Keys and values of the map are 32-bit numbers.
const NUMBER_LEN: u32 = 4;

/// The listeners that take the connections.
#[derive(Clone, Copy)]
pub(super) struct Listeners<'a> {
    /// Takes those over IPv4.
    pub(super) ipv4: BorrowedFd<'a>,
    /// Takes those over IPv6, where the host has it.
    pub(super) ipv6: Option<BorrowedFd<'a>>,
}

/// Leads all TCP connections in `namespace` to `listeners`, which must be of that namespace, for as
/// long as the answer is kept.
///
/// # Errors
/// What bpf(2) says.
pub(super) fn steer(namespace: BorrowedFd<'_>, listeners: Listeners<'_>) -> io::Result<OwnedFd> {
    let map = create(
        BPF_MAP_CREATE,
        &MapAttributes {
            kind: BPF_MAP_TYPE_SOCKMAP,
            key_len: NUMBER_LEN,
            value_len: NUMBER_LEN,
            entries: MAP_ENTRIES,
        },
    )?;
    insert(map.as_fd(), IPV4_KEY, listeners.ipv4)?;
    if let Some(listener) = listeners.ipv6 {
        insert(map.as_fd(), IPV6_KEY, listener)?;
    }
    let program = load(&program(map.as_fd()))?;
    create(
        BPF_LINK_CREATE,
        &LinkAttributes {
            program: number(program.as_fd()),
            target: number(namespace),
            kind: BPF_SK_LOOKUP,
            flags: 0,
        },
    )
}

fn insert(map: BorrowedFd<'_>, key: u32, listener: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(listener);
    let attributes = ElementAttributes {
        map: u64::from(number(map)),
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// One eBPF instruction, `struct bpf_insn` as the number that its eight bytes are on a
/// little-endian machine: u8 code, destination and source of four bits each, s16 offset, s32
/// immediate.
const fn insn(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | ((source << 4 | destination) as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// The program: a TCP connection is assigned to its family's listener, all else goes its way.
fn program(map: BorrowedFd<'_>) -> [u64; 23] {
    const PROTOCOL: i16 = 12;
    const FAMILY: i16 = 8;
    // Helpers: bpf_map_lookup_elem, bpf_sk_release, bpf_sk_assign.
    const LOOKUP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    // `src` of a 64-bit load: the immediate is a map's descriptor.
    const MAP_DESCRIPTOR: u8 = 1;
    const PASS: i32 = 1;
    let map = map.as_raw_fd();
    [
        insn(0xbf, 6, 1, 0, 0),                  // r6 = context
        insn(0x61, 2, 1, PROTOCOL, 0),           // r2 = context->protocol
        insn(0x55, 2, 0, 18, libc::IPPROTO_TCP), // if r2 != TCP goto pass
        insn(0x61, 2, 1, FAMILY, 0),             // r2 = context->family
        insn(0xb7, 3, 0, 0, 0),                  // r3 = IPV4_KEY
        insn(0x55, 2, 0, 1, libc::AF_INET6),     // if r2 == AF_INET6
        insn(0xb7, 3, 0, 0, 1),                  //     r3 = IPV6_KEY
        insn(0x63, 10, 3, -4, 0),                // key on the stack = r3
        insn(0xbf, 2, 10, 0, 0),                 // r2 = its address
        insn(0x07, 2, 0, 0, -4),                 //
        insn(0x18, 1, MAP_DESCRIPTOR, 0, map),   // r1 = map, in two
        insn(0, 0, 0, 0, 0),                     //     instructions
        insn(0x85, 0, 0, 0, LOOKUP),             // r0 = the listener
        insn(0x15, 0, 0, 7, 0),                  // if there is none goto pass
        insn(0xbf, 7, 0, 0, 0),                  // r7 = listener
        insn(0xbf, 1, 6, 0, 0),                  // assign(context, listener, 0)
        insn(0xbf, 2, 7, 0, 0),                  //
        insn(0xb7, 3, 0, 0, 0),                  //
        insn(0x85, 0, 0, 0, ASSIGN),             //
        insn(0xbf, 1, 7, 0, 0),                  // release(listener)
        insn(0x85, 0, 0, 0, RELEASE),            //
        insn(0xb7, 0, 0, 0, PASS),               // pass:
        insn(0x95, 0, 0, 0, 0),                  //     return SK_PASS
    ]
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    // No helper is used that needs a GPL program.
    let license = c"Apache-2.0";
    create(
        BPF_PROG_LOAD,
        &ProgramAttributes {
            kind: BPF_PROG_TYPE_SK_LOOKUP,
            instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
            instructions: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            attach_kind: BPF_SK_LOOKUP,
            ..ProgramAttributes::default()
        },
    )
}

/// `union bpf_attr` for BPF_MAP_CREATE, as far as it is needed; so are the others.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
}

/// For BPF_MAP_UPDATE_ELEM. The descriptor is 32 bits long, with as much padding after it.
#[repr(C)]
struct ElementAttributes {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// For BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

/// For BPF_LINK_CREATE.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

/// A command that makes something and answers with its descriptor.
fn create<T>(command: u64, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands passed here answer with a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: u64, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` is one of the repr(C) prefixes of union bpf_attr above, its size is
    // passed along, and what its pointers name outlives the call; the kernel copies all of it.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    i32::try_from(answer)
        .ok()
        .filter(|answer| *answer >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}
