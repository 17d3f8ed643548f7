//! Every key: values that are right, and values that are wrong with what the error must say.

use std::collections::BTreeMap;

use crate::value::boot::BootDevice;
use crate::value::cloud_init::CloudInit;
use crate::{AnnotationError, Annotations, Key};
use proptest::prelude::*;

const KEY_ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER";

fn parse(pairs: &[(&str, &str)]) -> Result<Annotations, AnnotationError> {
    let map: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| (format!("podvisor.io/{name}"), (*value).to_owned()))
        .collect();
    Annotations::parse(&map)
}

/// Wrong values of a key, each with a part of the error that says what was given or is allowed.
type Wrong = &'static [(&'static str, &'static str)];

const NUMBERS: &[(&str, Wrong)] = &[
    (
        "cpus",
        &[
            ("0", "from 1 to 254"),
            ("255", "\"255\""),
            ("many", "\"many\" is not a number of vCPUs"),
            ("+2", "\"+2\""),
            ("02", "\"02\""),
            (" 2", "\" 2\""),
            ("", "from 1 to 254"),
        ],
    ),
    ("max-cpus", &[("0", "from 1 to 254"), ("1.5", "\"1.5\"")]),
    (
        "memory",
        &[
            ("12parsecs", "from 32Mi to 383Gi"),
            ("4096", "\"4096\""),
            ("384Gi", "from 32Mi to 383Gi"),
            ("33554433", "in whole 4Ki"),
            ("-1Gi", "\"-1Gi\""),
        ],
    ),
    ("max-memory", &[("1Mi", "from 32Mi"), ("", "from 32Mi")]),
    (
        "rng",
        &[
            ("0", "from 64 to 1Gi"),
            ("63", "\"63\""),
            ("2Gi", "to 1Gi"),
            ("fast", "\"fast\""),
        ],
    ),
    (
        "watchdog",
        &[
            ("0", "from 1 to 3600"),
            ("3601", "\"3601\""),
            ("30s", "\"30s\" is not a number of seconds"),
        ],
    ),
];

const WORDS: &[(&str, Wrong)] = &[
    (
        "cpu-topology",
        &[
            ("1:2", "sockets:cores:threads"),
            ("0:1:1", "\"0:1:1\""),
            ("2:2:2:2", "\"2:2:2:2\""),
            ("16:16:1", "from 1 to 254"),
            ("1:1:256", "\"1:1:256\""),
        ],
    ),
    (
        "cpu-model",
        &[("x86-64-v5", "x86-64-v4"), ("", "one of host")],
    ),
    ("cpu-pinning", &[("yes", "one of none, auto")]),
    ("numa", &[("2", "one of none, auto")]),
    (
        "hugepages",
        &[("4Mi", "one of none, thp, 2Mi, 1Gi"), ("2mi", "\"2mi\"")],
    ),
    (
        "kernel-args",
        &[
            ("init=/bin/sh", "one of quiet, debug"),
            ("quiet panic=1", "\"panic=1\""),
            ("quiet quiet", "once"),
        ],
    ),
    ("boot", &[("vm", "one of auto, container, machine")]),
    ("console", &[("tty0", "one of serial, virtio")]),
    ("balloon", &[("on", "one of off, reporting, auto")]),
    ("on-poweroff", &[("reboot", "one of stop, restart")]),
    ("on-reboot", &[("Stop", "one of stop, restart")]),
];

