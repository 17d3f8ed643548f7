//! A GRUB script as a tree.

use std::rc::Rc;

use super::lexer::{Token, tokens};
use super::{GrubError, MAX_DEPTH};

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text { text: String, quoted: bool },
    /// A variable's value; split into words unless it is quoted.
    Variable { name: String, quoted: bool },
}

/// A word before its variables are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) parts: Vec<Part>,
}

impl Word {
    pub(super) fn push_text(&mut self, more: &str, quoted: bool) {
        if let Some(Part::Text { text, quoted: last }) = self.parts.last_mut()
            && *last == quoted
        {
            text.push_str(more);
            return;
        }
        self.parts.push(Part::Text {
            text: more.to_owned(),
            quoted,
        });
    }

    pub(super) fn push_char(&mut self, more: char, quoted: bool) {
        self.push_text(more.encode_utf8(&mut [0; 4]), quoted);
    }

    /// The word if it is plain text without quotes, as keywords are.
    fn keyword(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [
                Part::Text {
                    text,
                    quoted: false,
                },
            ] => Some(text),
            _ => None,
        }
    }

    /// Whether this is `name=…`.
    pub(super) fn is_assignment(&self) -> bool {
        let Some(Part::Text {
            text,
            quoted: false,
        }) = self.parts.first()
        else {
            return false;
        };
        let name = text.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    }
}

/// Commands in a row.
pub(super) type Block = Rc<[Node]>;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A simple one, with the block that follows its words, as menu entries have.
    Command {
        words: Vec<Word>,
        block: Option<Block>,
    },
    /// `if`, with a condition and a block for each branch.
    If {
        branches: Vec<(Block, Block)>,
        otherwise: Block,
    },
    /// `for name in words`.
    For {
        name: String,
        words: Vec<Word>,
        body: Block,
    },
    /// `while`, or `until` when the condition is negated.
    While {
        condition: Block,
        negated: bool,
        body: Block,
    },
    /// `function name { … }`.
    Function { name: String, body: Block },
}

/// Parses a script.
pub(super) fn parse(script: &str) -> Result<Block, GrubError> {
    let tokens = tokens(script)?;
    let mut parser = Parser {
        tokens: &tokens,
        depth: 0,
    };
    let (block, stopped_at) = parser.block(&[])?;
    match stopped_at {
        None => Ok(block),
        Some(_) => Err(GrubError::Unbalanced),
    }
}

/// What a block ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Keyword(&'static str),
    Close,
}

const CLOSE: &[Stop] = &[Stop::Close];
const THEN: &[Stop] = &[Stop::Keyword("then")];
const BRANCH_ENDS: &[Stop] = &[
    Stop::Keyword("elif"),
    Stop::Keyword("else"),
    Stop::Keyword("fi"),
];
const FI: &[Stop] = &[Stop::Keyword("fi")];
const DO: &[Stop] = &[Stop::Keyword("do")];
const DONE: &[Stop] = &[Stop::Keyword("done")];

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl Parser<'_> {
    /// Takes commands until one of `stops`, or the end.
    fn block(&mut self, stops: &[Stop]) -> Result<(Block, Option<Stop>), GrubError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(GrubError::TooDeep);
        }
        let mut nodes = Vec::new();
        let stopped_at = loop {
            match self.tokens.first() {
                None => break None,
                Some(Token::End) => self.advance(),
                Some(Token::Close) => {
                    self.advance();
                    if stops.contains(&Stop::Close) {
                        break Some(Stop::Close);
                    }
                    return Err(GrubError::Unbalanced);
                }
                Some(Token::Open) => return Err(GrubError::Unbalanced),
                Some(Token::Word(word)) => {
                    let keyword = word.keyword().unwrap_or_default();
                    let stop = stops
                        .iter()
                        .find(|stop| matches!(stop, Stop::Keyword(word) if *word == keyword));
                    if let Some(stop) = stop {
                        self.advance();
                        break Some(*stop);
                    }
                    nodes.push(self.node(keyword)?);
                }
            }
        };
        self.depth -= 1;
        if stopped_at.is_none() && !stops.is_empty() {
            return Err(GrubError::Unbalanced);
        }
        Ok((nodes.into(), stopped_at))
    }

    fn node(&mut self, keyword: &str) -> Result<Node, GrubError> {
        match keyword {
            "if" => {
                self.advance();
                self.conditional()
            }
            "for" => {
                self.advance();
                self.loop_over_words()
            }
            "while" | "until" => {
                self.advance();
                let (condition, _) = self.block(DO)?;
                let (body, _) = self.block(DONE)?;
                Ok(Node::While {
                    condition,
                    negated: keyword == "until",
                    body,
                })
            }
            "function" => {
                self.advance();
                let name = self.plain_word()?;
                while matches!(self.tokens.first(), Some(Token::End)) {
                    self.advance();
                }
                let Some(Token::Open) = self.tokens.first() else {
                    return Err(GrubError::Unbalanced);
                };
                self.advance();
                let (body, _) = self.block(CLOSE)?;
                Ok(Node::Function { name, body })
            }
            _ => self.command(),
        }
    }

    fn conditional(&mut self) -> Result<Node, GrubError> {
        let mut branches = Vec::new();
        loop {
            let (condition, _) = self.block(THEN)?;
            let (body, stop) = self.block(BRANCH_ENDS)?;
            branches.push((condition, body));
            let otherwise = match stop {
                Some(Stop::Keyword("elif")) => continue,
                Some(Stop::Keyword("else")) => self.block(FI)?.0,
                _ => Rc::default(),
            };
            return Ok(Node::If {
                branches,
                otherwise,
            });
        }
    }

    fn loop_over_words(&mut self) -> Result<Node, GrubError> {
        let name = self.plain_word()?;
        let mut words = Vec::new();
        let is_in = |token: Option<&Token>| matches!(token, Some(Token::Word(word)) if word.keyword() == Some("in"));
        if !is_in(self.tokens.first()) {
            return Err(GrubError::Unbalanced);
        }
        self.advance();
        while let Some(Token::Word(word)) = self.tokens.first() {
            words.push(word.clone());
            self.advance();
        }
        let (before, _) = self.block(DO)?;
        if !before.is_empty() {
            return Err(GrubError::Unbalanced);
        }
        let (body, _) = self.block(DONE)?;
        Ok(Node::For { name, words, body })
    }

    fn command(&mut self) -> Result<Node, GrubError> {
        let mut words = Vec::new();
        loop {
            match self.tokens.first() {
                Some(Token::Word(word)) => {
                    words.push(word.clone());
                    self.advance();
                }
                Some(Token::Open) => {
                    self.advance();
                    let (block, _) = self.block(CLOSE)?;
                    let block = Some(block);
                    return Ok(Node::Command { words, block });
                }
                // What closes the block around is for that to take.
                Some(Token::Close | Token::End) | None => {
                    return Ok(Node::Command { words, block: None });
                }
            }
        }
    }

    fn plain_word(&mut self) -> Result<String, GrubError> {
        let Some(Token::Word(word)) = self.tokens.first() else {
            return Err(GrubError::Unbalanced);
        };
        let word = word.keyword().ok_or(GrubError::Unbalanced)?.to_owned();
        self.advance();
        Ok(word)
    }

    fn advance(&mut self) {
        self.tokens = self.tokens.get(1..).unwrap_or_default();
    }
}
