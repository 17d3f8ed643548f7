//! Annotations that pods may carry: one typed definition of every key, from which parsing, bounds,
//! documentation, schema and admission policy come. A key in our prefix that is not here, or a value
//! that is not allowed, fails the pod with the key's name.
//!
//! ```
//! use std::collections::BTreeMap;
//! use podvisor_annotations::Annotations;
//!
//! let pod = BTreeMap::from([("podvisor.io/cpus".to_owned(), "2".to_owned())]);
//! let annotations = Annotations::parse(&pod)?;
//! assert_eq!(annotations.cpus.map(|cpus| cpus.get()), Some(2));
//! # Ok::<(), podvisor_annotations::AnnotationError>(())
//! ```

mod annotations;
mod definition;
mod error;
#[cfg(test)]
mod generated;
mod key;
mod kind;
mod limits;
#[cfg(test)]
mod tests;
pub mod value;

pub use annotations::Annotations;
pub use definition::{Applies, DEFINITIONS, Definition};
pub use error::{AnnotationError, ValueError};
pub use key::{Key, PREFIX};
pub use kind::{Field, Kind, Word};
pub use limits::{Limits, Maxima};