const LISTS: &[(&str, Wrong)] = &[
    (
        "disks",
        &[
            ("", "anything"),
            ("/data", "sequence"),
            (
                "[{path: data}]",
                "[0].path: \"data\" is not an absolute path",
            ),
            ("[{path: /a/../b}]", "\"/a/../b\""),
            ("[{path: /a/}]", "\"/a/\""),
            ("[{ro: true}]", "path"),
            ("[{path: /a, readonly: true}]", "readonly"),
            ("[{path: /a, ro: maybe}]", "[0].ro"),
            ("[{path: /a, serial: 'a b'}]", "1 to 20 printable"),
            ("[{path: /a, serial: AAAAAAAAAAAAAAAAAAAAA}]", "[0].serial"),
            ("[{path: /a, pci: 0}]", "a number from 1 to 31"),
            ("[{path: /a, pci: '00:20.0'}]", "\"00:20.0\""),
            ("[{path: /a, pci: '01:02.0'}]", "\"01:02.0\""),
            ("[{path: /a, queues: 17}]", "from 1 to 16"),
            ("[{path: /a, iothread: 0}]", "[0].iothread"),
            ("[{path: /a, cache: fast}]", "one of none, writeback"),
            ("[{path: /a, iops: 0}]", "[0].iops"),
            ("[{path: /a, bps: 1}]", "from 4Ki to 1Ti"),
            ("[{path: /a}, {path: /a}]", "[1].path: /a is that of [0]"),
            (
                "[{path: /a, pci: 5}, {path: /b, pci: '00:05.0'}]",
                "[1].pci: 00:05.0",
            ),
            (
                "[{path: /a, serial: X}, {path: /b, serial: X}]",
                "[1].serial: X",
            ),
            ("[&a {path: /a}, *a]", "anchor"),
            ("[{path: /a]", "disks"),
        ],
    ),
    (
        "nics",
        &[
            ("[{mac: '52:54:00:12:34:56'}]", "name"),
            ("[{name: averylonginterface}]", "1 to 15 printable"),
            ("[{name: a/b}]", "\"a/b\""),
            (
                "[{name: eth0, mac: '53:54:00:12:34:56'}]",
                "no group address",
            ),
            ("[{name: eth0, mac: '00:00:00:00:00:00'}]", "not all zeros"),
            ("[{name: eth0, mac: '52-54-00-12-34-56'}]", "[0].mac"),
            ("[{name: eth0, mtu: 67}]", "from 68 to 65535"),
            ("[{name: eth0, mode: bridge}]", "one of redirect, nat"),
            ("[{name: eth0}, {name: eth0}]", "[1].name: eth0"),
            ("[{name: eth0, speed: 10}]", "speed"),
        ],
    ),
    (
        "boot-order",
        &[
            ("/data", "sequence"),
            ("[data disk]", "\"data disk\""),
            ("[/a, /a]", "[1]: /a is that of [0]"),
            ("[/a/..]", "\"/a/..\""),
        ],
    ),
];

const TEXTS: &[(&str, Wrong)] = &[
    (
        "cloud-init",
        &[
            ("", "begins with #"),
            ("packages: [nginx]", "begins with #"),
            ("../seed", "\"../seed\""),
            ("/seed/../x", "\"/seed/../x\""),
        ],
    ),
    (
        "ssh-keys",
        &[
            ("ssh-ed25519", "an SSH public key"),
            ("ssh-ed25519 AAAA", "\"ssh-ed25519 AAAA\""),
            ("ssh-dss AAAAB3NzaC1kc3MAAAAA", "\"ssh-dss"),
            (
                "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER",
                "\"ssh-rsa",
            ),
            ("command=\"x\" ssh-ed25519 AAAA", "without options"),
            ("- ssh-ed25519\n", "[0]"),
        ],
    ),
    (
        "smbios",
        &[
            ("[]", "smbios"),
            ("{bios: {vendor: x}}", "bios"),
            ("{system: {vendor: x}}", "vendor"),
            ("{system: {product: ''}}", "1 to 64 printable"),
            ("{system: {product: \"a\\nb\"}}", "system.product"),
            (
                "{system: {uuid: 1234}}",
                "system.uuid: \"1234\" is not a UUID",
            ),
            (
                "{system: {uuid: 00000000-0000-0000-0000-000000000000}}",
                "not all zeros",
            ),
            ("{oem-strings: text}", "oem-strings"),
            ("{oem-strings: [' x']}", "oem-strings[0]"),
        ],
    ),
];

#[test]
fn every_key_has_examples_that_are_taken() {
    for key in Key::ALL {
        for example in key.definition().examples {
            let parsed = parse(&[(key.name(), example)]);
            assert!(parsed.is_ok(), "{key}: {example}: {parsed:?}");
            assert_eq!(parsed.unwrap().given[&key], *example);
        }
    }
}

