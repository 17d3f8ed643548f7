//! LVM's configuration syntax: sections, and keys with numbers, texts or lists of them.

use super::metadata::MetadataError;

/// Nesting of sections: group, kind, volume, segment.
const MAX_DEPTH: usize = 8;
/// Most sections, values and list elements altogether.
const MAX_ITEMS: usize = 100_000;

/// A section's contents, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) sections: Vec<(String, Section)>,
    pub(super) values: Vec<(String, Value)>,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Section {
    pub(super) fn section(&self, name: &str) -> Option<&Self> {
        let mut found = self.sections.iter().filter(|(of, _)| of == name);
        found.next().map(|(_, section)| section)
    }

    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        let mut found = self.values.iter().filter(|(of, _)| of == name);
        found.next().map(|(_, value)| value)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) | Value::List(_) => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::List(_) => None,
        }
    }

    pub(super) fn list(&self, name: &str) -> &[Value] {
        match self.value(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }
}

/// Parses a file.
pub(super) fn parse(text: &str) -> Result<Section, MetadataError> {
    let mut parser = Parser {
        rest: text,
        items_left: MAX_ITEMS,
    };
    parser.section(0)
}

struct Parser<'a> {
    rest: &'a str,
    items_left: usize,
}

impl<'a> Parser<'a> {
    /// Contents up to the brace that closes them, or the end of the file at depth 0.
    fn section(&mut self, depth: usize) -> Result<Section, MetadataError> {
        if depth > MAX_DEPTH {
            return Err(MetadataError::Syntax);
        }
        let mut section = Section::default();
        loop {
            self.skip_space();
            // The file ends in the area's zeros.
            if depth == 0 && (self.rest.is_empty() || self.rest.starts_with('\0')) {
                return Ok(section);
            }
            if depth > 0 && self.take("}") {
                return Ok(section);
            }
            self.count()?;
            let name = self.word()?.to_owned();
            self.skip_space();
            if self.take("{") {
                let inner = self.section(depth + 1)?;
                section.sections.push((name, inner));
            } else if self.take("=") {
                let value = self.value()?;
                section.values.push((name, value));
            } else {
                return Err(MetadataError::Syntax);
            }
        }
    }

    fn value(&mut self) -> Result<Value, MetadataError> {
        self.skip_space();
        if !self.take("[") {
            return self.scalar();
        }
        let mut list = Vec::new();
        loop {
            self.skip_space();
            if self.take("]") {
                return Ok(Value::List(list));
            }
            list.push(self.scalar()?);
            self.skip_space();
            self.take(",");
        }
    }

    fn scalar(&mut self) -> Result<Value, MetadataError> {
        self.count()?;
        if self.take("\"") {
            return self.quoted();
        }
        let word = self.word()?;
        // Times and floating numbers matter to nobody here.
        Ok(word
            .parse()
            .map_or_else(|_| Value::Text(word.to_owned()), Value::Number))
    }

    fn quoted(&mut self) -> Result<Value, MetadataError> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Value::Text(text));
                }
                '\\' => text.extend(characters.next().map(|(_, kept)| kept)),
                other => text.push(other),
            }
        }
        Err(MetadataError::Syntax)
    }

    fn word(&mut self) -> Result<&'a str, MetadataError> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.+/".contains(c);
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.is_empty() {
            return Err(MetadataError::Syntax);
        }
        Ok(word)
    }

    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.rest = self.rest.get(end..).unwrap_or_default();
        }
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn count(&mut self) -> Result<(), MetadataError> {
        self.items_left = self
            .items_left
            .checked_sub(1)
            .ok_or(MetadataError::TooLong)?;
        Ok(())
    }
}
