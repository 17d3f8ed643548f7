//! What values look like, as data: parsers, documentation, schema and admission policy agree because
//! each is made from it.

use std::fmt;

use crate::value::readable_bytes;

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, both bounds included.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// An amount as Kubernetes writes it (`512Mi`), both bounds included, in bytes.
    Quantity {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// `true` or `false`.
    Switch,
    /// One word of several.
    Choice(&'static [Word]),
    /// Words of a list, separated by spaces.
    Words(&'static [&'static str]),
    /// A text in the form of a regular expression (RE2).
    Text {
        /// The expression; it matches the whole text.
        pattern: &'static str,
        /// The longest text in bytes.
        max_len: usize,
        /// What is allowed, for people.
        what: &'static str,
    },
    /// A YAML list of one kind.
    List {
        /// What its entries are.
        of: &'static Kind,
        /// The most entries.
        max: usize,
    },
    /// A YAML map with these fields.
    Map(&'static [Field]),
}

/// A word that a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// A field of a YAML map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// The form of its value.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// What it means.
    pub meaning: &'static str,
}

impl Field {
    pub(crate) const fn required(name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        Self {
            name,
            kind,
            required: true,
            meaning,
        }
    }

    pub(crate) const fn optional(name: &'static str, kind: Kind, meaning: &'static str) -> Self {
        Self {
            name,
            kind,
            required: false,
            meaning,
        }
    }
}

impl fmt::Display for Kind {
    /// What is allowed, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { min, max } => write!(f, "{min} to {max}"),
            Self::Quantity { min, max } => {
                let (min, max) = (readable_bytes(*min), readable_bytes(*max));
                write!(f, "quantity, {min} to {max}")
            }
            Self::Switch => f.write_str("true or false"),
            Self::Choice(words) => {
                let words: Vec<&str> = words.iter().map(|word| word.word).collect();
                f.write_str(&words.join(", "))
            }
            Self::Words(words) => write!(f, "words of {}, separated by spaces", words.join(", ")),
            Self::Text { what, .. } => f.write_str(what),
            Self::List { of, max } => write!(f, "YAML list of at most {max}: {of}"),
            Self::Map(fields) => {
                let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
                write!(f, "map {{{}}}", names.join(", "))
            }
        }
    }
}
