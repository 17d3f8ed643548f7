//! The keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::ValueError;
use crate::definition::{DEFINITIONS, Definition};

/// All our keys begin so.
pub const PREFIX: &str = "podvisor.io/";

macro_rules! keys {
    ($($variant:ident = $name:literal,)*) => {
        /// A key that pods may use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key {
            $(#[doc = concat!("`podvisor.io/", $name, "`")] $variant,)*
        }

        impl Key {
            /// All keys, in the order of their definitions.
            pub const ALL: [Self; [$($name,)*].len()] = [$(Self::$variant,)*];

            /// The key without the prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

keys! {
    Cpus = "cpus",
    MaxCpus = "max-cpus",
    Memory = "memory",
    MaxMemory = "max-memory",
    CpuTopology = "cpu-topology",
    CpuModel = "cpu-model",
    CpuPinning = "cpu-pinning",
    Numa = "numa",
    Hugepages = "hugepages",
    KernelArgs = "kernel-args",
    Boot = "boot",
    Disks = "disks",
    Nics = "nics",
    BootOrder = "boot-order",
    CloudInit = "cloud-init",
    SshKeys = "ssh-keys",
    Smbios = "smbios",
    Console = "console",
    Rng = "rng",
    Balloon = "balloon",
    OnPoweroff = "on-poweroff",
    OnReboot = "on-reboot",
    Watchdog = "watchdog",
}

impl Key {
    /// The key of this name, with or without the prefix.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// All about the key.
    #[must_use]
    pub fn definition(self) -> &'static Definition {
        let [first, ..] = &DEFINITIONS;
        // A test holds the table to the keys.
        let own = DEFINITIONS.iter().find(|definition| definition.key == self);
        own.unwrap_or(first)
    }

    /// The keys that `name`, with or without the prefix, may have been meant to be; the nearest first.
    #[must_use]
    pub fn nearest(name: &str) -> Vec<Self> {
        /// More than these would not help.
        const MOST: usize = 3;
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        // Distances take the product of both lengths, and what is longer is near to nothing.
        let name: String = name.chars().take(32).collect();
        let mut near: Vec<(usize, Self)> = Self::ALL
            .into_iter()
            .map(|key| (distance(&name, key.name()), key))
            .filter(|(distance, key)| *distance <= key.name().len().div_ceil(3).max(1))
            .collect();
        near.sort();
        near.truncate(MOST);
        near.into_iter().map(|(_, key)| key).collect()
    }
}

/// How many letters one has to put in, take out or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for (pair, other) in row.windows(2).zip(b.chars()) {
            let &[diagonal, above] = pair else { continue };
            let changed = diagonal + usize::from(letter != other);
            left = changed.min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

impl fmt::Display for Key {
    /// The whole key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.name())
    }
}

impl FromStr for Key {
    type Err = ValueError;

    fn from_str(name: &str) -> Result<Self, ValueError> {
        Self::named(name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            ValueError::new(name, format!("one of the annotations {names}"))
        })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_found_with_and_without_the_prefix() {
        assert_eq!(Key::named("max-cpus"), Some(Key::MaxCpus));
        assert_eq!(Key::named("podvisor.io/max-cpus"), Some(Key::MaxCpus));
        assert_eq!(Key::named("display"), None);
    }

    #[test]
    fn a_slip_has_a_nearest_key() {
        for (name, key) in [
            ("cpu", Key::Cpus),
            ("podvisor.io/max_cpus", Key::MaxCpus),
            ("cloudinit", Key::CloudInit),
            ("hugepage", Key::Hugepages),
            ("on-power-off", Key::OnPoweroff),
        ] {
            assert_eq!(Key::nearest(name).first(), Some(&key), "{name}");
        }
        assert_eq!(Key::nearest("no-such-key-at-all"), []);
    }

    proptest! {
        #[test]
        fn distances_are_those_of_a_metric(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
        }
    }
}
