//! Profiles are compiled and run by a small interpreter of classic BPF.

use proptest::prelude::*;

use super::*;

/// What the kernel would do: the program's verdict on one call.
fn verdict(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0_u8; 64];
    data[0..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (at, arg) in args.iter().enumerate() {
        data[16 + at * 8..24 + at * 8].copy_from_slice(&arg.to_ne_bytes());
    }
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let insn = filter.program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { insn.yes } else { insn.no });
        match insn.code {
            LOAD => {
                let offset = insn.k as usize;
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            AND => accumulator &= insn.k,
            JUMP => at += insn.k as usize,
            JUMP_EQUAL => at += branch(accumulator == insn.k),
            JUMP_GREATER => at += branch(accumulator > insn.k),
            JUMP_GREATER_EQUAL => at += branch(accumulator >= insn.k),
            RETURN => return insn.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn compiled(json: &str) -> Filter {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

fn call(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    verdict(filter, ARCH, number_of(name).unwrap(), args)
}

const NONE: [u64; 6] = [0; 6];

const RUNTIME_DEFAULT: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
    "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
    "syscalls":[
        {"names":["read","write","futex_requeue","no_such_call"],"action":"SCMP_ACT_ALLOW"},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967295,"op":"SCMP_CMP_EQ"}]},
        {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}
    ]}"#;

#[test]
fn the_runtime_default_profile_decides_as_it_says() {
    let filter = compiled(RUNTIME_DEFAULT);
    assert_eq!(call(&filter, "read", NONE), ALLOW);
    assert_eq!(call(&filter, "mount", NONE), ERRNO | EPERM);
    assert_eq!(call(&filter, "clone3", NONE), ERRNO | ENOSYS);
    assert_eq!(call(&filter, "personality", NONE), ALLOW);
    assert_eq!(
        call(&filter, "personality", [0xffff_ffff, 0, 0, 0, 0, 0]),
        ALLOW
    );
    assert_eq!(
        call(&filter, "personality", [8, 0, 0, 0, 0, 0]),
        ERRNO | EPERM
    );
    assert_eq!(
        call(&filter, "clone", [0x1200_0011, 0, 0, 0, 0, 0]),
        ERRNO | EPERM
    );
    assert_eq!(call(&filter, "clone", [0x0100_0011, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn a_call_newer_than_the_profile_does_not_exist() {
    let filter = compiled(RUNTIME_DEFAULT);
    assert_eq!(verdict(&filter, ARCH, 460, NONE), ERRNO | ENOSYS);
    assert_eq!(verdict(&filter, ARCH, X32_BIT | 1, NONE), ERRNO | ENOSYS);
}

#[test]
fn another_architecture_kills() {
    assert_eq!(
        verdict(&compiled(RUNTIME_DEFAULT), 0x4000_0003, 3, NONE),
        KILL_PROCESS
    );
}

#[test]
fn a_denying_list_leaves_the_rest_alone() {
    let filter = compiled(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"},
            {"names":["ptrace"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    );
    assert_eq!(call(&filter, "reboot", NONE), KILL_PROCESS);
    assert_eq!(call(&filter, "ptrace", NONE), ERRNO | 13);
    assert_eq!(verdict(&filter, ARCH, 9999, NONE), ALLOW);
}

#[test]
fn conditional_rules_come_before_the_unconditional_one() {
    let filter = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["socket"],"action":"SCMP_ACT_ALLOW"},
            {"names":["socket"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":40,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(call(&filter, "socket", [40, 0, 0, 0, 0, 0]), LOG);
    assert_eq!(call(&filter, "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives_on_several_all_must_hold() {
    let filter = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":1,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"names":["fcntl"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(call(&filter, "ioctl", [0, 2, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "ioctl", [0, 3, 0, 0, 0, 0]), ERRNO | EPERM);
    assert_eq!(call(&filter, "fcntl", [1, 2, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "fcntl", [1, 3, 0, 0, 0, 0]), ERRNO | EPERM);
}

#[test]
fn a_long_block_is_jumped_over() {
    let alternatives: Vec<String> = (0..200)
        .map(|value| format!(r#"{{"index":1,"value":{value},"op":"SCMP_CMP_EQ"}}"#))
        .collect();
    let filter = compiled(&format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {{"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[{}]}},
            {{"names":["write","read","umask"],"action":"SCMP_ACT_ALLOW"}}]}}"#,
        alternatives.join(",")
    ));
    assert_eq!(call(&filter, "umask", NONE), ALLOW);
    assert_eq!(call(&filter, "ioctl", [0, 199, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&filter, "ioctl", [0, 200, 0, 0, 0, 0]), ERRNO | EPERM);
}

#[test]
fn what_the_kernel_cannot_do_is_refused() {
    for json in [
        r#"{"defaultAction":"SCMP_ACT_DANCE"}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG",
            "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    ] {
        assert!(
            compile(&serde_json::from_str(json).unwrap()).is_err(),
            "{json}"
        );
    }
}

#[test]
fn the_table_is_sorted_and_without_doubles() {
    assert!(SYSCALLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(number_of("read"), Some(0));
    assert_eq!(number_of("openat2").map(i64::from), Some(libc::SYS_openat2));
}

proptest! {
    #[test]
    fn every_operator_compares_as_rust_does(
        op in 0_usize..7,
        value: u64,
        two: u64,
        argument in prop_oneof![any::<u64>(), 0_u64..4, Just(u64::MAX)],
        same in any::<bool>(),
    ) {
        let argument = if same { value } else { argument };
        let names = ["EQ", "NE", "GT", "GE", "LT", "LE", "MASKED_EQ"];
        let filter = compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["ioctl"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":2,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{}"}}]}}]}}"#,
            names[op]
        ));
        let holds = match op {
            0 => argument == value,
            1 => argument != value,
            2 => argument > value,
            3 => argument >= value,
            4 => argument < value,
            5 => argument <= value,
            _ => argument & value == two,
        };
        let expected = if holds { ALLOW } else { ERRNO | EPERM };
        prop_assert_eq!(call(&filter, "ioctl", [0, 0, argument, 0, 0, 0]), expected);
    }
}
