//! Values that are YAML, flow or block, within caps.

use serde::de::DeserializeOwned;
use serde_saphyr::{budget, options};

use crate::error::shorten;

/// Longest YAML value in bytes: far beyond what a machine of 31 devices needs.
pub const MAX_LEN: usize = 16 << 10;
/// Deepest nesting: a list of maps of scalars, and some more.
const MAX_DEPTH: usize = 8;
/// Most scalars, lists and maps together.
const MAX_NODES: usize = 4096;

/// Reads a value. The error names the place (`[1].pci`), what was given there and what is allowed.
///
/// # Errors
/// A text for people.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.len() > MAX_LEN {
        return Err(format!(
            "{} bytes of YAML: at most {MAX_LEN} are allowed",
            text.len()
        ));
    }
    let options = options! {
        budget: budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_anchors: 0,
            max_aliases: 0,
            max_documents: 1,
        },
        strict_booleans: true,
        with_snippet: false,
    };
    let mut path = None;
    let result =
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                path = Some(error.path().to_string());
                error.into_inner()
            })
        });
    let value: Option<T> = result.map_err(|error: serde_saphyr::Error| match path.as_deref() {
        None | Some(".") => error.to_string(),
        Some(path) => format!("{path}: {error}"),
    })?;
    value.ok_or_else(|| format!("{:?} is not YAML with anything in it", shorten(text)))
}

/// Reads a list of at most `max` entries.
///
/// # Errors
/// As [`read`].
pub fn read_list<T: DeserializeOwned>(text: &str, max: usize) -> Result<Vec<T>, String> {
    let list: Vec<T> = read(text)?;
    if list.len() > max {
        return Err(format!("{} entries: at most {max} are allowed", list.len()));
    }
    Ok(list)
}
