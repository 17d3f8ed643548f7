//! The `test` command, also written `[ … ]`.

use std::cmp::Ordering;

use super::MAX_DEPTH;
use crate::tree::FileKind;

/// What a test may ask about files: `(device)/path` or `/path`.
pub(super) type Look<'a> = dyn Fn(&str) -> Option<FileKind> + 'a;

/// Whether the expression holds. One that makes no sense does not.
pub(super) fn holds(words: &[String], look: &Look<'_>) -> bool {
    let mut test = Test {
        words,
        look,
        depth: 0,
    };
    test.any().unwrap_or(false) && test.words.is_empty()
}

struct Test<'a> {
    words: &'a [String],
    look: &'a Look<'a>,
    depth: usize,
}

impl<'a> Test<'a> {
    /// Alternatives: `… -o …`.
    fn any(&mut self) -> Option<bool> {
        let mut result = self.all()?;
        while self.take_if("-o") {
            // Both sides are parsed, whatever the first said.
            let next = self.all()?;
            result = result || next;
        }
        Some(result)
    }

    /// A conjunction: `… -a …`, or terms side by side.
    fn all(&mut self) -> Option<bool> {
        let mut result = self.term()?;
        while self.take_if("-a") {
            let next = self.term()?;
            result = result && next;
        }
        Some(result)
    }

    fn term(&mut self) -> Option<bool> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let result = self.shallow_term();
        self.depth -= 1;
        result
    }

    fn shallow_term(&mut self) -> Option<bool> {
        // An operator between two words comes before everything else: `[ ! = ! ]`.
        if let [left, operator, right, ..] = self.words
            && let Some(result) = self.binary(left, operator, right)
        {
            self.skip(3);
            return Some(result);
        }
        if self.take_if("!") {
            return Some(!self.term()?);
        }
        if self.take_if("(") {
            let result = self.any()?;
            return self.take_if(")").then_some(result);
        }
        if let [operator, operand, ..] = self.words
            && let Some(result) = self.unary(operator, operand)
        {
            self.skip(2);
            return Some(result);
        }
        // A lone word is true unless it is empty.
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(!word.is_empty())
    }

    fn binary(&self, left: &str, operator: &str, right: &str) -> Option<bool> {
        let numbers = || number(left).cmp(&number(right));
        Some(match operator {
            "=" | "==" => left == right,
            "!=" => left != right,
            "<" => left < right,
            "<=" => left <= right,
            ">" => left > right,
            ">=" => left >= right,
            "-eq" => numbers() == Ordering::Equal,
            "-ne" => numbers() != Ordering::Equal,
            "-lt" => numbers() == Ordering::Less,
            "-le" => numbers() != Ordering::Greater,
            "-gt" => numbers() == Ordering::Greater,
            "-ge" => numbers() != Ordering::Less,
            // Which file is newer is not known.
            "-nt" | "-ot" => false,
            _ => return None,
        })
    }

    fn unary(&self, operator: &str, operand: &str) -> Option<bool> {
        let kind = || (self.look)(operand);
        Some(match operator {
            "-n" => !operand.is_empty(),
            "-z" => operand.is_empty(),
            "-e" => kind().is_some(),
            "-f" => matches!(kind(), Some(FileKind::File(_))),
            "-s" => matches!(kind(), Some(FileKind::File(len)) if len > 0),
            "-d" => kind() == Some(FileKind::Folder),
            _ => return None,
        })
    }

    fn take_if(&mut self, word: &str) -> bool {
        let found = self.words.first().is_some_and(|first| first == word);
        if found {
            self.skip(1);
        }
        found
    }

    fn skip(&mut self, count: usize) {
        self.words = self.words.get(count..).unwrap_or_default();
    }
}

/// A number as strtol(3) reads it: what is none counts as zero.
fn number(text: &str) -> i64 {
    let text = text.trim_start();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let value = digits.get(..end).unwrap_or_default().parse::<i64>();
    value.map_or(0, |value| sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str) -> bool {
        let words: Vec<String> = expression.split(' ').map(str::to_owned).collect();
        let look = |path: &str| match path {
            "/full" => Some(FileKind::File(3)),
            "/empty" => Some(FileKind::File(0)),
            "/folder" => Some(FileKind::Folder),
            _ => None,
        };
        holds(&words, &look)
    }

    #[test]
    fn files_words_and_numbers_are_tested() {
        for expression in [
            "a = a",
            "xy != x",
            "-s /full",
            "-f /empty",
            "-d /folder",
            "-e /folder",
            "! -s /empty",
            "3 -lt 12",
            "-n a -a -f /full",
            "-f /none -o -f /full",
            "( a = b ) -o ! ( a = b )",
            "! = !",
            "word",
        ] {
            assert!(check(expression), "{expression}");
        }
        for expression in [
            "a = b",
            "-s /empty",
            "-f /folder",
            "12 -lt 3",
            "",
            "( a",
            "a = a b",
        ] {
            assert!(!check(expression), "{expression}");
        }
    }
}
