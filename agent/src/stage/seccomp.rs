//! Compiles an OCI seccomp profile into one classic BPF program
//! (Documentation/userspace-api/seccomp_filter.rst).
//!
//! For every system call that a rule names, the program tries the conditional
//! rules in the profile's order, then the unconditional one, then the default;
//! a profile may hold any number of actions and errnos. A call newer than all
//! that a denying profile names gets ENOSYS, as with runc, so that programs fall
//! back to older calls.

use std::collections::BTreeMap;
use std::io;

use super::StageError;
use super::syscall_table::SYSCALLS;
use crate::oci::{Seccomp, SeccompArg, SeccompRule};

/// AUDIT_ARCH_X86_64 (linux/audit.h).
const ARCH: u32 = 0xc000_003e;
/// First number of the x32 ABI, which the guest's kernel does not have.
const X32_BIT: u32 = 0x4000_0000;
/// Longest program (BPF_MAXINSNS).
const MAX_LEN: usize = 4096;

/// Actions (linux/seccomp.h).
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// The bits of an action that hold its errno or data.
const DATA_MASK: u32 = 0xffff;
/// EPERM and ENOSYS as data of an action.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// SECCOMP_SET_MODE_FILTER and the flags a profile may ask for (linux/seccomp.h).
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
const FLAG_LOG: u64 = 2;
const FLAG_SPEC_ALLOW: u64 = 4;

/// Instruction codes (linux/filter.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Insn>,
    flags: u64,
}

impl Filter {
    /// Puts the filter in force for this thread and all it becomes.
    ///
    /// # Errors
    ///
    /// [`StageError::Step`].
    pub fn install(&self) -> Result<(), StageError> {
        let program: Vec<libc::sock_filter> = self
            .program
            .iter()
            .map(|insn| libc::sock_filter {
                code: insn.code,
                jt: insn.yes,
                jf: insn.no,
                k: insn.k,
            })
            .collect();
        let header = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(u16::MAX),
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: the header names a live program of that length; the kernel only reads it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                SET_MODE_FILTER,
                self.flags,
                &raw const header,
            )
        };
        if result == 0 {
            return Ok(());
        }
        Err(StageError::step("install linux.seccomp")(
            io::Error::last_os_error(),
        ))
    }
}

/// One classic BPF instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u16,
    yes: u8,
    no: u8,
    k: u32,
}

impl Insn {
    const fn new(code: u16, k: u32) -> Self {
        Self {
            code,
            yes: 0,
            no: 0,
            k,
        }
    }

    const fn jump(code: u16, k: u32, yes: u8, no: u8) -> Self {
        Self { code, yes, no, k }
    }
}

/// Everything the profile says about one system call.
#[derive(Default)]
struct Call<'a> {
    /// Conditions, all of which must hold, and the action then.
    conditional: Vec<(Vec<&'a SeccompArg>, u32)>,
    unconditional: Option<u32>,
}

/// Compiles `profile`.
///
/// # Errors
///
/// [`StageError::Unsupported`] for an unknown action, operator or flag, or a
/// profile too long for the kernel.
pub fn compile(profile: &Seccomp) -> Result<Filter, StageError> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut flags = 0;
    for flag in &profile.flags {
        flags |= match flag.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => FLAG_TSYNC,
            "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
            other => return unsupported(&format!("flag {other}")),
        };
    }
    // The native architecture is always meant, whichever others a profile names.
    let mut program = prologue();
    let calls = collect(&profile.syscalls, default)?;
    for (number, call) in &calls {
        append_call(&mut program, *number, call, default)?;
    }
    let newest = profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.names)
        .filter_map(|name| number_of(name));
    if let Some(newest) = newest.max()
        && default & !DATA_MASK == ERRNO
    {
        program.extend([
            Insn::jump(JUMP_GREATER, newest, 0, 1),
            Insn::new(RETURN, ERRNO | ENOSYS),
        ]);
    }
    program.push(Insn::new(RETURN, default));
    if program.len() > MAX_LEN {
        return unsupported("the profile is too long");
    }
    Ok(Filter { program, flags })
}

fn unsupported<T>(what: &str) -> Result<T, StageError> {
    Err(StageError::Unsupported(format!(
        "linux.seccomp: {what} is not supported"
    )))
}

/// Refuses other architectures, leaves the call's number in the accumulator.
fn prologue() -> Vec<Insn> {
    vec![
        Insn::new(LOAD, OFFSET_ARCH),
        Insn::jump(JUMP_EQUAL, ARCH, 1, 0),
        Insn::new(RETURN, KILL_PROCESS),
        Insn::new(LOAD, OFFSET_NUMBER),
        Insn::jump(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        Insn::new(RETURN, ERRNO | ENOSYS),
    ]
}

fn number_of(name: &str) -> Option<u32> {
    let at = SYSCALLS.binary_search_by_key(&name, |entry| entry.0).ok()?;
    SYSCALLS.get(at).map(|(_, number)| *number)
}

fn action(name: &str, data: Option<u32>) -> Result<u32, StageError> {
    let data = data.unwrap_or(EPERM) & DATA_MASK;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_TRACE" => TRACE | data,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        other => return unsupported(&format!("action {other}")),
    })
}

