//! Commands that scripts use.

use super::interpreter::{Interpreter, Item};
use super::{GrubError, condition, variables};
use crate::bls;
use crate::tree::read_config;
use crate::volume::File;

/// Commands that only matter to a GRUB with a screen and a keyboard, or that load what this
/// interpreter has built in.
const IDLE: &[&str] = &[
    "echo",
    "export",
    "insmod",
    "rmmod",
    "true",
    "clear",
    "save_env",
    "list_env",
    "terminal_output",
    "terminal_input",
    "terminal",
    "serial",
    "gfxmode",
    "play",
    "sleep",
    "hiddenentry",
    "devicetree",
    "fdtdump",
    "rdmsr",
    "increment",
    "decrement",
    "savedefault",
    "boot",
    "menu_color_normal",
    "setparams",
];

impl Interpreter<'_> {
    /// Executes a command; one that is not known fails.
    pub(super) fn builtin(&mut self, name: &str, arguments: &[String]) -> Result<bool, GrubError> {
        match name {
            "set" => return self.set(arguments),
            "unset" => arguments.iter().for_each(|name| self.variables.unset(name)),
            "[" => {
                let inner = arguments.split_last().map_or(arguments, |(_, rest)| rest);
                return Ok(self.test(inner));
            }
            "test" => return Ok(self.test(arguments)),
            "load_env" => return self.load_env(arguments),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search(name, arguments);
            }
            "probe" => return self.probe(arguments),
            "source" | "." | "configfile" | "extract_entries_source" => {
                return self.include(arguments);
            }
            "eval" => return self.run_script(&arguments.join(" ")),
            "blscfg" | "bls_import" => return self.blscfg(arguments),
            "linux" | "linux16" | "linuxefi" => return self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => return self.initrd(arguments),
            "chainloader" | "multiboot" | "multiboot2" | "knetbsd" | "kfreebsd"
            | "xen_hypervisor" | "fwsetup" | "exit" | "halt" | "reboot" => {
                self.loaded
                    .refused
                    .get_or_insert_with(|| format!("runs {name}"));
            }
            name if IDLE.contains(&name) => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        for argument in arguments {
            if let Some((name, value)) = argument.split_once('=') {
                self.variables.set(name, value)?;
            }
        }
        Ok(true)
    }

    fn test(&self, words: &[String]) -> bool {
        let look = |path: &str| {
            let file = self.locate(path)?;
            let volume = self.volumes.get(file.volume)?;
            volume.tree.kind(&file.path)
        };
        condition::holds(words, &look)
    }

    /// `load_env [-f FILE] [NAME…]`.
    fn load_env(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let mut path = format!("{}/grubenv", self.variables.get("prefix"));
        let mut only = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-f" | "--file" => path = words.next().cloned().unwrap_or_default(),
                option if option.starts_with('-') => {
                    if let Some(file) = option.strip_prefix("--file=") {
                        file.clone_into(&mut path);
                    }
                }
                name => only.push(name),
            }
        }
        let Some(text) = self.read(&path) else {
            return Ok(false);
        };
        let Some(saved) = variables::saved(&text) else {
            return Ok(false);
        };
        for (name, value) in saved {
            if only.is_empty() || only.contains(&name.as_str()) {
                self.variables.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    fn read(&self, path: &str) -> Option<String> {
        let file = self.locate(path)?;
        let volume = self.volumes.get(file.volume)?;
        read_config(&*volume.tree, &file.path).ok()?
    }

    fn include(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let Some(file) = arguments.first().and_then(|path| self.locate(path)) else {
            return Ok(false);
        };
        self.run_file(file.volume, &file.path)
    }

    /// Fedora's command: the entries of the Boot Loader Specification, newest first, their options
    /// with GRUB's variables.
    fn blscfg(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let folders = match arguments.first() {
            Some(folder) => vec![folder.clone()],
            None => vec![
                "/loader/entries".to_owned(),
                "/boot/loader/entries".to_owned(),
            ],
        };
        let found = folders.iter().find_map(|folder| self.locate(folder));
        let Some(File { volume, path }) = found else {
            return Ok(false);
        };
        let mut entries = bls::grub_entries(self.volumes, volume, &path);
        for entry in &mut entries {
            entry.args = self.expand_text(&entry.args)?;
            for initrd in &mut entry.initrds {
                let path = self.expand_text(initrd.path.trim_start_matches('/'))?;
                initrd.path = format!("/{path}");
            }
            // A variable without a value names no file.
            entry.initrds.retain(|initrd| initrd.path != "/");
        }
        for entry in entries {
            self.push(Item::Ready(entry))?;
        }
        Ok(true)
    }

    /// Replaces variables in a text that is not part of a script.
    fn expand_text(&mut self, text: &str) -> Result<String, GrubError> {
        let mut expanded = Vec::new();
        for word in text.split_whitespace() {
            match word.strip_prefix('$') {
                Some(name) => {
                    let name = name.trim_start_matches('{').trim_end_matches('}');
                    let value = self.variables.get(name);
                    expanded.extend(value.split_whitespace().map(str::to_owned));
                }
                None => expanded.push(word.to_owned()),
            }
            if expanded.iter().map(String::len).sum::<usize>() > super::MAX_VALUE_LEN {
                return Err(GrubError::ValueTooLong);
            }
        }
        Ok(expanded.join(" "))
    }

    fn linux(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        let Some((path, words)) = arguments.split_first() else {
            return Ok(false);
        };
        match self.locate(path) {
            Some(file) => {
                self.loaded.kernel = Some(file);
                let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
                self.loaded.args = words.join(" ");
                self.loaded.initrds.clear();
                self.loaded.refused = None;
                Ok(true)
            }
            None => {
                let root = self.variables.get("root");
                self.loaded.refused = Some(format!("names {path}, which is not on ({root})"));
                Ok(false)
            }
        }
    }

    fn initrd(&mut self, arguments: &[String]) -> Result<bool, GrubError> {
        for path in arguments {
            match self.locate(path) {
                Some(file) => self.loaded.initrds.push(file),
                None => {
                    let refused = format!("names {path}, which does not exist");
                    self.loaded.refused = Some(refused);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// A word as the kernel reads it: white space is held together by double quotes.
fn quoted(word: &str) -> String {
    if word.contains(char::is_whitespace) {
        format!("\"{word}\"")
    } else {
        word.to_owned()
    }
}
