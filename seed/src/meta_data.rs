//! `meta-data`: who a machine is.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Who a machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Tells cloud-init whether this is a machine's first boot: see [`instance_id`].
    pub instance_id: String,
    /// The host name, with the domain behind it where it has one.
    pub hostname: String,
    /// SSH keys of the default user, beside those of the user's data.
    pub ssh_keys: Vec<String>,
}

/// The user's meta-data cannot be used.
#[derive(Debug, Error)]
pub enum MetaDataError {
    /// It is not text.
    #[error("meta-data is not UTF-8")]
    Text(#[from] std::str::Utf8Error),
    /// It is no mapping of keys to values.
    #[error("meta-data is no YAML mapping")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot be written again.
    #[error("cannot write meta-data")]
    Write(#[from] serde_json::Error),
}

/// The instance-id of pod `namespace`/`name` on the disk that `disk` identifies.
///
/// The same machine on the same disk is the same instance: what cloud-init does once (SSH host keys,
/// users, partitions) is not done again. A copy of the disk is another one.
pub fn instance_id(namespace: &str, name: &str, disk: &str) -> String {
    let mut hash = Sha256::new();
    for part in [namespace, name, disk] {
        // No part can hold a zero byte, so none can look like two.
        hash.update(part);
        hash.update([0]);
    }
    let hash = hex::encode(hash.finalize());
    format!("podvisor-{}", hash.get(..32).unwrap_or(&hash))
}

/// The document: the user's keys, and ours where the user has none.
pub fn of(identity: &Identity, own: Option<&[u8]>) -> Result<String, MetaDataError> {
    let mut keys: Map<String, Value> = match own {
        Some(own) => parse(std::str::from_utf8(own)?)?,
        None => Map::new(),
    };
    let ours = [
        ("instance-id", json!(identity.instance_id)),
        ("local-hostname", json!(identity.hostname)),
        ("public-keys", json!(identity.ssh_keys)),
    ];
    for (key, value) in ours {
        keys.entry(key).or_insert(value);
    }
    Ok(serde_json::to_string_pretty(&keys)? + "\n")
}

fn parse(text: &str) -> Result<Map<String, Value>, MetaDataError> {
    let parsed: Option<Map<String, Value>> =
        serde_saphyr::from_str(text).map_err(|e| MetaDataError::Yaml(e.into()))?;
    Ok(parsed.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            instance_id: "id".into(),
            hostname: "web.prod".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA".into()],
        }
    }

    fn parsed(own: Option<&[u8]>) -> Value {
        serde_json::from_str(&of(&identity(), own).unwrap()).unwrap()
    }

    #[test]
    fn an_instance_is_a_machine_on_a_disk() {
        let id = instance_id("a", "b", "c");
        assert_eq!(id, instance_id("a", "b", "c"));
        assert_eq!(id.len(), "podvisor-".len() + 32);
        for other in [("a", "b", "d"), ("a", "bc", ""), ("ab", "", "c")] {
            assert_ne!(id, instance_id(other.0, other.1, other.2));
        }
    }

    #[test]
    fn the_users_keys_win_and_the_rest_is_filled_in() {
        assert_eq!(parsed(None)["local-hostname"], "web.prod");
        let own = b"instance-id: mine\nextra: {a: [1]}\n";
        let merged = parsed(Some(own));
        assert_eq!(merged["instance-id"], "mine");
        assert_eq!(merged["extra"], json!({"a": [1]}));
        assert_eq!(merged["public-keys"], json!(["ssh-ed25519 AAAA"]));
        assert_eq!(parsed(Some(b"# nothing\n"))["instance-id"], "id");
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for own in [&b"- a\n"[..], b"\xff", b"a: [", b"just text"] {
            assert!(of(&identity(), Some(own)).is_err(), "{own:?}");
        }
    }
}
