//! Annotations that pods may carry: one typed definition per key. A key in our prefix that is not
//! here, or a value out of bounds, fails the pod with the key's name.

use std::collections::BTreeMap;

use podvisor_proto::quantity::{Quantity, QuantityError};
use podvisor_vmm::{MemorySize, Vcpus};
use thiserror::Error;

/// All our keys begin so.
pub const PREFIX: &str = "podvisor.io/";

/// What a pod asks for by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `cpus`: vCPUs at boot.
    pub cpus: Option<Vcpus>,
    /// `memory`: guest memory.
    pub memory: Option<MemorySize>,
    /// `kernel-args`: further words for the guest's kernel.
    pub kernel_args: Vec<String>,
}

/// An annotation that cannot be honoured.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AnnotationError {
    /// Nobody knows the key.
    #[error("unknown annotation {key}")]
    UnknownKey {
        /// The whole key.
        key: String,
    },
    /// The value is malformed or out of bounds.
    #[error("annotation {key}: {reason}")]
    Value {
        /// The whole key.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
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

/// Reads one key's value into its field.
type Read = fn(&mut Annotations, &str) -> Result<(), String>;

const KEYS: [(&str, Read); 3] = [
    ("cpus", |annotations, value| {
        let count: u32 = value
            .parse()
            .map_err(|_| format!("{value:?} is no number of CPUs"))?;
        annotations.cpus = Some(Vcpus::try_from(count).map_err(|e| e.to_string())?);
        Ok(())
    }),
    ("memory", |annotations, value| {
        let memory: Quantity = value.parse().map_err(|e: QuantityError| e.to_string())?;
        let memory = MemorySize::from_bytes(memory.bytes());
        annotations.memory = Some(memory.map_err(|e| e.to_string())?);
        Ok(())
    }),
    ("kernel-args", |annotations, value| {
        for word in value.split_ascii_whitespace() {
            if !KERNEL_WORDS.contains(&word) {
                return Err(format!("{word:?} is none of {}", KERNEL_WORDS.join(", ")));
            }
            annotations.kernel_args.push(word.to_owned());
        }
        Ok(())
    }),
];

impl Annotations {
    /// Takes ours out of all of a pod's annotations.
    ///
    /// # Errors
    /// [`AnnotationError`] for the first key that cannot be honoured.
    pub fn parse<'a>(
        all: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, AnnotationError> {
        let mut annotations = Self::default();
        let ours: BTreeMap<_, _> = all
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)))
            .collect();
        for (name, value) in ours {
            let key = format!("{PREFIX}{name}");
            let known = KEYS.iter().find(|(known, _)| *known == name);
            let Some((_, read)) = known else {
                return Err(AnnotationError::UnknownKey { key });
            };
            read(&mut annotations, value)
                .map_err(|reason| AnnotationError::Value { key, reason })?;
        }
        Ok(annotations)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Annotations, AnnotationError> {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Annotations::parse(&map)
    }

    #[test]
    fn known_keys_are_read_and_other_prefixes_are_not_ours() {
        let parsed = parse(&[
            ("podvisor.io/cpus", "2"),
            ("podvisor.io/memory", "256Mi"),
            ("podvisor.io/kernel-args", "quiet mitigations=off"),
            ("example.org/cpus", "many"),
        ])
        .unwrap();
        assert_eq!(parsed.cpus, Some(Vcpus::try_from(2).unwrap()));
        assert_eq!(
            parsed.memory,
            Some(MemorySize::from_bytes(256 << 20).unwrap())
        );
        assert_eq!(parsed.kernel_args, ["quiet", "mitigations=off"]);
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        for (key, value) in [
            ("podvisor.io/cpus", "many"),
            ("podvisor.io/cpus", "0"),
            ("podvisor.io/memory", "12parsecs"),
            ("podvisor.io/memory", "4096"),
            ("podvisor.io/kernel-args", "init=/bin/sh"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
        let error = parse(&[("podvisor.io/no-such-key", "1")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unknown annotation podvisor.io/no-such-key"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_value_is_taken_or_refused(name in "[a-z-]{0,12}", value in ".{0,30}") {
            let key = format!("{PREFIX}{name}");
            let _ = Annotations::parse([(&key, &value)]);
        }
    }
}
