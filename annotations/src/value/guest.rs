//! What else a guest has and does: kernel arguments, console, entropy, power, watchdog.

use std::fmt;
use std::str::FromStr;

use crate::{Kind, ValueError};

choice! {
    /// What attach and logs are connected to.
    ConsoleKind {
        Serial = "serial": "the first serial port (ttyS0)",
        Virtio = "virtio": "the first virtio console (hvc0)",
    }
}

choice! {
    /// What happens when the guest powers off or reboots.
    PowerAction {
        Stop = "stop": "the container ends; what then happens is the pod's restartPolicy",
        Restart = "restart": "the machine boots again in place, without an end that Kubernetes sees",
    }
}

amount! {
    /// How much the entropy device gives at most, in bytes a second.
    RngRate in [64, 1 << 30] by 1, "an amount of bytes a second"
}

number! {
    /// After how many seconds without a sign of life the watchdog resets the guest.
    WatchdogTimeout(u16) in 1..=3600, "a number of seconds"
}

/// What pods may tell the guest's kernel: switches whose effect ends at the guest's border.
const KERNEL_WORDS: [&str; 8] = [
    "quiet",
    "debug",
    "mitigations=off",
    "mitigations=auto",
    "transparent_hugepage=always",
    "transparent_hugepage=madvise",
    "transparent_hugepage=never",
    "nosmt",
];

/// Further words for the guest's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelArgs(Vec<&'static str>);

impl KernelArgs {
    /// The form of it.
    pub const KIND: Kind = Kind::Words(&KERNEL_WORDS);

    /// The words in their order.
    #[must_use]
    pub fn words(&self) -> &[&'static str] {
        &self.0
    }
}

impl FromStr for KernelArgs {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut words = Vec::new();
        for word in text.split_ascii_whitespace() {
            let known = KERNEL_WORDS.iter().find(|known| **known == word);
            let Some(known) = known else {
                return Err(ValueError::new(
                    word,
                    format!("one of {}", KERNEL_WORDS.join(", ")),
                ));
            };
            if words.contains(known) {
                return Err(ValueError::new(
                    text,
                    format!("a list that has {word} once"),
                ));
            }
            words.push(*known);
        }
        Ok(Self(words))
    }
}

impl fmt::Display for KernelArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}
