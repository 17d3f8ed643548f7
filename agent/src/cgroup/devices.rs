//! Device rules of a cgroup: a BPF_PROG_TYPE_CGROUP_DEVICE program, since
//! cgroup v2 has no devices controller (Documentation/admin-guide/cgroup-v2.rst,
//! "Device controller").
//!
//! The rules are evaluated last to first. A register holds the access bits not
//! decided yet: an allow rule clears those it grants and the last of them makes
//! the call succeed; a deny rule that touches one makes it fail.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::oci::DeviceRule;

/// Access bits of `struct bpf_cgroup_dev_ctx` (linux/bpf.h).
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
/// Device types of the same.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// bpf(2) commands, program and attach type (linux/bpf.h).
const BPF_PROG_LOAD: u64 = 5;
const BPF_PROG_ATTACH: u64 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Flags of an attachment (linux/bpf.h): cgroups below may have programs of their own, all of
/// which have to agree; the program takes the place of another.
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;
/// The verifier's limit for a privileged program is far above; this keeps a
/// hostile specification from growing the agent.
const MAX_RULES: usize = 1024;

/// Registers by use.
const R_RESULT: u8 = 0;
const R_CONTEXT: u8 = 1;
const R_TYPE: u8 = 2;
const R_PENDING: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;
const R_SCRATCH: u8 = 6;

/// What every container may use, whatever its rules say (runc's
/// `specconv.AllowedDevices`): make any node, and use the harmless ones.
const ALWAYS_ALLOWED: &[Rule] = &[
    Rule {
        allow: true,
        kind: Some(TYPE_CHAR),
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    Rule {
        allow: true,
        kind: Some(TYPE_BLOCK),
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    char_device(1, Some(3)), // null
    char_device(1, Some(5)), // zero
    char_device(1, Some(7)), // full
    char_device(1, Some(8)), // random
    char_device(1, Some(9)), // urandom
    char_device(5, Some(0)), // tty
    char_device(5, Some(1)), // console
    char_device(5, Some(2)), // ptmx
    char_device(136, None),  // pts/*
];

const fn char_device(major: i32, minor: Option<i32>) -> Rule {
    let access = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;
    Rule {
        allow: true,
        kind: Some(TYPE_CHAR),
        major: Some(major),
        minor,
        access,
    }
}

/// A device rule in the kernel's numbers; `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn parse(rule: &DeviceRule) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let kind = match rule.kind.as_str() {
            "" | "a" => None,
            "c" | "u" => Some(TYPE_CHAR),
            "b" => Some(TYPE_BLOCK),
            _ => return Err(invalid("type of a device rule is not one of a, b, c")),
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => i32::try_from(number)
                .map(Some)
                .map_err(|_| invalid("device number out of range")),
        };
        let mut access = 0;
        for letter in rule.access.chars() {
            access |= match letter {
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                'm' => ACCESS_MKNOD,
                _ => return Err(invalid("access of a device rule is not made of r, w, m")),
            };
        }
        if access == 0 {
            access = ACCESS_READ | ACCESS_WRITE | ACCESS_MKNOD;
        }
        Ok(Self {
            allow: rule.allow,
            kind,
            major: number(rule.major)?,
            minor: number(rule.minor)?,
            access,
        })
    }
}

/// One eBPF instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    /// Source register in the high half, destination in the low.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Insn {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            immediate,
        }
    }

    /// destination = *(u32 *)(source + offset)
    const fn load(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x61, destination, source, offset, 0)
    }

    const fn move_register(destination: u8, source: u8) -> Self {
        Self::new(0xbf, destination, source, 0, 0)
    }

    const fn move_immediate(destination: u8, value: i32) -> Self {
        Self::new(0xb7, destination, 0, 0, value)
    }

    const fn and(destination: u8, value: i32) -> Self {
        Self::new(0x57, destination, 0, 0, value)
    }

    const fn shift_right(destination: u8, bits: i32) -> Self {
        Self::new(0x77, destination, 0, 0, bits)
    }

    const fn jump_unless_equal(register: u8, value: i32, skip: i16) -> Self {
        Self::new(0x55, register, 0, skip, value)
    }

    const fn jump_if_equal(register: u8, value: i32, skip: i16) -> Self {
        Self::new(0x15, register, 0, skip, value)
    }

    const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// Assembles the program for `rules`, in the order of the specification.