fn collect<'a>(
    rules: &'a [SeccompRule],
    default: u32,
) -> Result<BTreeMap<u32, Call<'a>>, StageError> {
    let mut calls: BTreeMap<u32, Call<'a>> = BTreeMap::new();
    for rule in rules {
        let action = action(&rule.action, rule.errno_ret)?;
        // Such a rule says nothing, and runc leaves it out.
        if action == default {
            continue;
        }
        for number in rule.names.iter().filter_map(|name| number_of(name)) {
            let call = calls.entry(number).or_default();
            if rule.args.is_empty() {
                call.unconditional.get_or_insert(action);
            } else if has_repeated_argument(&rule.args) {
                // Conditions on one argument are alternatives, as with runc.
                call.conditional
                    .extend(rule.args.iter().map(|arg| (vec![arg], action)));
            } else {
                call.conditional.push((rule.args.iter().collect(), action));
            }
        }
    }
    Ok(calls)
}

fn has_repeated_argument(args: &[SeccompArg]) -> bool {
    args.iter().enumerate().any(|(at, arg)| {
        args.iter()
            .skip(at + 1)
            .any(|other| other.index == arg.index)
    })
}

fn append_call(
    program: &mut Vec<Insn>,
    number: u32,
    call: &Call<'_>,
    default: u32,
) -> Result<(), StageError> {
    let mut block = Vec::new();
    for (conditions, action) in &call.conditional {
        append_rule(&mut block, conditions, *action)?;
    }
    block.push(Insn::new(RETURN, call.unconditional.unwrap_or(default)));
    match u8::try_from(block.len()) {
        Ok(len) => program.push(Insn::jump(JUMP_EQUAL, number, 0, len)),
        // Too far for a conditional jump.
        Err(_) => {
            let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
            program.extend([Insn::jump(JUMP_EQUAL, number, 1, 0), Insn::new(JUMP, len)]);
        }
    }
    program.extend(block);
    Ok(())
}

/// Where a condition's jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The next instruction.
    Next,
    /// Behind the condition: it holds.
    Holds,
    /// Behind the rule: it does not.
    Fails,
}

/// An instruction of a condition; a load or mask has no targets.
type Step = (u16, u32, Target, Target);

fn append_rule(
    block: &mut Vec<Insn>,
    conditions: &[&SeccompArg],
    action: u32,
) -> Result<(), StageError> {
    let steps = conditions
        .iter()
        .map(|arg| condition(arg))
        .collect::<Result<Vec<_>, _>>()?;
    let rule_len = steps.iter().map(Vec::len).sum::<usize>() + 1;
    let mut at = 0;
    for condition in steps {
        let end = at + condition.len();
        for (code, k, yes, no) in condition {
            at += 1;
            // Six conditions of at most six steps: every distance fits.
            let distance = |target| match target {
                Target::Next => 0,
                Target::Holds => u8::try_from(end - at).unwrap_or(u8::MAX),
                Target::Fails => u8::try_from(rule_len - at).unwrap_or(u8::MAX),
            };
            block.push(Insn::jump(code, k, distance(yes), distance(no)));
        }
    }
    block.push(Insn::new(RETURN, action));
    Ok(())
}

/// The steps that check one 64-bit argument, high half first.
fn condition(arg: &SeccompArg) -> Result<Vec<Step>, StageError> {
    use Target::{Fails, Holds, Next};
    if arg.index > 5 {
        return unsupported(&format!("argument {}", arg.index));
    }
    let low_offset = OFFSET_ARGUMENTS + arg.index * 8;
    let load = |offset: u32| (LOAD, offset, Next, Next);
    let (high, low) = (load(low_offset + 4), load(low_offset));
    let halves = |value: u64| (upper(value), lower(value));
    let (value_high, value_low) = halves(arg.value);
    // Compares the high halves when they decide, for an order.
    let order = |greater: Target, less: Target| {
        [
            high,
            (JUMP_GREATER, value_high, greater, Next),
            (JUMP_EQUAL, value_high, Next, less),
            low,
        ]
    };
    let mut steps = Vec::with_capacity(6);
    match arg.op.as_str() {
        "SCMP_CMP_EQ" => steps.extend([
            high,
            (JUMP_EQUAL, value_high, Next, Fails),
            low,
            (JUMP_EQUAL, value_low, Next, Fails),
        ]),
        "SCMP_CMP_NE" => steps.extend([
            high,
            (JUMP_EQUAL, value_high, Next, Holds),
            low,
            (JUMP_EQUAL, value_low, Fails, Next),
        ]),
        "SCMP_CMP_GT" => {
            steps.extend(order(Holds, Fails));
            steps.push((JUMP_GREATER, value_low, Next, Fails));
        }
        "SCMP_CMP_GE" => {
            steps.extend(order(Holds, Fails));
            steps.push((JUMP_GREATER_EQUAL, value_low, Next, Fails));
        }
        "SCMP_CMP_LT" => {
            steps.extend(order(Fails, Holds));
            steps.push((JUMP_GREATER_EQUAL, value_low, Fails, Next));
        }
        "SCMP_CMP_LE" => {
            steps.extend(order(Fails, Holds));
            steps.push((JUMP_GREATER, value_low, Fails, Next));
        }
        "SCMP_CMP_MASKED_EQ" => {
            let (wanted_high, wanted_low) = halves(arg.value_two);
            steps.extend([
                high,
                (AND, value_high, Next, Next),
                (JUMP_EQUAL, wanted_high, Next, Fails),
                low,
                (AND, value_low, Next, Next),
                (JUMP_EQUAL, wanted_low, Next, Fails),
            ]);
        }
        other => return unsupported(&format!("operator {other}")),
    }
    Ok(steps)
}

fn upper(value: u64) -> u32 {
    lower(value >> 32)
}

fn lower(value: u64) -> u32 {
    // Masked, so the conversion cannot fail.
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
