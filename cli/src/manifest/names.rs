//! Names that end up in paths, checked when they are read.

use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use thiserror::Error;

/// Why a text is not the name it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not a DNS subdomain.
    #[error(
        "{0:?} is not a name: lower case letters, digits, '-' and '.', at most 253 characters, \
         beginning and ending with a letter or digit"
    )]
    Name(String),
    /// Not a key.
    #[error("{0:?} is not a key: letters, digits, '-', '_' and '.', at most 253 characters")]
    Key(String),
    /// Not a path that stays in a volume.
    #[error("{0:?} is not a relative path without '..'")]
    RelativePath(String),
}

/// Name of an object, a container or a volume: a DNS subdomain (RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

/// Key of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Key(String);

/// A path below a volume's root.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RelativePath(String);

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let end = |byte: Option<&u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let middle = |byte: &u8| end(Some(byte)) || matches!(byte, b'-' | b'.');
        let valid = bytes.len() <= 253
            && end(bytes.first())
            && end(bytes.last())
            && bytes.iter().all(middle)
            && !text.contains("..");
        if valid {
            Ok(Self(text))
        } else {
            Err(NameError::Name(text))
        }
    }
}

impl TryFrom<String> for Key {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let valid = (1..=253).contains(&text.len())
            && text.chars().all(character)
            && !text.starts_with("..")
            && text != ".";
        if valid {
            Ok(Self(text))
        } else {
            Err(NameError::Key(text))
        }
    }
}

impl TryFrom<String> for RelativePath {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let normal = |component: Component<'_>| matches!(component, Component::Normal(_));
        let valid = !text.is_empty()
            && !text.contains('\0')
            && !text.starts_with("..")
            && Path::new(&text).components().all(normal);
        if valid {
            Ok(Self(text))
        } else {
            Err(NameError::RelativePath(text))
        }
    }
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RelativePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Key> for RelativePath {
    /// A key is the name of its file.
    fn from(key: &Key) -> Self {
        Self(key.0.clone())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_a_folder() {
        for text in ["web", "a", "a-b.c", "0"] {
            assert!(Name::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in ["", "..", "a/b", "-a", "a-", "A", "a..b", "a\0"] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(Name::try_from("a".repeat(254)).is_err());
    }

    #[test]
    fn keys_cannot_leave_a_folder() {
        for text in ["app.conf", "_x", ".hidden"] {
            assert!(Key::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in ["", ".", "..", "..data", "a/b"] {
            assert!(Key::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn relative_paths_stay_below_their_root() {
        for text in ["a", "a/b.conf"] {
            assert!(RelativePath::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in ["", "/a", "a/../b", "..data", "./a"] {
            assert!(RelativePath::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
