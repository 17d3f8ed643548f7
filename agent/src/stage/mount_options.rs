//! Options of an OCI mount (config.md, "Linux mount options"), sorted into what
//! the mount system calls take.

use rustix::mount::MountPropagationFlags;

use crate::sys::mount::MountAttributes;

/// MOUNT_ATTR_* of linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME_MASK: u64 = 0x70;
const RELATIME: u64 = 0x0;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// A mount's options by where they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` or `rbind` was given; recursive for the latter.
    pub bind: Option<Recursion>,
    /// Attributes of this mount alone.
    pub attributes: MountAttributes,
    /// Attributes of all mounts below, too (`rro`, `rnosuid`, …).
    pub recursive: MountAttributes,
    /// Propagation changes, in order.
    pub propagation: Vec<MountPropagationFlags>,
    /// Parameters of the file system: `key=value` or a flag.
    pub parameters: Vec<String>,
}

/// How much a bind mount takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recursion {
    /// One mount.
    Single,
    /// The mounts below it, too.
    Recursive,
}

impl MountOptions {
    /// Sorts `options`; what is no generic option is left to the file system.
    #[must_use]
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        match option {
            "bind" => self.bind = self.bind.or(Some(Recursion::Single)),
            "rbind" => self.bind = Some(Recursion::Recursive),
            "defaults" | "async" | "" => {}
            _ => {
                if let Some(flags) = propagation(option) {
                    self.propagation.push(flags);
                } else if let Some((bits, on)) = attribute(option) {
                    change(&mut self.attributes, bits, on);
                } else if let Some((bits, on)) = option.strip_prefix('r').and_then(attribute) {
                    change(&mut self.recursive, bits, on);
                } else {
                    self.parameters.push(option.to_owned());
                }
            }
        }
    }
}

/// The propagation flags of a word; `r` in front means recursive.
#[must_use]
pub fn propagation(word: &str) -> Option<MountPropagationFlags> {
    use MountPropagationFlags as Flags;
    Some(match word {
        "private" => Flags::PRIVATE,
        "rprivate" => Flags::PRIVATE | Flags::REC,
        "slave" => Flags::DOWNSTREAM,
        "rslave" => Flags::DOWNSTREAM | Flags::REC,
        "shared" => Flags::SHARED,
        "rshared" => Flags::SHARED | Flags::REC,
        "unbindable" => Flags::UNBINDABLE,
        "runbindable" => Flags::UNBINDABLE | Flags::REC,
        _ => return None,
    })
}

/// The attribute of a word, and whether it is set or cleared.
fn attribute(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "ro" => (RDONLY, true),
        "rw" => (RDONLY, false),
        "nosuid" => (NOSUID, true),
        "suid" => (NOSUID, false),
        "nodev" => (NODEV, true),
        "dev" => (NODEV, false),
        "noexec" => (NOEXEC, true),
        "exec" => (NOEXEC, false),
        "noatime" => (NOATIME, true),
        "strictatime" => (STRICTATIME, true),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (RELATIME, true),
        "nodiratime" => (NODIRATIME, true),
        "diratime" => (NODIRATIME, false),
        "nosymfollow" => (NOSYMFOLLOW, true),
        "symfollow" => (NOSYMFOLLOW, false),
        _ => return None,
    })
}

fn change(attributes: &mut MountAttributes, bits: u64, on: bool) {
    if matches!(bits, RELATIME | NOATIME | STRICTATIME) {
        // The access time attribute is one field: clear it whole, set one value.
        attributes.clear |= ATIME_MASK;
        attributes.set = attributes.set & !ATIME_MASK | bits;
    } else if on {
        attributes.set |= bits;
        attributes.clear &= !bits;
    } else {
        attributes.clear |= bits;
        attributes.set &= !bits;
    }
}

/// Attributes that make a mount read-only.
#[must_use]
pub fn read_only() -> MountAttributes {
    MountAttributes {
        set: RDONLY,
        ..MountAttributes::default()
    }
}

/// The attributes of a mask: nothing can be done with what lies there.
#[must_use]
pub fn inert() -> MountAttributes {
    MountAttributes {
        set: RDONLY | NOSUID | NODEV | NOEXEC,
        ..MountAttributes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn what_the_kubelet_gives_a_volume() {
        let parsed = parse(&["rbind", "rprivate", "ro"]);
        assert_eq!(parsed.bind, Some(Recursion::Recursive));
        assert_eq!(parsed.attributes.set, RDONLY);
        assert_eq!(
            parsed.propagation,
            [MountPropagationFlags::PRIVATE | MountPropagationFlags::REC]
        );
        assert!(parsed.parameters.is_empty());
    }

    #[test]
    fn file_system_parameters_are_kept_apart() {
        let parsed = parse(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(parsed.attributes.set, NOSUID | STRICTATIME);
        assert_eq!(parsed.attributes.clear, ATIME_MASK);
        assert_eq!(parsed.parameters, ["mode=755", "size=65536k"]);
    }

    #[test]
    fn the_last_word_wins() {
        assert_eq!(
            parse(&["ro", "rw"]).attributes,
            MountAttributes {
                clear: RDONLY,
                ..Default::default()
            }
        );
        assert_eq!(parse(&["rw", "ro"]).attributes.set, RDONLY);
        assert_eq!(parse(&["noatime", "relatime"]).attributes.set, 0);
    }

    #[test]
    fn an_r_in_front_reaches_the_mounts_below() {
        let parsed = parse(&["rbind", "rro", "rnosuid"]);
        assert_eq!(parsed.recursive.set, RDONLY | NOSUID);
        assert_eq!(parsed.attributes, MountAttributes::default());
    }
}
