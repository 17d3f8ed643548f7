//! What a machine's user says of it, as it is: cloud-config, script, several parts, or compressed.

use thiserror::Error;

/// The largest document of a user: what a Secret or ConfigMap can hold.
pub const DOCUMENT_LEN_MAX: usize = 1 << 20;

/// Names of the documents in a volume: cloud-init's own, with an ending for editors, and those that
/// KubeVirt's users know.
const USER_DATA: &[&str] = &["user-data", "user-data.yaml", "userdata", "userData"];
const META_DATA: &[&str] = &["meta-data", "meta-data.yaml", "metadata", "metaData"];
const NETWORK_CONFIG: &[&str] = &[
    "network-config",
    "network-config.yaml",
    "networkdata",
    "networkData",
];

/// A user's documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserData {
    /// `user-data`; empty for none.
    pub user_data: Vec<u8>,
    /// `meta-data`, whose keys win over ours.
    pub meta_data: Option<Vec<u8>>,
    /// `network-config`, which takes the place of ours.
    pub network_config: Option<Vec<u8>>,
}

/// Documents that cannot be given to a machine.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserDataError {
    /// Too many bytes.
    #[error("{name} has {len} bytes; the limit is {DOCUMENT_LEN_MAX}")]
    TooLarge {
        /// The document.
        name: String,
        /// Its length.
        len: usize,
    },
    /// Two names for one document.
    #[error("{one} and {other} are both there, and mean the same")]
    Twice {
        /// One.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Not a document of the three.
    #[error("there is none of {}", USER_DATA.join(", "))]
    Missing,
}

impl UserData {
    /// User data alone.
    ///
    /// # Errors
    /// [`UserDataError::TooLarge`].
    pub fn inline(text: &str) -> Result<Self, UserDataError> {
        Ok(Self {
            user_data: checked("user-data", text.as_bytes())?,
            ..Self::default()
        })
    }

    /// The documents among the files of a volume, by their names.
    ///
    /// # Errors
    /// [`UserDataError`], also when there is no user data among them.
    pub fn from_files<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a [u8])> + Clone,
    ) -> Result<Self, UserDataError> {
        Ok(Self {
            user_data: find(files.clone(), USER_DATA)?.ok_or(UserDataError::Missing)?,
            meta_data: find(files.clone(), META_DATA)?,
            network_config: find(files, NETWORK_CONFIG)?,
        })
    }
}

fn find<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    names: &[&'static str],
) -> Result<Option<Vec<u8>>, UserDataError> {
    let mut found: Option<(&'static str, &[u8])> = None;
    for (name, content) in files {
        let Some(&known) = names.iter().find(|known| **known == name) else {
            continue;
        };
        if let Some((one, _)) = found {
            return Err(UserDataError::Twice { one, other: known });
        }
        found = Some((known, content));
    }
    found
        .map(|(name, content)| checked(name, content))
        .transpose()
}

fn checked(name: &str, content: &[u8]) -> Result<Vec<u8>, UserDataError> {
    if content.len() > DOCUMENT_LEN_MAX {
        return Err(UserDataError::TooLarge {
            name: name.to_owned(),
            len: content.len(),
        });
    }
    Ok(content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_found_by_any_of_their_names() {
        let files: [(&str, &[u8]); 3] = [
            ("networkdata", b"version: 2"),
            ("userData", b"#cloud-config"),
            ("other", b"x"),
        ];
        let data = UserData::from_files(files).unwrap();
        assert_eq!(data.user_data, b"#cloud-config");
        assert_eq!(data.network_config.as_deref(), Some(&b"version: 2"[..]));
        assert_eq!(data.meta_data, None);
    }

    #[test]
    fn what_is_missing_ambiguous_or_too_large_is_named() {
        let none: [(&str, &[u8]); 1] = [("meta-data", b"")];
        let error = UserData::from_files(none).unwrap_err().to_string();
        assert!(error.contains("user-data, user-data.yaml"), "{error}");
        let two: [(&str, &[u8]); 2] = [("user-data", b""), ("userdata", b"")];
        let error = UserData::from_files(two).unwrap_err().to_string();
        assert!(error.contains("user-data and userdata"), "{error}");
        let large = vec![0; DOCUMENT_LEN_MAX + 1];
        let error = UserData::from_files([("userdata", large.as_slice())])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "userdata has 1048577 bytes; the limit is 1048576");
    }
}
