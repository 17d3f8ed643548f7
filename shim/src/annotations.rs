//! What pods ask for by annotations. Keys and values are defined in `podvisor_annotations`.

use std::collections::HashMap;

use podvisor_annotations::{AnnotationError, Annotations, Key, Limits};
use thiserror::Error;

/// Annotations that this server cannot honour.
#[derive(Debug, Error)]
pub enum RefusedAnnotation {
    /// A key or value is wrong, or the node does not allow it.
    #[error(transparent)]
    Wrong(#[from] AnnotationError),
    /// The pod is none of those that the key is for.
    #[error("annotation {key}: {value:?} is given, but the pod's container is not a machine")]
    NoMachine {
        /// The key.
        key: Key,
        /// Its value.
        value: String,
    },
}

/// Takes ours out of all of a pod's annotations.
///
/// # Errors
/// [`RefusedAnnotation`] for the first one that cannot be honoured.
pub fn read(
    all: &HashMap<String, String>,
    limits: &Limits,
) -> Result<Annotations, RefusedAnnotation> {
    let annotations = Annotations::parse(all)?;
    limits.check(&annotations)?;
    Ok(annotations)
}

/// Makes sure that an ordinary container's pod asks for nothing that only a machine has.
///
/// # Errors
/// [`RefusedAnnotation::NoMachine`].
pub fn for_containers(annotations: &Annotations) -> Result<(), RefusedAnnotation> {
    match annotations.for_machines_only().next() {
        Some(key) => Err(RefusedAnnotation::NoMachine {
            key,
            value: annotations.given.get(&key).cloned().unwrap_or_default(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(key: &str, value: &str) -> Result<Annotations, RefusedAnnotation> {
        let all = HashMap::from([(key.to_owned(), value.to_owned())]);
        read(&all, &Limits::default())
    }

    #[test]
    fn errors_name_the_key_and_the_value() {
        for (key, value) in [
            ("podvisor.io/cpus", "many"),
            ("podvisor.io/memory", "12parsecs"),
            ("podvisor.io/kernel-args", "init=/bin/sh"),
        ] {
            let error = read_one(key, value).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn what_only_machines_have_is_refused_for_containers() {
        let machine = read_one("podvisor.io/on-reboot", "stop").unwrap();
        let error = for_containers(&machine).unwrap_err().to_string();
        assert!(error.contains("podvisor.io/on-reboot"), "{error}");
        assert!(for_containers(&read_one("podvisor.io/cpus", "2").unwrap()).is_ok());
    }

    #[test]
    fn a_nodes_bounds_hold() {
        let limits = Limits {
            allow: Some(vec![Key::Memory]),
            ..Limits::default()
        };
        let all = HashMap::from([("podvisor.io/cpus".to_owned(), "2".to_owned())]);
        let error = read(&all, &limits).unwrap_err().to_string();
        assert!(error.contains("podvisor.io/cpus"), "{error}");
    }
}