#[test]
fn wrong_values_are_refused_with_the_key_what_was_given_and_what_is_allowed() {
    let table = [NUMBERS, WORDS, LISTS, TEXTS].concat();
    let mut bad = Vec::new();
    for key in Key::ALL {
        let (_, wrong) = table
            .iter()
            .find(|(name, _)| *name == key.name())
            .unwrap_or_else(|| panic!("{key} has no wrong values"));
        for (value, part) in *wrong {
            let error = match parse(&[(key.name(), value)]) {
                Ok(_) => "taken".to_owned(),
                Err(error) => error.to_string(),
            };
            let is_good = error.starts_with(&format!("annotation {key}: "))
                && error.contains(part)
                && !error.contains('\n');
            if !is_good {
                bad.push(format!("{key}: {value:?} lacks {part:?}: {error}"));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    for (name, part) in [
        ("cpu", "is it meant to be podvisor.io/cpus"),
        ("display", "podvisor explain"),
        ("", "unknown annotation podvisor.io/"),
    ] {
        let error = parse(&[(name, "1")]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(error.contains(&format!("unknown annotation podvisor.io/{name}")));
    }
}

#[test]
fn keys_that_do_not_go_together_are_both_named() {
    for (pairs, key, other, rule) in [
        (
            &[("cpus", "4"), ("max-cpus", "2")][..],
            Key::MaxCpus,
            Key::Cpus,
            "at least 4",
        ),
        (
            &[("memory", "2Gi"), ("max-memory", "1Gi")],
            Key::MaxMemory,
            Key::Memory,
            "at least 2Gi",
        ),
        (
            &[("cpu-topology", "1:2:1"), ("max-cpus", "4")],
            Key::CpuTopology,
            Key::MaxCpus,
            "must be 4",
        ),
        (
            &[("cpu-topology", "1:2:1"), ("cpus", "4")],
            Key::CpuTopology,
            Key::Cpus,
            "at least 4",
        ),
        (
            &[
                ("disks", "[{path: /a, pci: 5}]"),
                ("nics", "[{name: eth0, pci: 5}]"),
            ],
            Key::Nics,
            Key::Disks,
            "00:05.0",
        ),
        (
            &[("boot-order", "[net1]")],
            Key::BootOrder,
            Key::Nics,
            "net1",
        ),
        (
            &[("boot", "container"), ("watchdog", "5")],
            Key::Watchdog,
            Key::Boot,
            "machine",
        ),
    ] {
        let error = parse(pairs).unwrap_err();
        let text = error.to_string();
        let AnnotationError::Conflict {
            key: named,
            other: named_other,
            ..
        } = &error
        else {
            panic!("{text}");
        };
        assert_eq!((*named, *named_other), (key, other), "{text}");
        assert!(
            text.contains(rule) && text.contains(&key.to_string()),
            "{text}"
        );
    }
}

#[test]
fn keys_that_go_together_are_taken() {
    for pairs in [
        &[("cpus", "2"), ("max-cpus", "8"), ("cpu-topology", "2:2:2")][..],
        &[("cpus", "2"), ("cpu-topology", "1:2:1")],
        &[("memory", "1Gi"), ("max-memory", "1Gi")],
        &[
            ("boot-order", "[/data, eth0, net1]"),
            ("nics", "[{name: net1}]"),
        ],
        &[("boot", "container"), ("cpus", "1")],
        &[("boot", "machine"), ("watchdog", "5")],
    ] {
        let parsed = parse(pairs);
        assert!(parsed.is_ok(), "{pairs:?}: {parsed:?}");
    }
}

#[test]
fn lists_are_read_in_flow_and_block_form() {
    let flow = parse(&[("disks", "[{path: /, queues: 2, serial: 0012}]")]).unwrap();
    let block = parse(&[("disks", "- path: /\n  queues: 2\n  serial: 0012\n")]).unwrap();
    let json = parse(&[("disks", r#"[{"path": "/", "queues": 2, "serial": "0012"}]"#)]).unwrap();
    assert_eq!(flow.disks, block.disks);
    assert_eq!(flow.disks, json.disks);
    let [disk] = flow.disks.as_slice() else {
        panic!("{:?}", flow.disks);
    };
    assert!(disk.path.is_root() && !disk.ro);
    assert_eq!(disk.queues.unwrap().get(), 2);
    // A serial number is a text, whatever it looks like.
    assert_eq!(disk.serial.as_ref().unwrap().as_str(), "0012");
}

#[test]
fn a_pci_device_is_a_number_or_an_address() {
    for pci in ["31", "00:1f.0", "'00:1f.0'", "0000:00:1f.0"] {
        let parsed = parse(&[("disks", &format!("[{{path: /a, pci: {pci}}}]"))]).unwrap();
        assert_eq!(parsed.disks[0].pci.unwrap().get(), 31, "{pci}");
    }
}

#[test]
fn keys_and_seeds_are_read_in_both_their_forms() {
    let lines = format!("# mine\n{KEY_ED25519} me@example.org\n\n");
    let list = format!("- {KEY_ED25519} me@example.org\n");
    let lines = parse(&[("ssh-keys", &lines)]).unwrap().ssh_keys;
    assert_eq!(lines, parse(&[("ssh-keys", &list)]).unwrap().ssh_keys);
    assert_eq!(lines.len(), 1);
    let seed = |text: &str| parse(&[("cloud-init", text)]).unwrap().cloud_init.unwrap();
    assert!(matches!(seed("/seed"), CloudInit::Volume(path) if path.as_str() == "/seed"));
    for text in [
        "#cloud-config\n{}",
        "#!/bin/sh\ntrue",
        "Content-Type: multipart/mixed; boundary=x",
    ] {
        assert_eq!(seed(text), CloudInit::UserData(text.to_owned()));
    }
    let order = parse(&[("boot-order", "[/, eth0]")]).unwrap().boot_order;
    assert!(matches!(
        order.as_slice(),
        [BootDevice::Disk(_), BootDevice::Nic(_)]
    ));
}

#[test]
fn sizes_and_counts_are_capped() {
    let disks: String = (0..25)
        .map(|number| format!("- path: /d{number}\n"))
        .collect();
    let keys: String = (0..33)
        .map(|number| format!("{KEY_ED25519} {number}\n"))
        .collect();
    let oem = format!("{{oem-strings: [{}]}}", vec!["a"; 33].join(","));
    for (name, value, part) in [
        ("disks", disks, "at most 24"),
        ("ssh-keys", keys, "at most 32"),
        ("smbios", oem, "at most 32"),
        ("nics", " ".repeat(17 << 10), "at most 16384"),
        ("nics", "[".repeat(300), "nics"),
        (
            "cloud-init",
            format!("#{}", "x".repeat(128 << 10)),
            "at most 128 KiB",
        ),
    ] {
        let error = parse(&[(name, &value)]).unwrap_err().to_string();
        assert!(error.contains(part) && error.len() < 500, "{error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused_by_every_key(value in ".{0,60}") {
        for key in Key::ALL {
            if let Err(error) = parse(&[(key.name(), &value)]) {
                prop_assert!(error.to_string().contains(&key.to_string()));
            }
        }
    }

    #[test]
    fn what_nearly_is_a_list_is_taken_or_refused(
        value in r"(\[|- |)\{?(path|name|ro|pci|mac|system): ?[ /a-z0-9:'\[{,]{0,20}\}?\]?\n?",
    ) {
        for name in ["disks", "nics", "boot-order", "smbios", "ssh-keys"] {
            let _ = parse(&[(name, &value)]);
        }
    }

    #[test]
    fn numbers_within_bounds_are_taken(cpus in 1_u64..=254, seconds in 1_u64..=3600, slot in 1_u8..=31) {
        let disks = format!("[{{path: /, pci: {slot}}}]");
        let address = format!("[{{name: eth0, pci: 00:{slot:02x}.0}}]");
        let pairs = [
            ("cpus", &*cpus.to_string()),
            ("watchdog", &*seconds.to_string()),
            ("disks", &*disks),
        ];
        let parsed = parse(&pairs).unwrap();
        prop_assert_eq!(u64::from(parsed.cpus.unwrap().get()), cpus);
        prop_assert_eq!(u64::from(parsed.watchdog.unwrap().get()), seconds);
        let nics = parse(&[("nics", &address)]).unwrap().nics;
        prop_assert_eq!(parsed.disks[0].pci, nics[0].pci);
    }

    #[test]
    fn topologies_are_taken_when_their_product_fits(s in 1_u16..20, c in 1_u16..20, t in 1_u16..20) {
        let text = format!("{s}:{c}:{t}");
        match parse(&[("cpu-topology", &text)]) {
            Ok(parsed) => {
                let topology = parsed.cpu_topology.unwrap();
                prop_assert_eq!(topology.to_string(), text);
                prop_assert_eq!(u16::from(topology.vcpus().get()), s * c * t);
            }
            Err(_) => prop_assert!(s * c * t > 254),
        }
    }

    #[test]
    fn accepted_paths_stay_where_they_are(path in "/?[a-c./]{0,12}") {
        if let Ok(parsed) = parse(&[("disks", &format!("[{{path: '{path}'}}]"))]) {
            let path = parsed.disks[0].path.as_str();
            prop_assert!(path.starts_with('/') && !path.contains("//"));
            prop_assert!(path.split('/').all(|part| part != ".." && part != "."));
            prop_assert!(path == "/" || !path.ends_with('/'));
        }
    }
}
