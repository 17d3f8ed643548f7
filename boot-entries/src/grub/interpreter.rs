//! Executes scripts.

use std::collections::HashMap;
use std::rc::Rc;

use super::script::{Block, Node, Part, Word, parse};
use super::variables::Variables;
use super::{
    GrubError, MAX_DEPTH, MAX_ENTRIES, MAX_EXPANSION, MAX_FILES, MAX_STEPS, MAX_VALUE_LEN,
};
use crate::tree::read_config;
use crate::volume::{Entry, File, Volume};

/// How a command went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// It succeeded or failed.
    Done(bool),
    /// The loop around ends.
    Break,
    /// The loop around begins its next round.
    Continue,
    /// The function or file around ends.
    Return(bool),
}

/// An item of a menu, before it is chosen.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// `menuentry` or `submenu`; which it is shows when it runs.
    Block {
        id: String,
        title: String,
        body: Block,
    },
    /// An entry of the Boot Loader Specification, put here by `blscfg`.
    Ready(Entry),
}

/// What the commands of an entry have loaded.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub(super) kernel: Option<File>,
    pub(super) args: String,
    pub(super) initrds: Vec<File>,
    /// Why what it loads is of no use.
    pub(super) refused: Option<String>,
}

/// The state of a running configuration.
pub(super) struct Interpreter<'a> {
    pub(super) volumes: &'a [Volume],
    pub(super) variables: Variables,
    functions: HashMap<String, Block>,
    /// Words of the function that runs.
    arguments: Vec<String>,
    pub(super) status: bool,
    pub(super) items: Vec<Item>,
    pub(super) loaded: Loaded,
    entries_left: usize,
    steps_left: usize,
    expansion_left: usize,
    files_left: usize,
    depth: usize,
}

impl<'a> Interpreter<'a> {
    /// A fresh GRUB that was installed beside the configuration `path`.
    pub(super) fn new(volumes: &'a [Volume], volume: usize, path: &str) -> Result<Self, GrubError> {
        let mut variables = Variables::new();
        let names = volumes.get(volume).map(|volume| &volume.grub_names);
        let device = names.and_then(|names| names.first());
        let device = device.map_or("", String::as_str);
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        variables.set("root", device)?;
        variables.set("prefix", &format!("({device}){folder}"))?;
        variables.set("config_directory", &format!("({device}){folder}"))?;
        variables.set("config_file", &format!("({device}){path}"))?;
        Ok(Self {
            volumes,
            variables,
            functions: HashMap::new(),
            arguments: Vec::new(),
            status: true,
            items: Vec::new(),
            loaded: Loaded::default(),
            entries_left: MAX_ENTRIES,
            steps_left: MAX_STEPS,
            expansion_left: MAX_EXPANSION,
            files_left: MAX_FILES,
            depth: 0,
        })
    }

    /// Reads and executes a file; false when there is none.
    pub(super) fn run_file(&mut self, volume: usize, path: &str) -> Result<bool, GrubError> {
        self.files_left = self
            .files_left
            .checked_sub(1)
            .ok_or(GrubError::TooManyFiles)?;
        let Some(tree) = self.volumes.get(volume).map(|volume| &volume.tree) else {
            return Ok(false);
        };
        let script = read_config(&**tree, path).map_err(|source| GrubError::Read {
            path: path.to_owned(),
            source,
        })?;
        match script {
            Some(script) => self.run_script(&script),
            None => Ok(false),
        }
    }

    /// Executes text as a script.
    pub(super) fn run_script(&mut self, script: &str) -> Result<bool, GrubError> {
        let block = parse(script)?;
        match self.run(&block)? {
            Flow::Done(status) | Flow::Return(status) => Ok(status),
            Flow::Break | Flow::Continue => Ok(true),
        }
    }