fn assemble(rules: &[Rule]) -> Vec<Insn> {
    let mut program = vec![
        Insn::load(R_PENDING, R_CONTEXT, 0),
        Insn::move_register(R_TYPE, R_PENDING),
        Insn::and(R_TYPE, 0xffff),
        Insn::shift_right(R_PENDING, 16),
        Insn::load(R_MAJOR, R_CONTEXT, 4),
        Insn::load(R_MINOR, R_CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        append_rule(&mut program, rule);
    }
    program.extend([Insn::move_immediate(R_RESULT, 0), Insn::exit()]);
    program
}

fn append_rule(program: &mut Vec<Insn>, rule: &Rule) {
    let decision = if rule.allow {
        vec![
            Insn::and(R_PENDING, !rule.access),
            Insn::jump_unless_equal(R_PENDING, 0, 2),
            Insn::move_immediate(R_RESULT, 1),
            Insn::exit(),
        ]
    } else {
        vec![
            Insn::move_register(R_SCRATCH, R_PENDING),
            Insn::and(R_SCRATCH, rule.access),
            Insn::jump_if_equal(R_SCRATCH, 0, 2),
            Insn::move_immediate(R_RESULT, 0),
            Insn::exit(),
        ]
    };
    let matches = [
        (R_TYPE, rule.kind),
        (R_MAJOR, rule.major),
        (R_MINOR, rule.minor),
    ];
    let matches: Vec<(u8, i32)> = matches
        .into_iter()
        .filter_map(|(register, value)| value.map(|value| (register, value)))
        .collect();
    // Each mismatch skips the checks after it and the decision.
    let mut skip = matches.len() + decision.len();
    for (register, value) in matches {
        skip -= 1;
        // At most seven instructions follow, so the offset always fits.
        program.push(Insn::jump_unless_equal(
            register,
            value,
            i16::try_from(skip).unwrap_or(i16::MAX),
        ));
    }
    program.extend(decision);
}

/// `union bpf_attr` for BPF_PROG_LOAD, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

const _: () = assert!(std::mem::offset_of!(AttachAttributes, replaced) == 16);

impl AttachAttributes {
    fn new(cgroup: BorrowedFd<'_>, program: &OwnedFd, replaced: Option<&OwnedFd>) -> Self {
        let replace = if replaced.is_some() { BPF_F_REPLACE } else { 0 };
        Self {
            target: descriptor(cgroup),
            program: descriptor(program.as_fd()),
            attach_type: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI | replace,
            replaced: replaced.map_or(0, |program| descriptor(program.as_fd())),
        }
    }
}

/// The program of a cgroup. Dropping it leaves it in force.
#[derive(Debug, Default)]
pub struct DeviceProgram {
    attached: Mutex<Option<OwnedFd>>,
}

impl DeviceProgram {
    /// Puts `rules` in force for the cgroup, in place of those before.
    ///
    /// # Errors
    ///
    /// InvalidInput for a rule that does not parse, else what bpf(2) said; the rules before
    /// stay in force then.
    pub fn attach(&self, cgroup: &OwnedFd, rules: &[DeviceRule]) -> io::Result<()> {
        let program = load(&assemble(&parse(rules)?))?;
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let attributes = AttachAttributes::new(cgroup.as_fd(), &program, attached.as_ref());
        bpf(BPF_PROG_ATTACH, &attributes)?;
        *attached = Some(program);
        Ok(())
    }
}

/// The rules in the kernel's numbers, what every container may use after them.
fn parse(rules: &[DeviceRule]) -> io::Result<Vec<Rule>> {
    if rules.len() > MAX_RULES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many device rules",
        ));
    }
    let mut parsed = rules
        .iter()
        .map(Rule::parse)
        .collect::<io::Result<Vec<Rule>>>()?;
    parsed.extend(ALWAYS_ALLOWED);
    Ok(parsed)
}

