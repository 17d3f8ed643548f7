//! The command line, which containerd writes as Go's `flag` package reads it: flags with one
//! dash, then at most one sub-command (containerd, `pkg/shim/shim.go`).

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What this process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `start`: make the pod's server, or find it, and print its address.
    Start,
    /// `delete`: remove what a dead shim has left.
    Delete,
    /// `serve`: be the pod's server. `start` runs this.
    Serve,
    /// `-info`: tell what this runtime is.
    Info,
    /// `-v`: print the version.
    Version,
}

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The task's or sandbox's identifier.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The bundle; only `delete` is told, others have it as working directory.
    pub bundle: Option<PathBuf>,
    /// The node's configuration; only `serve` is told, when `start` knows it.
    pub config: Option<PathBuf>,
    /// Whether to log at debug level.
    pub debug: bool,
}

/// A command line that containerd does not write.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgumentsError {
    /// A word that is not UTF-8.
    #[error("argument {0} is not UTF-8")]
    Encoding(usize),
    /// A flag nobody knows.
    #[error("unknown flag -{0}")]
    UnknownFlag(String),
    /// A flag without its value.
    #[error("flag -{0} needs a value")]
    MissingValue(String),
    /// No sub-command, or an unknown one.
    #[error("unknown sub-command {0:?}: it is start or delete")]
    UnknownAction(String),
    /// A needed flag is missing.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// An identifier that could leave its folder.
    #[error("{0:?} is no identifier")]
    Identifier(String),
}

impl Arguments {
    /// Parses the words after the program's name.
    ///
    /// # Errors
    /// [`ArgumentsError`].
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, ArgumentsError> {
        let mut parsed = Self {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            config: None,
            debug: false,
        };
        let mut action = None;
        let mut words = words.into_iter().enumerate();
        while let Some((position, word)) = words.next() {
            let word = word
                .into_string()
                .map_err(|_| ArgumentsError::Encoding(position))?;
            let Some(flag) = word.strip_prefix('-') else {
                action = Some(sub_command(&word)?);
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => parsed.debug = inline.as_deref() != Some("false"),
                "info" => action = Some(Action::Info),
                "v" | "version" => action = Some(Action::Version),
                _ => {
                    let next = || words.next().and_then(|(_, word)| word.into_string().ok());
                    let value = inline.or_else(next);
                    parsed.set(name, value)?;
                }
            }
        }
        parsed.action = action.ok_or_else(|| ArgumentsError::UnknownAction(String::new()))?;
        parsed.checked()
    }

    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), ArgumentsError> {
        let known = [
            "namespace",
            "id",
            "address",
            "publish-binary",
            "bundle",
            "config",
            "socket",
        ];
        if !known.contains(&name) {
            return Err(ArgumentsError::UnknownFlag(name.to_owned()));
        }
        let value = value.ok_or_else(|| ArgumentsError::MissingValue(name.to_owned()))?;
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = Some(value.into()),
            "config" => self.config = Some(value.into()),
            // containerd's program for publishing events, which here go over ttrpc, and the socket
            // of shims before version 2.
            _ => {}
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, ArgumentsError> {
        if matches!(self.action, Action::Info | Action::Version) {
            return Ok(self);
        }
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(ArgumentsError::Missing(name));
            }
            if value.contains(['/', '\0']) || value == ".." || value == "." {
                return Err(ArgumentsError::Identifier(value.clone()));
            }
        }
        Ok(self)
    }
}

fn sub_command(word: &str) -> Result<Action, ArgumentsError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "serve" => Ok(Action::Serve),
        other => Err(ArgumentsError::UnknownAction(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentsError> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_start_line_is_understood() {
        let parsed = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id abc -debug start",
        )
        .unwrap();
        assert_eq!(parsed.action, Action::Start);
        assert_eq!(parsed.namespace, "k8s.io");
        assert_eq!(parsed.id, "abc");
        assert_eq!(parsed.address, "/run/containerd/containerd.sock");
        assert!(parsed.debug);
        assert_eq!(parsed.bundle, None);
    }

    #[test]
    fn delete_is_told_its_bundle_and_flags_may_hold_their_values() {
        let parsed = parse("-namespace=n --id=x -debug=false -bundle /b delete").unwrap();
        assert_eq!(parsed.action, Action::Delete);
        assert_eq!(parsed.bundle, Some(PathBuf::from("/b")));
        assert!(!parsed.debug);
    }

    #[test]
    fn info_and_version_need_no_identifier() {
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn wrong_lines_are_refused() {
        assert_eq!(
            parse("-namespace n start"),
            Err(ArgumentsError::Missing("id"))
        );
        assert_eq!(
            parse("-id x -namespace n stop"),
            Err(ArgumentsError::UnknownAction("stop".into()))
        );
        assert_eq!(
            parse("-wrong x start"),
            Err(ArgumentsError::UnknownFlag("wrong".into()))
        );
        assert_eq!(parse("-id"), Err(ArgumentsError::MissingValue("id".into())));
        assert_eq!(
            parse("-namespace n -id ../x start"),
            Err(ArgumentsError::Identifier("../x".into()))
        );
    }
}