    /// Executes commands in a row.
    pub(super) fn run(&mut self, block: &[Node]) -> Result<Flow, GrubError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(GrubError::TooDeep);
        }
        let mut flow = Flow::Done(true);
        for node in block {
            flow = self.node(node)?;
            match flow {
                Flow::Done(status) => self.status = status,
                Flow::Break | Flow::Continue | Flow::Return(_) => break,
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn node(&mut self, node: &Node) -> Result<Flow, GrubError> {
        self.step()?;
        match node {
            Node::Command { words, block } => self.command(words, block.as_ref()),
            Node::If {
                branches,
                otherwise,
            } => {
                for (condition, body) in branches {
                    match self.run(condition)? {
                        Flow::Done(true) => return self.run(body),
                        Flow::Done(false) => {}
                        flow => return Ok(flow),
                    }
                }
                self.run(otherwise)
            }
            Node::For { name, words, body } => self.for_loop(name, words, body),
            Node::While {
                condition,
                negated,
                body,
            } => self.while_loop(condition, *negated, body),
            Node::Function { name, body } => {
                self.functions.insert(name.clone(), body.clone());
                Ok(Flow::Done(true))
            }
        }
    }

    fn step(&mut self) -> Result<(), GrubError> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(GrubError::TooLong)?;
        Ok(())
    }

    fn for_loop(&mut self, name: &str, words: &[Word], body: &Block) -> Result<Flow, GrubError> {
        for value in self.expand_all(words)? {
            self.step()?;
            self.variables.set(name, &value)?;
            match self.run(body)? {
                Flow::Break => break,
                Flow::Return(status) => return Ok(Flow::Return(status)),
                Flow::Done(_) | Flow::Continue => {}
            }
        }
        Ok(Flow::Done(true))
    }

    fn while_loop(
        &mut self,
        condition: &Block,
        negated: bool,
        body: &Block,
    ) -> Result<Flow, GrubError> {
        loop {
            self.step()?;
            match self.run(condition)? {
                Flow::Done(status) if status != negated => {}
                Flow::Done(_) => return Ok(Flow::Done(true)),
                flow => return Ok(flow),
            }
            match self.run(body)? {
                Flow::Break => return Ok(Flow::Done(true)),
                Flow::Return(status) => return Ok(Flow::Return(status)),
                Flow::Done(_) | Flow::Continue => {}
            }
        }
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<Flow, GrubError> {
        if let [word] = words
            && word.is_assignment()
        {
            let assignment = self.expand_whole(word)?;
            if let Some((name, value)) = assignment.split_once('=') {
                self.variables.set(name, value)?;
            }
            return Ok(Flow::Done(true));
        }
        let words = self.expand_all(words)?;
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Done(true));
        };
        if let Some(block) = block {
            return self.block_command(name, arguments, block).map(Flow::Done);
        }
        if let Some(body) = self.functions.get(name).cloned() {
            return self.call(&body, arguments);
        }
        let status = || arguments.first().is_none_or(|word| word == "0");
        match name.as_str() {
            "break" => Ok(Flow::Break),
            "continue" => Ok(Flow::Continue),
            "return" => Ok(Flow::Return(status())),
            "!" => {
                let negated = self.simple_words(arguments)?;
                Ok(Flow::Done(!negated))
            }
            _ => self.builtin(name, arguments).map(Flow::Done),
        }
    }

    fn simple_words(&mut self, words: &[String]) -> Result<bool, GrubError> {
        match words.split_first() {
            Some((name, arguments)) => self.builtin(name, arguments),
            None => Ok(true),
        }
    }

    fn call(&mut self, body: &Block, arguments: &[String]) -> Result<Flow, GrubError> {
        let outer = std::mem::replace(&mut self.arguments, arguments.to_vec());
        let flow = self.run(body);
        self.arguments = outer;
        Ok(match flow? {
            Flow::Return(status) | Flow::Done(status) => Flow::Done(status),
            Flow::Break | Flow::Continue => Flow::Done(true),
        })
    }

    /// `menuentry` and `submenu`; other commands take no block.
    fn block_command(
        &mut self,
        name: &str,
        arguments: &[String],
        block: &Block,
    ) -> Result<bool, GrubError> {
        if !matches!(name, "menuentry" | "submenu") {
            return Ok(false);
        }
        let mut title = None;
        let mut id = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                word if word.starts_with("--id=") => {}
                "--unrestricted" => {}
                _ => title = title.or(Some(word)),
            }
        }
        let in_one = arguments.iter().find_map(|word| word.strip_prefix("--id="));
        let title = title.cloned().unwrap_or_default();
        let id = id.map(String::as_str).or(in_one).unwrap_or(&title);
        let item = Item::Block {
            id: id.to_owned(),
            title: title.clone(),
            body: Rc::clone(block),
        };
        self.push(item)?;
        Ok(true)
    }

    /// Adds an item to the menu.
    pub(super) fn push(&mut self, item: Item) -> Result<(), GrubError> {
        self.entries_left = self
            .entries_left
            .checked_sub(1)
            .ok_or(GrubError::TooManyEntries)?;
        self.items.push(item);
        Ok(())
    }

    /// Runs an item's block by itself: its variables are its own. Returns what it loaded, and the
    /// menu that it made.
    pub(super) fn run_item(
        &mut self,
        id: &str,
        body: &Block,
    ) -> Result<(Loaded, Vec<Item>), GrubError> {
        let variables = self.variables.clone();
        let items = std::mem::take(&mut self.items);
        self.loaded = Loaded::default();
        self.variables.set("chosen", id)?;
        let flow = self.run(body);
        self.variables = variables;
        let items = std::mem::replace(&mut self.items, items);
        flow?;
        Ok((std::mem::take(&mut self.loaded), items))
    }

    /// The words that these stand for.
    fn expand_all(&mut self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded = Vec::new();
        for word in words {
            self.expand(word, &mut expanded)?;
        }
        Ok(expanded)
    }

    /// Expands one word: unquoted variables are split at white space and may leave no word at all.
    fn expand(&mut self, word: &Word, into: &mut Vec<String>) -> Result<(), GrubError> {
        let mut current: Option<String> = None;
        for part in &word.parts {
            match part {
                Part::Text { text, .. } => current.get_or_insert_default().push_str(text),
                Part::Variable { name, quoted: true } => {
                    let value = self.value(name);
                    current.get_or_insert_default().push_str(&value);
                }
                Part::Variable { name, .. } => {
                    let value = self.value(name);
                    if value.starts_with(char::is_whitespace) {
                        into.extend(current.take());
                    }
                    for (at, piece) in value.split_whitespace().enumerate() {
                        if at > 0 {
                            into.extend(current.take());
                        }
                        current.get_or_insert_default().push_str(piece);
                    }
                    if value.ends_with(char::is_whitespace) {
                        into.extend(current.take());
                    }
                    self.spend(value.len())?;
                }
            }
            self.check_len(current.as_deref().unwrap_or_default())?;
        }
        self.spend(current.as_ref().map_or(0, String::len))?;
        into.extend(current);
        Ok(())
    }

    /// Expands an assignment, whose value is not split.
    fn expand_whole(&mut self, word: &Word) -> Result<String, GrubError> {
        let mut text = String::new();
        for part in &word.parts {
            match part {
                Part::Text { text: more, .. } => text.push_str(more),
                Part::Variable { name, .. } => text.push_str(&self.value(name)),
            }
            self.check_len(&text)?;
        }
        self.spend(text.len())?;
        Ok(text)
    }

    fn check_len(&self, text: &str) -> Result<(), GrubError> {
        if text.len() > MAX_VALUE_LEN {
            return Err(GrubError::ValueTooLong);
        }
        Ok(())
    }

    fn spend(&mut self, len: usize) -> Result<(), GrubError> {
        self.expansion_left = self
            .expansion_left
            .checked_sub(len + 1)
            .ok_or(GrubError::TooLong)?;
        Ok(())
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => u8::from(!self.status).to_string(),
            "#" => self.arguments.len().to_string(),
            "@" | "*" => self.arguments.join(" "),
            name => match name.parse::<usize>() {
                Ok(number) => {
                    let argument = number.checked_sub(1).and_then(|at| self.arguments.get(at));
                    argument.cloned().unwrap_or_default()
                }
                Err(_) => self.variables.get(name).to_owned(),
            },
        }
    }
}
