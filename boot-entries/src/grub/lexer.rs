//! Words of a GRUB script (GRUB manual, "Shell-like scripting").

use super::script::{Part, Word};
use super::{GrubError, MAX_WORD_LEN};

/// What a script consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A word; what it stands for is known when it is executed.
    Word(Word),
    /// End of a command: a line's end or a semicolon.
    End,
    /// `{`
    Open,
    /// `}`
    Close,
}

/// Splits a script into tokens.
pub(super) fn tokens(script: &str) -> Result<Vec<Token>, GrubError> {
    let mut lexer = Lexer {
        rest: script,
        tokens: Vec::new(),
    };
    while lexer.step()? {}
    lexer.tokens.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    /// Takes one token, or space; false at the end.
    fn step(&mut self) -> Result<bool, GrubError> {
        let Some(next) = self.rest.chars().next() else {
            return Ok(false);
        };
        match next {
            '\n' | ';' => self.single(Token::End),
            '{' => self.single(Token::Open),
            '}' => self.single(Token::Close),
            '#' => {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.advance(end);
            }
            '\\' if self.rest.starts_with("\\\n") => self.advance(2),
            space if space.is_whitespace() => self.advance(space.len_utf8()),
            _ => {
                let word = self.word()?;
                self.tokens.push(Token::Word(word));
            }
        }
        Ok(true)
    }

    fn single(&mut self, token: Token) {
        self.tokens.push(token);
        self.advance(1);
    }

    fn advance(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    fn word(&mut self) -> Result<Word, GrubError> {
        let mut word = Word::default();
        let mut len = 0;
        while let Some(next) = self.rest.chars().next() {
            let before = self.rest.len();
            match next {
                '\n' | ';' | '{' | '}' => break,
                space if space.is_whitespace() => break,
                '\'' => self.single_quoted(&mut word)?,
                '"' => self.double_quoted(&mut word)?,
                '\\' => self.escaped(&mut word),
                '$' => self.variable(&mut word, false),
                other => {
                    word.push_char(other, false);
                    self.advance(other.len_utf8());
                }
            }
            len += before - self.rest.len();
            if len > MAX_WORD_LEN {
                return Err(GrubError::WordTooLong);
            }
        }
        Ok(word)
    }

    fn single_quoted(&mut self, word: &mut Word) -> Result<(), GrubError> {
        self.advance(1);
        let end = self.rest.find('\'').ok_or(GrubError::Unterminated)?;
        word.push_text(self.rest.get(..end).unwrap_or_default(), true);
        self.advance(end + 1);
        Ok(())
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), GrubError> {
        self.advance(1);
        // An empty pair of quotes is a word, too.
        word.push_text("", true);
        loop {
            match self.rest.chars().next().ok_or(GrubError::Unterminated)? {
                '"' => {
                    self.advance(1);
                    return Ok(());
                }
                '$' => self.variable(word, true),
                '\\' => {
                    let kept = self.rest.chars().nth(1);
                    match kept {
                        Some('\n') => self.advance(2),
                        Some(special @ ('$' | '"' | '\\')) => {
                            word.push_char(special, true);
                            self.advance(2);
                        }
                        _ => {
                            word.push_char('\\', true);
                            self.advance(1);
                        }
                    }
                }
                other => {
                    word.push_char(other, true);
                    self.advance(other.len_utf8());
                }
            }
        }
    }

    fn escaped(&mut self, word: &mut Word) {
        self.advance(1);
        if let Some(kept) = self.rest.chars().next() {
            if kept != '\n' {
                word.push_char(kept, true);
            }
            self.advance(kept.len_utf8());
        }
    }

    /// `$name`, `${name}`, `$1`, `$?`, `$@`, `$*`, `$#`; anything else is a dollar sign.
    fn variable(&mut self, word: &mut Word, quoted: bool) {
        self.advance(1);
        let (name, len) = variable_name(self.rest);
        if len == 0 {
            word.push_char('$', quoted);
        } else {
            word.parts.push(Part::Variable {
                name: name.to_owned(),
                quoted,
            });
        }
        self.advance(len);
    }
}

/// The name at the start of `text`, and how long it is with its braces.
fn variable_name(text: &str) -> (&str, usize) {
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.split_once('}') {
            Some((name, _)) => (name, name.len() + 2),
            None => ("", 0),
        };
    }
    let first = text.chars().next().unwrap_or(' ');
    let len = if first.is_ascii_alphabetic() || first == '_' {
        text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len())
    } else if first.is_ascii_digit() {
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len())
    } else {
        usize::from("?@*#".contains(first))
    };
    (text.get(..len).unwrap_or_default(), len)
}
