//! What a node's administrator lets pods ask for, by runtime class.

use serde::Deserialize;

use crate::Annotations;
use crate::error::{AnnotationError, shorten};
use crate::key::Key;
use crate::value::cpu::{CpuTopology, Vcpus};
use crate::value::guest::RngRate;
use crate::value::memory::MemorySize;

/// The table `[annotations]` of a node's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The keys that pods may use; all without.
    pub allow: Option<Vec<Key>>,
    /// The most that pods may ask for.
    pub max: Maxima,
}

/// The table `[annotations.max]`. A value that is not there is bounded by its key's definition alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maxima {
    /// vCPUs: of `cpus`, `max-cpus` and the product of `cpu-topology`.
    pub cpus: Option<Vcpus>,
    /// Guest memory: of `memory` and `max-memory`.
    pub memory: Option<MemorySize>,
    /// Bytes a second: of `rng`.
    pub rng: Option<RngRate>,
    /// Entries of `disks`.
    pub disks: Option<usize>,
    /// Entries of `nics`.
    pub nics: Option<usize>,
}

impl Limits {
    /// Checks what a pod asks for.
    ///
    /// # Errors
    /// [`AnnotationError::NotAllowed`], [`AnnotationError::Beyond`].
    pub fn check(&self, annotations: &Annotations) -> Result<(), AnnotationError> {
        self.check_keys(annotations)?;
        let Maxima {
            cpus,
            memory,
            rng,
            disks,
            nics,
        } = &self.max;
        let bounds = [
            (Key::Cpus, beyond(annotations.cpus, *cpus)),
            (Key::MaxCpus, beyond(annotations.max_cpus, *cpus)),
            (
                Key::CpuTopology,
                beyond(annotations.cpu_topology.map(CpuTopology::vcpus), *cpus),
            ),
            (Key::Memory, beyond(annotations.memory, *memory)),
            (Key::MaxMemory, beyond(annotations.max_memory, *memory)),
            (Key::Rng, beyond(annotations.rng, *rng)),
            (Key::Disks, beyond(Some(annotations.disks.len()), *disks)),
            (Key::Nics, beyond(Some(annotations.nics.len()), *nics)),
        ];
        let first = bounds
            .into_iter()
            .find_map(|(key, bound)| Some((key, bound?)));
        match first {
            Some((key, bound)) => Err(AnnotationError::Beyond {
                key,
                value: value_of(annotations, key),
                bound,
            }),
            None => Ok(()),
        }
    }

    fn check_keys(&self, annotations: &Annotations) -> Result<(), AnnotationError> {
        let Some(allow) = &self.allow else {
            return Ok(());
        };
        let Some(key) = annotations.given.keys().find(|key| !allow.contains(key)) else {
            return Ok(());
        };
        let allowed = match allow.as_slice() {
            [] => "none".to_owned(),
            keys => keys
                .iter()
                .map(|key| key.name())
                .collect::<Vec<_>>()
                .join(", "),
        };
        Err(AnnotationError::NotAllowed {
            key: *key,
            value: value_of(annotations, *key),
            allowed,
        })
    }
}

/// The bound for people, when the value is beyond it.
fn beyond<T: PartialOrd + ToString>(value: Option<T>, bound: Option<T>) -> Option<String> {
    match (value, bound) {
        (Some(value), Some(bound)) if value > bound => Some(bound.to_string()),
        _ => None,
    }
}

fn value_of(annotations: &Annotations, key: Key) -> String {
    shorten(
        annotations
            .given
            .get(&key)
            .map(String::as_str)
            .unwrap_or_default(),
    )
}