fn load(program: &[Insn]) -> io::Result<OwnedFd> {
    // The helpers that need a GPL program are not used.
    let license = c"Apache-2.0";
    // The kernel's layout: u8 code, u8 registers, s16 offset, s32 immediate.
    let mut encoded = Vec::with_capacity(program.len() * 8);
    for insn in program {
        encoded.extend([insn.code, insn.registers]);
        encoded.extend(insn.offset.to_ne_bytes());
        encoded.extend(insn.immediate.to_ne_bytes());
    }
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: encoded.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: u64, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` is one of the two repr(C) prefixes of union bpf_attr
    // above, its size is passed along, and the memory that its pointers name
    // outlives the call; the kernel copies all of it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    i32::try_from(result)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program the way the kernel does, for the instructions we emit.
    fn allowed(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let program = assemble(rules);
        let mut registers = [0_i64; 8];
        let mut at = 0_usize;
        loop {
            let insn = program[at];
            at += 1;
            let destination = usize::from(insn.registers & 0xf);
            let source = usize::from(insn.registers >> 4);
            let skip = usize::try_from(insn.offset).unwrap();
            match insn.code {
                0x61 => {
                    registers[destination] = i64::from(match insn.offset {
                        0 => access << 16 | kind,
                        4 => major,
                        _ => minor,
                    });
                }
                0xbf => registers[destination] = registers[source],
                0xb7 => registers[destination] = i64::from(insn.immediate),
                0x57 => registers[destination] &= i64::from(insn.immediate),
                0x77 => registers[destination] >>= insn.immediate,
                0x55 if registers[destination] != i64::from(insn.immediate) => at += skip,
                0x15 if registers[destination] == i64::from(insn.immediate) => at += skip,
                0x55 | 0x15 => {}
                0x95 => return registers[0] != 0,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn rule(json: &str) -> Rule {
        Rule::parse(&serde_json::from_str(json).unwrap()).unwrap()
    }

    const RW: i32 = ACCESS_READ | ACCESS_WRITE;

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        assert!(!allowed(&[], TYPE_CHAR, 1, 3, ACCESS_READ));
    }

    #[test]
    fn every_container_may_use_null_but_not_a_disk() {
        assert!(allowed(ALWAYS_ALLOWED, TYPE_CHAR, 1, 3, RW));
        assert!(allowed(ALWAYS_ALLOWED, TYPE_CHAR, 136, 7, RW));
        assert!(allowed(ALWAYS_ALLOWED, TYPE_BLOCK, 8, 0, ACCESS_MKNOD));
        assert!(!allowed(ALWAYS_ALLOWED, TYPE_BLOCK, 8, 0, ACCESS_READ));
        assert!(!allowed(ALWAYS_ALLOWED, TYPE_CHAR, 1, 1, ACCESS_READ));
    }

    #[test]
    fn a_later_rule_wins() {
        let deny = rule(r#"{"allow":false,"access":"rwm"}"#);
        let disk = rule(r#"{"allow":true,"type":"b","major":8,"minor":1,"access":"rw"}"#);
        assert!(allowed(&[deny, disk], TYPE_BLOCK, 8, 1, RW));
        assert!(!allowed(&[deny, disk], TYPE_BLOCK, 8, 2, RW));
        assert!(!allowed(&[disk, deny], TYPE_BLOCK, 8, 1, ACCESS_READ));
    }

    #[test]
    fn access_may_come_from_several_rules() {
        let read = rule(r#"{"allow":true,"type":"c","major":10,"minor":5,"access":"r"}"#);
        let write = rule(r#"{"allow":true,"type":"c","major":10,"minor":5,"access":"w"}"#);
        assert!(allowed(&[read, write], TYPE_CHAR, 10, 5, RW));
        assert!(!allowed(&[read], TYPE_CHAR, 10, 5, RW));
        assert!(!allowed(
            &[read, write],
            TYPE_CHAR,
            10,
            5,
            RW | ACCESS_MKNOD
        ));
    }

    #[test]
    fn a_privileged_rule_allows_all() {
        let all = rule(r#"{"allow":true,"access":"rwm"}"#);
        assert!(allowed(&[all], TYPE_BLOCK, 259, 0, RW | ACCESS_MKNOD));
    }

    #[test]
    fn a_program_leaves_room_below_and_takes_the_place_of_the_one_before() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (cgroup, before, after) = (open(), open(), open());
        let first = AttachAttributes::new(cgroup.as_fd(), &before, None);
        assert_eq!((first.flags, first.replaced), (2, 0));
        let second = AttachAttributes::new(cgroup.as_fd(), &after, Some(&before));
        assert_eq!((second.flags, second.replaced), (6, first.program));
        assert_eq!(second.program, descriptor(after.as_fd()));
    }

    #[test]
    fn a_malformed_rule_is_refused() {
        let bad: DeviceRule = serde_json::from_str(r#"{"allow":true,"access":"x"}"#).unwrap();
        assert!(parse(&[bad]).is_err());
    }
}
