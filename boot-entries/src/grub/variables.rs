//! Variables of a GRUB script, and the block they are saved in.

use std::collections::BTreeMap;

use super::{GrubError, MAX_VALUE_LEN, MAX_VARIABLES, MAX_VARIABLES_LEN};

/// First line of a saved environment (GRUB manual, "The GRUB environment block").
const SAVED_SIGNATURE: &str = "# GRUB Environment Block\n";

/// What scripts ask for to learn which GRUB runs them: a recent one, on a BIOS.
const FEATURES: &[(&str, &str)] = &[
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_timeout_style", "y"),
    ("feature_default_font_path", "y"),
    ("feature_all_video_module", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_200_final", "y"),
    ("feature_nativedisk_cmd", "y"),
    ("grub_platform", "pc"),
    ("grub_cpu", "i386"),
];

/// Names and values.
#[derive(Debug, Clone)]
pub(super) struct Variables {
    values: BTreeMap<String, String>,
    /// Length of all names and values.
    len: usize,
}

impl Variables {
    pub(super) fn new() -> Self {
        let values = FEATURES
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self {
            values: values.collect(),
            len: 0,
        }
    }

    /// The value, empty when there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), GrubError> {
        if name.len() + value.len() > MAX_VALUE_LEN {
            return Err(GrubError::ValueTooLong);
        }
        if self.values.len() >= MAX_VARIABLES && !self.values.contains_key(name) {
            return Err(GrubError::TooManyVariables);
        }
        let before = self
            .values
            .get(name)
            .map_or(0, |old| name.len() + old.len());
        let len = self.len.saturating_sub(before) + name.len() + value.len();
        if len > MAX_VARIABLES_LEN {
            return Err(GrubError::TooManyVariables);
        }
        self.len = len;
        self.values.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(old) = self.values.remove(name) {
            self.len = self.len.saturating_sub(name.len() + old.len());
        }
    }
}

/// The variables of a saved environment; `None` when it is none.
pub(super) fn saved(block: &str) -> Option<Vec<(String, String)>> {
    let lines = block.strip_prefix(SAVED_SIGNATURE)?;
    let mut variables = Vec::new();
    for line in joined_lines(lines) {
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    Some(variables)
}

/// Lines, where a backslash keeps the character after it, be it a line's end.
fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, lines.last_mut()) {
            ('\n', _) => lines.push(String::new()),
            ('\\', Some(line)) => line.extend(characters.next()),
            (_, Some(line)) => line.push(character),
            (_, None) => {}
        }
    }
    lines
}
