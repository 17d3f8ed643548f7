//! GRUB's configuration: a shell script. An interpreter of as much of it as the configurations of
//! distributions use, with a bound on everything that a script could make large.

mod commands;
mod condition;
mod interpreter;
mod lexer;
mod menu;
mod script;
mod search;
#[cfg(test)]
mod tests;
mod variables;

use crate::tree::ReadError;
use crate::volume::{Entry, Volume};

use interpreter::Interpreter;

/// Longest word of a script as it is written, in bytes.
const MAX_WORD_LEN: usize = 64 << 10;
/// Longest value of a variable, and of a command's words together.
const MAX_VALUE_LEN: usize = 64 << 10;
/// Most variables at a time.
const MAX_VARIABLES: usize = 1024;
/// Length of all of them, which every menu entry has a copy of while it runs.
const MAX_VARIABLES_LEN: usize = 1 << 20;
/// Nesting of blocks, functions, tests and files.
const MAX_DEPTH: usize = 24;
/// Commands executed for one configuration: a loop ends here. A menu of a hundred kernels takes
/// some thousand.
const MAX_STEPS: usize = 50_000;
/// Bytes of words that commands are given altogether.
const MAX_EXPANSION: usize = 16 << 20;
/// Files that a configuration includes.
const MAX_FILES: usize = 64;
/// Entries of all menus together.
const MAX_ENTRIES: usize = 512;

/// Why a configuration cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// The file.
    #[error("{path} {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: ReadError,
    },
    /// Quotes that are not closed.
    #[error("a quoted word has no end")]
    Unterminated,
    /// Blocks and keywords that do not match.
    #[error("its blocks are not balanced")]
    Unbalanced,
    /// A bound.
    #[error("a word is longer than {MAX_WORD_LEN} bytes")]
    WordTooLong,
    /// A bound.
    #[error("a value is longer than {MAX_VALUE_LEN} bytes")]
    ValueTooLong,
    /// A bound.
    #[error(
        "it has more than {MAX_VARIABLES} variables, or more than {MAX_VARIABLES_LEN} bytes of them"
    )]
    TooManyVariables,
    /// A bound.
    #[error("it is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A bound.
    #[error("it does not end within {MAX_STEPS} commands")]
    TooLong,
    /// A bound.
    #[error("it includes more than {MAX_FILES} files")]
    TooManyFiles,
    /// A bound.
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
}

/// What a configuration offers.
#[derive(Debug, Default)]
pub struct GrubMenu {
    /// The Linux entries; the default one first, the others in the menu's order.
    pub entries: Vec<Entry>,
    /// Entries that boot no Linux from these volumes, and why, in words.
    pub unusable: Vec<String>,
}

/// Executes the configuration `path` of a volume.
///
/// # Errors
///
/// [`GrubError`].
pub fn menu(volumes: &[Volume], volume: usize, path: &str) -> Result<GrubMenu, GrubError> {
    let mut interpreter = Interpreter::new(volumes, volume, path)?;
    interpreter.run_file(volume, path)?;
    interpreter.into_menu()
}
