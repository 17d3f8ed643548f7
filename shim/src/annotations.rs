//! What pods ask for by annotations, in the terms of their machine. Keys and values are defined in
//! `podvisor_annotations`; a key that this server does not carry out fails the pod.

use podvisor_annotations as api;
use podvisor_annotations::{AnnotationError, Key, Limits};
use podvisor_vmm::{ConfigError, MemorySize, Vcpus};
use thiserror::Error;

pub use podvisor_annotations::PREFIX;

/// Keys that this server does not carry out.
const NOT_SUPPORTED: [Key; 20] = [
    Key::MaxCpus,
    Key::MaxMemory,
    Key::CpuTopology,
    Key::CpuModel,
    Key::CpuPinning,
    Key::Numa,
    Key::Hugepages,
    Key::Boot,
    Key::Disks,
    Key::Nics,
    Key::BootOrder,
    Key::CloudInit,
    Key::SshKeys,
    Key::Smbios,
    Key::Console,
    Key::Rng,
    Key::Balloon,
    Key::OnPoweroff,
    Key::OnReboot,
    Key::Watchdog,
];

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

/// Annotations that this server cannot honour.
#[derive(Debug, Error)]
pub enum RefusedAnnotation {
    /// A key or value is wrong, or the node does not allow it.
    #[error(transparent)]
    Wrong(#[from] AnnotationError),
    /// Nothing here does what the key says.
    #[error("annotation {key}: {value:?} is given, but the key is not supported by this shim")]
    NotSupported {
        /// The key.
        key: Key,
        /// Its value.
        value: String,
    },
    /// No machine can have the value.
    #[error("annotation {key}")]
    Machine {
        /// The key.
        key: Key,
        /// What a machine can have.
        source: ConfigError,
    },
}

impl Annotations {
    /// Takes ours out of all of a pod's annotations, within the node's `limits`.
    ///
    /// # Errors
    /// [`RefusedAnnotation`] for the first key that cannot be honoured.
    pub fn parse<'a>(
        all: impl IntoIterator<Item = (&'a String, &'a String)>,
        limits: &Limits,
    ) -> Result<Self, RefusedAnnotation> {
        let parsed = api::Annotations::parse(all)?;
        limits.check(&parsed)?;
        let mut given = parsed.given.iter();
        if let Some((key, value)) = given.find(|(key, _)| NOT_SUPPORTED.contains(key)) {
            return Err(RefusedAnnotation::NotSupported {
                key: *key,
                value: value.clone(),
            });
        }
        Ok(Self {
            cpus: for_machine(Key::Cpus, parsed.cpus, |cpus| {
                Vcpus::try_from(u32::from(cpus.get()))
            })?,
            memory: for_machine(Key::Memory, parsed.memory, |memory| {
                MemorySize::from_bytes(memory.bytes())
            })?,
            kernel_args: words(&parsed.kernel_args),
        })
    }
}

fn for_machine<T, M>(
    key: Key,
    value: Option<T>,
    convert: impl FnOnce(T) -> Result<M, ConfigError>,
) -> Result<Option<M>, RefusedAnnotation> {
    let converted = value.map(convert).transpose();
    converted.map_err(|source| RefusedAnnotation::Machine { key, source })
}

fn words(args: &api::value::guest::KernelArgs) -> Vec<String> {
    let words = args.words().iter();
    words.map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Annotations, RefusedAnnotation> {
        let map: BTreeMap<String, String> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Annotations::parse(&map, &Limits::default())
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

    #[test]
    fn what_is_not_carried_out_is_refused_with_a_good_value_too() {
        for key in NOT_SUPPORTED {
            for example in key.definition().examples {
                let error = parse(&[(&key.to_string(), example)]).unwrap_err();
                assert!(
                    matches!(error, RefusedAnnotation::NotSupported { key: refused, .. } if refused == key),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn the_bounds_of_the_keys_are_those_of_the_machine() {
        assert_eq!(
            api::value::memory::MemorySize::MAX,
            MemorySize::MAX,
            "MemorySize::MAX"
        );
        assert_eq!(
            api::value::memory::MemorySize::MIN,
            MemorySize::MIN,
            "MemorySize::MIN"
        );
        assert_eq!(api::value::cpu::Vcpus::MAX.get(), Vcpus::MAX);
    }

    #[test]
    fn the_nodes_limits_hold() {
        let limits: Limits = toml::from_str("allow = [\"cpus\"]\nmax.cpus = 4").unwrap();
        let pod = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        Annotations::parse(&pod("podvisor.io/cpus", "4"), &limits).unwrap();
        for (key, value, bound) in [
            ("podvisor.io/cpus", "5", "4"),
            ("podvisor.io/memory", "1Gi", "cpus"),
        ] {
            let error = Annotations::parse(&pod(key, value), &limits).unwrap_err();
            let error = error.to_string();
            for part in [key, value, bound] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
