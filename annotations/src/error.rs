//! Why annotations are refused. Every message names the key, what was given and what is allowed.

use std::fmt;

use thiserror::Error;

use crate::key::Key;

/// Characters of a value that a message repeats: enough to recognise it, too few to drown the reason.
const SHOWN_LEN: usize = 80;

/// A text that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{given:?} is not {expected}")]
pub struct ValueError {
    given: String,
    expected: String,
}

impl ValueError {
    /// `given` is not `expected`, which says what is allowed.
    pub(crate) fn new(given: &str, expected: impl Into<String>) -> Self {
        Self {
            given: shorten(given),
            expected: expected.into(),
        }
    }
}

/// Annotations that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AnnotationError {
    /// Nobody knows the key.
    #[error("unknown annotation {key}{}", Nearest(.nearest))]
    UnknownKey {
        /// The whole key.
        key: String,
        /// Keys that it may have been meant to be.
        nearest: Vec<Key>,
    },
    /// The value is malformed or out of bounds.
    #[error("annotation {key}: {reason}")]
    Value {
        /// The key.
        key: Key,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// The value does not go together with that of another key.
    #[error("annotation {key}: {value:?} does not go together with {other}: {rule}")]
    Conflict {
        /// The key.
        key: Key,
        /// Its value, shortened.
        value: String,
        /// The other key.
        other: Key,
        /// What is allowed.
        rule: String,
    },
    /// The node's configuration does not let pods use the key.
    #[error(
        "annotation {key}: {value:?} is given, but the node's configuration allows only {allowed}"
    )]
    NotAllowed {
        /// The key.
        key: Key,
        /// Its value, shortened.
        value: String,
        /// The keys that are allowed, for people.
        allowed: String,
    },
    /// The value is beyond what the node's configuration lets pods have.
    #[error("annotation {key}: {value:?} is beyond the node's bound of {bound}")]
    Beyond {
        /// The key.
        key: Key,
        /// Its value, shortened.
        value: String,
        /// The bound, for people.
        bound: String,
    },
}

impl AnnotationError {
    pub(crate) fn conflict(key: Key, value: &str, other: Key, rule: impl Into<String>) -> Self {
        Self::Conflict {
            key,
            value: shorten(value),
            other,
            rule: rule.into(),
        }
    }
}

/// A value as messages show it.
pub(crate) fn shorten(text: &str) -> String {
    let mut characters = text.chars();
    let mut short: String = characters.by_ref().take(SHOWN_LEN).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// What an unknown key may have been meant to be.
struct Nearest<'a>(&'a [Key]);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(": `podvisor explain` lists those that there are");
        }
        f.write_str(": is it meant to be ")?;
        for (index, key) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " or " };
            write!(f, "{separator}{key}")?;
        }
        Ok(())
    }
}
